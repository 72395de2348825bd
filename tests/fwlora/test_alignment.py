"""`GradientAligned`: the first steps of a link look for its direction, in the user's own loop, and leave nothing behind."""

from __future__ import annotations

import copy
import gc
import pickle

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from fwlora import At, ChainLoRAOptimizer, Every, Flat, GradientAligned, Kaiming, Never, StepDown
from fwlora.errors import ArgumentError, RefusedKnotWarning, StateError
from tests.conftest import assert_same, make_chain, train
from tests.tables import CASES, loss_of, output

ALIGNED = GradientAligned()


def gradient(model: nn.Module, optimizer: ChainLoRAOptimizer, batch, site: str) -> torch.Tensor:
    """The dense gradient of a site's effective weight where the link is zero, as (out, fan_in)."""
    weight = optimizer.sites[site].weight.requires_grad_(True)
    (found,) = torch.autograd.grad(loss_of(model, batch), [weight])
    weight.requires_grad_(False)
    return (found.mT if optimizer.sites[site].transposed else found).flatten(1)


def step(model: nn.Module, optimizer: ChainLoRAOptimizer, batch) -> None:
    optimizer.zero_grad()
    loss_of(model, batch).backward()
    optimizer.step()


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


def with_dropout(**options) -> tuple[nn.Module, ChainLoRAOptimizer, list[nn.Dropout]]:
    model = CASES["linear"].model()
    config = LoraConfig(r=2, target_modules=["0", "2"], lora_dropout=0.3)
    optimizer = ChainLoRAOptimizer(model, lora_config=config, reset=ALIGNED, **{"knots": Never(), **options})
    return model, optimizer, [m for m in model.modules() if isinstance(m, nn.Dropout)]


def probabilities(dropouts: list[nn.Dropout]) -> set[float]:
    return {module.p for module in dropouts}


def test_loras_dropout_is_off_while_a_direction_is_looked_for():
    model, optimizer, dropouts = with_dropout()
    batch = CASES["linear"].batch()
    assert len(dropouts) == 2
    seen = [probabilities(dropouts)]
    for _ in range(3):
        step(model, optimizer, batch)
        seen.append(probabilities(dropouts))
    assert seen == [{0.0}, {0.0}, {0.3}, {0.3}]
    optimizer.tie_knot()
    assert probabilities(dropouts) == {0.0}


@pytest.mark.parametrize("probes", [0, 1])
def test_loras_dropout_comes_back_on_every_way_out(probes):
    batch = CASES["linear"].batch()

    def begun():
        found = with_dropout()
        for _ in range(probes):
            step(found[0], found[1], batch)
        return found

    finished = with_dropout()
    for _ in range(3):
        step(finished[0], finished[1], batch)

    _, optimizer, dropouts = begun()
    optimizer.load_state_dict(finished[1].state_dict())
    assert probabilities(dropouts) == {0.3}

    _, optimizer, dropouts = begun()
    optimizer.merge_and_unload()
    assert probabilities(dropouts) == {0.3}

    _, optimizer, dropouts = begun()
    del optimizer
    gc.collect()
    assert probabilities(dropouts) == {0.3}


def test_copy_in_the_middle_has_its_own_phase():
    model, optimizer, dropouts = with_dropout()
    step(model, optimizer, CASES["linear"].batch())
    twin_model, twin = copy.deepcopy((model, optimizer))
    twin_dropouts = [m for m in twin_model.modules() if isinstance(m, nn.Dropout)]
    step(twin_model, twin, CASES["linear"].batch())
    assert probabilities(twin_dropouts) == {0.3}
    assert probabilities(dropouts) == {0.0}


@pytest.mark.parametrize("steps", [0, 1, 2])
def test_copy_of_a_frozen_A_goes_on_as_the_run_does(chained, steps):
    model, optimizer, batch = chained("linear", steps=steps, reset=ALIGNED, knots=Never(), freeze_A=True)
    twin_model, twin = copy.deepcopy((model, optimizer))
    other_model, other = pickle.loads(pickle.dumps((model, optimizer)))
    for a, b in ((model, optimizer), (twin_model, twin), (other_model, other)):
        train(b, a, batch, 4 - steps)
    assert_same(model, optimizer, twin_model, twin)
    assert_same(model, optimizer, other_model, other)
    assert not any(site.A.requires_grad for site in twin.sites.values())


@pytest.mark.parametrize("saved_after", range(8))
@pytest.mark.parametrize("options", [{}, {"freeze_A": True}, {"rank": StepDown([3, 2])}], ids=str)
def test_run_saved_anywhere_resumes_bit_for_bit(saved_after, options):
    case = CASES["llama"]
    options = {"reset": GradientAligned(steps=3), "knots": Every(4), **options}
    model = case.model()
    optimizer = make_chain(case, model, **options)
    train(optimizer, model, case.batch(), saved_after)
    saved = copy.deepcopy(optimizer.state_dict())
    train(optimizer, model, case.batch(), 9 - saved_after)

    other_model = case.model()
    other = make_chain(case, other_model, **options)
    other.load_state_dict(saved)
    train(other, other_model, case.batch(), 9 - saved_after)
    assert_same(model, optimizer, other_model, other)
    requires = [p.requires_grad for p in model.parameters()]
    assert requires == [p.requires_grad for p in other_model.parameters()]


def test_phase_of_another_rule_is_refused(chained):
    _, optimizer, _ = chained("linear", steps=1, reset=GradientAligned(steps=4), knots=Never())
    saved = optimizer.state_dict()
    for reset in (Kaiming(), GradientAligned(steps=2)):
        _, other, _ = chained("linear", reset=reset, knots=Never())
        with pytest.raises(StateError, match=r"4 steps that align"):
            other.load_state_dict(saved)


@pytest.mark.parametrize(("value", "reason"), [(0.0, "zero gradient"), (float("nan"), "gradient not finite")])
@pytest.mark.parametrize("when", [0, 1])
def test_gradient_that_says_nothing_leaves_the_draw_and_the_record_says_so(chained, value, reason, when):
    model, optimizer, batch = chained("linear", reset=ALIGNED, knots=Never())
    _, plain, _ = chained("linear", reset=Kaiming(), knots=Never())
    for k in range(2):
        optimizer.zero_grad()
        loss_of(model, batch).backward()
        if k == when:
            for parameter in optimizer.sites["layers.0"].parameters():
                parameter.grad.fill_(value)
        optimizer.step()
    assert optimizer.fallbacks == {"layers.0": reason}
    assert torch.equal(optimizer.sites["layers.0"].A, plain.sites["layers.0"].A)
    assert not torch.equal(optimizer.sites["layers.2"].A, plain.sites["layers.2"].A)
    step(model, optimizer, batch)
    record = optimizer.tie_knot()
    assert record.fallbacks == {"layers.0": reason}
    assert optimizer.tie_knot().fallbacks == {}


def test_fallback_is_remembered_over_a_resume(chained):
    model, optimizer, batch = chained("linear", reset=ALIGNED, knots=Never())
    for _ in range(2):
        loss_of(model, batch).backward()
        optimizer.sites["layers.0"].B.grad.zero_()
        optimizer.sites["layers.0"].A.grad.zero_()
        optimizer.step()
    _, other, _ = chained("linear", reset=ALIGNED, knots=Never())
    other.load_state_dict(optimizer.state_dict())
    assert other.tie_knot().fallbacks == {"layers.0": "zero gradient"}


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


def test_knot_and_export_in_the_middle_keep_the_function(chained):
    model, optimizer, batch = chained("llama", steps=1, reset=ALIGNED, knots=Never())
    base = output(model, batch)
    assert not any(optimizer.delta(name).any() for name in optimizer.sites)
    optimizer.tie_knot()
    torch.testing.assert_close(output(model, batch), base, rtol=0, atol=0)
    step(model, optimizer, batch)
    assert all(site.is_idle for site in optimizer.sites.values())


def test_rollback_begins_the_phase_anew(chained):
    original = {k: v.clone() for k, v in CASES["linear"].model().state_dict().items()}
    model, optimizer, batch = chained("linear", steps=5, reset=ALIGNED, knots=Every(4))
    optimizer.rollback(0, original=original)
    before = output(model, batch)
    step(model, optimizer, batch)
    step(model, optimizer, batch)
    torch.testing.assert_close(output(model, batch), before, rtol=0, atol=0)


def test_knots_as_close_as_the_probes_wait_until_there_is_a_link(chained):
    model, optimizer, batch = chained("linear", reset=ALIGNED, knots=Every(2))
    with pytest.warns(RefusedKnotWarning, match=r"`reset=GradientAligned\(steps=2\)`"):
        train(optimizer, model, batch, 8)
    assert optimizer.ledger.column("step") == [4, 8]
    assert all(norm > 0 for record in optimizer.ledger for norm in record.link_norms.values())


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


def test_probe_that_fails_is_made_again(chained, monkeypatch):
    model, optimizer, batch = chained("linear", reset=ALIGNED, knots=Never())
    twin_model, twin, _ = chained("linear", reset=ALIGNED, knots=Never())
    step(model, optimizer, batch)
    step(twin_model, twin, batch)
    with monkeypatch.context() as patch:
        patch.setattr("fwlora.linalg.top_directions", lambda Z: (_ for _ in ()).throw(MemoryError("no room")))
        with pytest.raises(MemoryError):
            step(model, optimizer, batch)
    for _ in range(2):
        step(model, optimizer, batch)
        step(twin_model, twin, batch)
    assert all(torch.equal(site.A, twin.sites[name].A) for name, site in optimizer.sites.items())
    assert all(site.B.any() for site in optimizer.sites.values())


def test_step_without_any_gradient_is_no_probe(chained):
    model, optimizer, batch = chained("llama", steps=1, reset=ALIGNED, knots=Never(), train_modules=["norm"])
    optimizer.zero_grad()
    optimizer.step()
    step(model, optimizer, batch)
    assert not optimizer.fallbacks
    step(model, optimizer, batch)
    assert all(site.B.any() for site in optimizer.sites.values())


def test_knot_that_is_due_before_the_link_has_trained_is_refused_and_recorded(chained):
    model, optimizer, batch = chained("linear", steps=4, reset=ALIGNED, knots=At([4, 5, 6, 8]))
    with pytest.warns(RefusedKnotWarning, match="nothing to retire"):
        train(optimizer, model, batch, 2)
    assert [record.refused is None for record in optimizer.ledger] == [True, False, False]
    train(optimizer, model, batch, 2)
    assert optimizer.ledger.column("step") == [4, 8]


def test_compact_within_the_phase_leaves_a_frozen_A_frozen(chained):
    model, optimizer, batch = chained("linear", steps=4, reset=ALIGNED, knots=At([4]), freeze_A=True, rank=StepDown([2, 1]))
    step(model, optimizer, batch)
    optimizer.compact()
    assert not any(site.A.requires_grad for site in optimizer.sites.values())
