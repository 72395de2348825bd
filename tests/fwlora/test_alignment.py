"""`GradientAligned`: the first steps of a link look for its direction, in the user's own loop, and leave nothing behind."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from fwlora import At, ChainLoRAOptimizer, Every, Flat, GradientAligned, Never
from fwlora.errors import ArgumentError
from tests.conftest import make_chain, step, train
from tests.tables import CASES, loss_of, output

ALIGNED = GradientAligned()


def gradient(model: nn.Module, optimizer: ChainLoRAOptimizer, batch, site: str) -> torch.Tensor:
    """The dense gradient of a site's effective weight where the link is zero, as (out, fan_in)."""
    weight = optimizer.sites[site].weight.requires_grad_(True)
    (found,) = torch.autograd.grad(loss_of(model, batch), [weight])
    weight.requires_grad_(False)
    return (found.mT if optimizer.sites[site].transposed else found).flatten(1)


@pytest.mark.parametrize("kind", CASES)
def test_aligned_link_starts_from_the_gradients_top_singular_directions(kind):
    """With a rank as large as the gradient's, two products find the directions exactly."""
    model = CASES[kind].model(torch.float64)
    optimizer = make_chain(CASES[kind], model, rank=16, reset=ALIGNED, knots=Never())
    batch = CASES[kind].batch()
    truths = {name: gradient(model, optimizer, batch, name) for name in optimizer.sites}
    for _ in range(2):
        step(model, optimizer, batch)
    compared = 0
    for name, site in optimizer.sites.items():
        U, S, Vh = torch.linalg.svd(truths[name], full_matrices=False)
        rank = int((S > 1e-9 * S[0]).sum()) if S[0] > 0 else 0
        if not 0 < rank <= 16:
            continue
        directions = (site.B.detach().flatten(1).mT if site.is_embedding else site.A.detach().flatten(1))[:rank].double()
        span = U[:, :rank] if site.is_embedding else Vh[:rank].mT
        torch.testing.assert_close(directions @ directions.mT, torch.eye(rank).double(), atol=1e-5, rtol=0)
        torch.testing.assert_close((directions @ span) @ (directions @ span).mT, torch.eye(rank).double(), atol=1e-4, rtol=0)
        assert not site.zeroed.any()
        compared += 1
    assert compared, "no site of this case has a gradient of a rank that two products see"


def test_directions_are_sorted_by_strength():
    model = nn.Sequential(nn.Linear(4, 3, bias=False)).double()
    optimizer = ChainLoRAOptimizer(model, rank=2, reset=ALIGNED, knots=Never())
    M = torch.zeros(3, 4, dtype=torch.float64)
    M[0, 1], M[2, 3] = 5.0, 1.0
    for _ in range(2):
        optimizer.zero_grad()
        (model(torch.eye(4).double()).mT * M).sum().backward()
        optimizer.step()
    assert optimizer.sites["0"].A.detach().abs().round(decimals=6).tolist() == [[0, 1, 0, 0], [0, 0, 0, 1]]


def test_model_computes_the_same_while_a_direction_is_looked_for(chained):
    model, optimizer, batch = chained("llama", reset=ALIGNED, knots=At([3]))
    base = output(model, batch)
    step(model, optimizer, batch)
    torch.testing.assert_close(output(model, batch), base, rtol=0, atol=0)
    step(model, optimizer, batch)
    torch.testing.assert_close(output(model, batch), base, rtol=0, atol=0)
    step(model, optimizer, batch)
    knotted = output(model, batch)
    assert not torch.equal(knotted, base)
    for _ in range(2):
        step(model, optimizer, batch)
        torch.testing.assert_close(output(model, batch), knotted, rtol=0, atol=0)
    step(model, optimizer, batch)
    assert not torch.equal(output(model, batch), knotted)


def test_two_steps_a_link_are_spent_and_nothing_else():
    """As many model calls as steps; the steps count, and a scheduler's rate goes on."""
    model = CASES["linear"].model()
    optimizer = make_chain(CASES["linear"], model, reset=ALIGNED, knots=Every(5), link_lr=Flat(warmup=0))
    calls = []
    model.register_forward_hook(lambda *_: calls.append(1))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda k: 1 / (1 + k))
    trained = []
    for k in range(10):
        before = [site.B.detach().clone() for site in optimizer.sites.values()]
        link = optimizer.progress.link_step
        step(model, optimizer, CASES["linear"].batch())
        schedule.step()
        assert optimizer.param_groups[0]["lr"] == pytest.approx(0.02 / (2 + k))
        after = [site.B.detach() for site in optimizer.sites.values()]
        moved = any(B.any() and not torch.equal(B, b) for B, b in zip(after, before, strict=True))
        trained.append(link >= 2 and moved)
    assert len(calls) == 10
    assert optimizer.progress.step == 10
    assert [record.step for record in optimizer.ledger] == [5, 10]
    # The knot's own step ends with B at zero.
    assert trained == [False, False, True, True, False] * 2


def test_factors_have_no_moments_after_the_probes(chained):
    model, optimizer, batch = chained(reset=ALIGNED, knots=Never())
    for _ in range(2):
        step(model, optimizer, batch)
        assert not optimizer.state
        assert all(p.grad is None for p in optimizer.parameters())
    step(model, optimizer, batch)
    assert all(float(state["step"]) == 1 for state in optimizer.state.values())


def test_what_is_trained_in_full_goes_on_training(chained):
    model, optimizer, batch = chained("llama", reset=ALIGNED, knots=Never(), train_modules=["norm"])
    norm = model.model.norm.weight
    before = norm.detach().clone()
    step(model, optimizer, batch)
    assert not torch.equal(norm, before)
    assert float(optimizer.state[norm]["step"]) == 1


def test_gradients_are_taken_as_they_accumulate():
    """Two micro-batches of half the loss are one batch."""
    case = CASES["linear"]
    pair = [case.model(torch.float64) for _ in range(2)]
    whole, parts = (make_chain(case, model, rank=1, reset=ALIGNED, knots=Never()) for model in pair)
    x = case.batch()["x"].double()
    for _ in range(2):
        pair[0](x=x).square().sum().backward()
        for part in (x[:2], x[2:]):
            pair[1](x=part).square().sum().backward()
        for optimizer in (whole, parts):
            optimizer.step()
            optimizer.zero_grad()
    for name in whole.sites:
        torch.testing.assert_close(whole.sites[name].A, parts.sites[name].A)


def test_more_steps_average_the_gradient_over_more_batches():
    """Six probes of batches that differ start where two probes of their mean do."""
    found = []
    for steps, batches in ((2, [[0, 1, 2]] * 2), (6, [[0], [1], [2]] * 2)):
        model = nn.Sequential(nn.Linear(5, 4, bias=False)).double()
        with torch.no_grad():
            model[0].weight.zero_()
        optimizer = ChainLoRAOptimizer(model, rank=1, reset=GradientAligned(steps=steps), knots=Never())
        targets = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(3)).double()
        for rows in batches:
            optimizer.zero_grad()
            (model(torch.eye(5).double()).mT * targets[rows].mean(0)).sum().backward()
            optimizer.step()
        found.append(optimizer.sites["0"].A.detach())
        assert not optimizer.sites["0"].B.any()
    torch.testing.assert_close(*found)


def test_step_that_a_gradient_scaler_skips_is_repeated():
    model = CASES["linear"].model()
    optimizer = make_chain(CASES["linear"], model, reset=ALIGNED, knots=Never(), freeze_A=True)
    twin_model = CASES["linear"].model()
    twin = make_chain(CASES["linear"], twin_model, reset=ALIGNED, knots=Never(), freeze_A=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    batch = CASES["linear"].batch()
    for blow_up in (False, True, False, True, False):
        optimizer.zero_grad()
        loss = loss_of(model, batch) * (float("inf") if blow_up else 1.0)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update(4.0)
        if not blow_up:
            step(twin_model, twin, batch)
    assert optimizer.progress.step == twin.progress.step == 3
    for name in optimizer.sites:
        torch.testing.assert_close(optimizer.sites[name].A, twin.sites[name].A)
        torch.testing.assert_close(optimizer.sites[name].B, twin.sites[name].B)


def test_layer_that_no_batch_reaches_starts_from_its_draw():
    class Half(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused = nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x):
            return self.used(x)

    model = Half()
    optimizer = ChainLoRAOptimizer(model, rank=1, reset=ALIGNED, knots=Never())
    drawn = optimizer.sites["unused"].A.detach().clone()
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.randn(4, 3)).square().sum().backward()
        optimizer.step()
    assert torch.equal(optimizer.sites["unused"].A, drawn)
    assert optimizer.tie_knot().fallbacks == {"unused": "zero gradient"}


def test_frozen_A_has_a_gradient_in_the_second_probe_only(chained):
    model, optimizer, batch = chained("linear", reset=ALIGNED, knots=Never(), freeze_A=True)
    sites = optimizer.sites.values()
    drawn = [site.A.detach().clone() for site in sites]
    seen = []
    for _ in range(3):
        seen.append({site.A.requires_grad for site in sites})
        step(model, optimizer, batch)
    assert seen == [{False}, {True}, {False}]
    assert all(site.A.grad is None for site in sites)
    aligned = [site.A.detach().clone() for site in sites]
    assert not any(torch.equal(a, b) for a, b in zip(drawn, aligned, strict=True))
    step(model, optimizer, batch)
    assert all(torch.equal(site.A, a) for site, a in zip(sites, aligned, strict=True))
    assert all(site.B.any() for site in sites)


def test_adopted_adapter_is_aligned_where_its_B_is_zero_and_left_alone_elsewhere():
    case = CASES["llama"]
    model = get_peft_model(case.model(), LoraConfig(r=2, target_modules=["q_proj"]))
    drawn = {name: p.detach().clone() for name, p in model.named_parameters() if "lora_" in name}
    optimizer = ChainLoRAOptimizer(model, reset=ALIGNED, knots=Never())
    assert all(torch.equal(p, drawn[name]) for name, p in model.named_parameters() if "lora_" in name)
    train(optimizer, model, case.batch(), 2)
    site = next(iter(optimizer.sites.values()))
    torch.testing.assert_close(site.A @ site.A.mT, torch.eye(2), atol=1e-5, rtol=0)

    model = get_peft_model(case.model(), LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    optimizer = ChainLoRAOptimizer(model, reset=ALIGNED, knots=Never())
    before = {name: p.detach().clone() for name, p in model.named_parameters() if "lora_" in name}
    train(optimizer, model, case.batch(), 1)
    assert not any(torch.equal(p, before[name]) for name, p in model.named_parameters() if "lora_" in name)


def test_rank_beyond_a_side_is_filled_up_by_the_draw():
    model = nn.Sequential(nn.Linear(3, 5, bias=False))
    optimizer = ChainLoRAOptimizer(model, rank=4, reset=ALIGNED, knots=Never())
    for _ in range(2):
        optimizer.zero_grad()
        model(torch.randn(6, 3)).square().sum().backward()
        optimizer.step()
    A = optimizer.sites["0"].A.detach()
    torch.testing.assert_close(A[:3] @ A[:3].mT, torch.eye(3))
    assert A[3].any()


@pytest.mark.parametrize("steps", [1, 2.5, True])
def test_number_of_probes_is_checked(steps):
    with pytest.raises(ArgumentError, match=r"`GradientAligned\(steps=...\)`"):
        GradientAligned(steps=steps)


def test_scaler_sees_what_is_not_finite_in_a_frozen_A_alone(chained):
    """grad_B is 0 in the second probe, and A is in no parameter group."""
    model, optimizer, batch = chained("linear", reset=ALIGNED, knots=Never(), freeze_A=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    steps = []
    for overflows in (False, True, False, False):
        optimizer.zero_grad()
        scaler.scale(loss_of(model, batch)).backward()
        if overflows:
            site = optimizer.sites["layers.0"]
            hidden = torch.full_like(site.A, float("inf"), requires_grad=False)
            (site.A * hidden).sum().backward()
        scaler.step(optimizer)
        scaler.update()
        steps.append(optimizer.progress.step)
    assert steps == [1, 1, 2, 3]
    assert not optimizer.fallbacks
    assert all(site.B.any() for site in optimizer.sites.values())
