"""One block of layers a link: it alone learns, the others are plain frozen layers, and the sum is a chain like any other."""

from __future__ import annotations

import gc
import math
import re

import pytest
import torch
from peft import LoraConfig, get_peft_model, inject_adapter_in_model
from torch import nn

from fwlora import AllSites, Blocks, Every, GradientAligned, Kaiming, Never, NuclearBall, StepDown
from fwlora.layers.attach import detach, lora_layers
from fwlora.layers.sites import generator_for
from fwlora.rules import KnotSchedule
from tests.conftest import make_chain, step, train
from tests.tables import CASES, loss_of, output

KINDS = ["linear", "conv2d", "embedding", "llama", "opt", "gpt2"]


def active_names(optimizer, knot: int | None = None) -> list[str]:
    return optimizer.blocks.active(len(optimizer.chain) if knot is None else knot, list(optimizer.sites))


def facts_of(optimizer, names) -> dict[str, torch.Tensor]:
    """Weights, factors and moments of some sites."""
    found = {}
    for name in names:
        site = optimizer.sites[name]
        for key, p in {**site.targets(), **{f"{name} {i}": p for i, p in enumerate(site.parameters())}}.items():
            found[key] = p.detach().clone()
            found |= {f"{key} {moment}": value.clone() for moment, value in optimizer.state.get(p, {}).items()}
    return found


def assert_equal(one, other) -> None:
    assert one.keys() == other.keys()
    assert all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.mark.parametrize("fast", [True, False], ids=["fast", "PEFT's forward"])
@pytest.mark.parametrize("kind", KINDS)
def test_link_moves_its_block_and_nothing_else(chained, kind, fast):
    """Factors, moments and weights of the others stand still, under weight decay too; n links move every site."""
    model, optimizer, batch = chained(kind, blocks=Blocks(2), fast_layers=fast, weight_decay=0.1)
    started = {name: site.weight.detach().clone() for name, site in optimizer.sites.items()}
    for _ in range(2):
        names = active_names(optimizer)
        resting = [name for name in optimizer.sites if name not in names]
        assert resting == [name for name, site in optimizer.sites.items() if site.rests]
        before = facts_of(optimizer, resting)
        for _ in range(2):
            train(optimizer, model, batch, 1)
            assert_equal(facts_of(optimizer, resting), before)
            assert all(optimizer.sites[name].zeroed.any() for name in names)
        train(optimizer, model, batch, 1)
        assert list(optimizer.chain[-1].factors) == names
        assert all(list(values) == names for values in (optimizer.ledger[-1].ranks, optimizer.ledger[-1].link_norms))
    assert not any(torch.equal(site.weight, started[name]) for name, site in optimizer.sites.items())


@pytest.mark.parametrize("kind", KINDS)
def test_knot_leaves_forward_unchanged_and_the_chain_sums_to_the_weight_change(chained, kind):
    model, optimizer, batch = chained(kind, steps=5, blocks=Blocks(2), dtype=torch.float64)
    started = CASES[kind].model(torch.float64)
    before = output(model, batch)
    optimizer.tie_knot()
    torch.testing.assert_close(output(model, batch), before, rtol=1e-10, atol=1e-12)
    for name, site in optimizer.sites.items():
        change = site.weight.detach() - started.get_parameter(f"{name}.weight")
        torch.testing.assert_close(optimizer.delta(name), change, rtol=0, atol=1e-12)


def chain_by_hand(kind: str, sites: list[str], n: int, links: int, steps: int, batch) -> nn.Module:
    """Inject LoRA into one block, train it with AdamW, merge it, take it out; then the next block."""
    model = CASES[kind].model(torch.float64)
    for link in range(links):
        block = Blocks(n).active(link, sites)
        pattern = "|".join(map(re.escape, block))
        config = LoraConfig(r=2, lora_alpha=4, target_modules=pattern, fan_in_fan_out=kind == "gpt2")
        layers = lora_layers(inject_adapter_in_model(config, model))
        assert list(layers) == block
        for name, layer in layers.items():
            A = layer.lora_A["default"].weight
            A.data.copy_(Kaiming().draw(tuple(A.shape), generator_for(0, link, name)))
        inner = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.02, weight_decay=0.1)
        for k in range(steps):
            inner.zero_grad()
            loss_of(model, _shifted(batch, link * steps + k)).backward()
            inner.step()
        for layer in layers.values():
            layer.merge()
        detach(model)
    return model


def _shifted(batch, count: int):
    return {k: v * (1 + 0.1 * count) if v.is_floating_point() else v.roll(count, 1) for k, v in batch.items()}


@pytest.mark.parametrize("fast", [True, False], ids=["fast", "PEFT's forward"])
@pytest.mark.parametrize("kind", ["linear", "llama", "gpt2"])
def test_chain_is_lora_injected_into_one_block_after_the_other(chained, kind, fast):
    """Two blocks, five links of three steps: the weights of PEFT's own layers that are there in their link only."""
    _, optimizer, batch = chained(
        kind, steps=15, blocks=Blocks(2), dtype=torch.float64, fast_layers=fast, weight_decay=0.1, alpha=4
    )
    twin = chain_by_hand(kind, list(optimizer.sites), 2, 5, 3, batch)
    for name, site in optimizer.sites.items():
        torch.testing.assert_close(site.weight, twin.get_parameter(f"{name}.weight"), rtol=1e-9, atol=1e-11)


def test_one_block_is_all_sites_bit_for_bit(chained):
    model, _, _ = chained("llama", steps=7, blocks=Blocks(1))
    other, _, _ = chained("llama", steps=7, blocks=AllSites())
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), other.parameters(), strict=True))


def test_backward_does_not_reach_below_the_block(chained):
    """The block's input has no graph; blocks above it are passed through and keep nothing for factors."""
    model, optimizer, batch = chained("llama", blocks=Blocks(2), knots=Never())
    seen = []
    for layer in model.model.layers:
        layer.register_forward_pre_hook(lambda module, args: seen.append(args[0].requires_grad))
    loss_of(model, batch).backward()
    above = [p for name, p in model.named_parameters() if "layers.1." in name and "lora" in name]
    assert seen == [False, True]
    assert all(p.requires_grad for p in above)
    assert all(p.grad is None for p in above)

    seen.clear()
    optimizer.tie_knot()
    loss_of(model, batch).backward()
    below = [p for name, p in model.named_parameters() if "layers.0." in name and "lora" in name]
    assert seen == [False, False]
    assert all(p.grad is None for p in below)


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_norm_that_is_clipped_is_the_blocks(chained, kind):
    """Where PEFT's own forward runs at a resting site no gradient is left by the backward pass either."""
    model, optimizer, batch = chained(kind, blocks=Blocks(2), fast_layers=False, steps=1)
    optimizer.zero_grad()
    loss_of(model, batch).backward()
    with_gradient = {id(p) for p in optimizer.parameters() if p.grad is not None}
    assert with_gradient == {id(p) for name in active_names(optimizer) for p in optimizer.sites[name].parameters()}


def test_model_of_a_chain_that_is_thrown_away_is_awake():
    """Whoever trains its adapters on by other means trains all of them."""
    model = get_peft_model(CASES["llama"].model(), LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
    optimizer = make_chain(CASES["llama"], model, blocks=Blocks(2), rank=None, target_modules=None)
    step(model, optimizer, CASES["llama"].batch())
    del optimizer
    gc.collect()
    loss_of(model, CASES["llama"].batch()).backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def saved_bytes(model, batch) -> int:
    """Of all tensors that a forward pass keeps for the backward, parameters left out."""
    kept: dict[int, int] = {}
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = loss_of(model, batch)
    assert loss.requires_grad
    return sum(kept.values())


def test_block_on_top_keeps_less_than_the_block_below_it_and_less_than_all(chained):
    whole = saved_bytes(*chained("llama")[::2])
    model, optimizer, batch = chained("llama", blocks=Blocks(2))
    low = saved_bytes(model, batch)
    optimizer.tie_knot()
    assert saved_bytes(model, batch) < low <= whole


def test_moments_are_held_for_the_block_alone(chained):
    model, optimizer, batch = chained("llama", steps=4, blocks=Blocks(2))
    held = {id(p) for p in optimizer.state}
    assert held == {id(p) for name in active_names(optimizer) for p in optimizer.sites[name].parameters()}
    train(optimizer, model, batch, 3)
    assert not held & {id(p) for p in optimizer.state}


def test_rank_schedule_reaches_every_site(chained):
    model, optimizer, batch = chained("llama", blocks=Blocks(2), rank=StepDown([4, 2, 1]))
    for rank in (4, 2, 1, 1):
        assert {site.rank for site in optimizer.sites.values()} == {rank}
        train(optimizer, model, batch, 3)
        assert set(optimizer.ledger[-1].ranks.values()) == {rank}
    optimizer.compact()
    assert {site.width for site in optimizer.sites.values()} == {1}


@pytest.mark.parametrize("freeze_A", [False, True])
@pytest.mark.parametrize("fast", [True, False], ids=["fast", "PEFT's forward"])
def test_only_the_block_is_aligned(chained, fast, freeze_A):
    """Resting sites have no gradient to align with, which is no fallback."""
    model, optimizer, batch = chained(
        "llama", blocks=Blocks(2), reset=GradientAligned(), knots=Every(4), fast_layers=fast, freeze_A=freeze_A
    )
    for _ in range(3):
        names = active_names(optimizer)
        drawn = {name: site.drawn.detach().clone() for name, site in optimizer.sites.items()}
        train(optimizer, model, batch, 2)
        assert [name for name, site in optimizer.sites.items() if not torch.equal(site.drawn, drawn[name])] == names
        assert all(site.is_idle for site in optimizer.sites.values())
        train(optimizer, model, batch, 2)
        assert not optimizer.ledger[-1].fallbacks
    assert not any(site.drawn.requires_grad == freeze_A for site in optimizer.sites.values())


def test_compiled_model_has_one_graph_a_block(chained):
    """Each block is compiled in its first link and found again n links later; the losses are the uncompiled model's."""
    model, optimizer, batch = chained("llama", blocks=Blocks(2), lr=1e-3)
    twin_model, twin, _ = chained("llama", blocks=Blocks(2), lr=1e-3)
    torch._dynamo.reset()
    counters = torch._dynamo.utils.counters
    counters.clear()
    compiled = torch.compile(model, backend="aot_eager")
    losses = train(optimizer, compiled, batch, 13)
    assert counters["stats"]["unique_graphs"] == 2
    assert not counters["graph_break"]
    assert losses == pytest.approx(train(twin, twin_model, batch, 13), rel=1e-5)


def test_modules_trained_in_full_always_train(chained):
    model, optimizer, batch = chained("llama", blocks=Blocks(2), train_modules=["norm"])
    for _ in range(6):
        before = model.model.norm.weight.detach().clone()
        train(optimizer, model, batch, 1)
        assert not torch.equal(model.model.norm.weight, before)


class Falling(KnotSchedule):
    """Reads the descent and never ties."""

    reads = frozenset({"descent"})

    def due(self, progress):
        return False


def test_descent_is_the_blocks(chained):
    """An infinite gradient where PEFT's forward runs at a resting site is nobody's business."""
    model, optimizer, batch = chained("linear", steps=1, blocks=Blocks(2), knots=Falling(), fast_layers=False)
    optimizer.zero_grad()
    loss_of(model, batch).backward()
    active, resting = optimizer.sites.values()
    expected = -torch.sum(active.B.grad * active.B.detach()).item()
    resting.B.grad = torch.full_like(resting.B, float("inf"))
    optimizer.step()
    assert optimizer.progress.descent == pytest.approx(expected)
    assert math.isfinite(expected)
    assert expected != 0


def test_gap_is_measured_at_resting_sites_too(chained):
    """The weights without the live link know nothing of blocks."""
    reports = []
    for blocks in (AllSites(), Blocks(2)):
        model, optimizer, batch = chained("llama", blocks=blocks, knots=Never())
        batches = [_shifted(batch, k) for k in range(4)]
        reports.append(optimizer.measure_gap(batches, lambda b, model=model: loss_of(model, b), NuclearBall(1.0)))
        assert [site.rests for site in optimizer.sites.values()].count(True) == (2 if blocks == Blocks(2) else 0)
    one, other = (report.document() for report in reports)
    assert one == other
