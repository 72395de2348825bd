"""Bases that bitsandbytes has quantised: links stay beside a weight that never changes, and the chain promises all it does."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch

from fwlora import Blocks, FrankWolfe, GradientAligned, Never, NuclearBall, OpenLoop, StepDown
from fwlora.errors import StateError
from tests.conftest import assert_same, make_chain, train
from tests.quantising import base_bytes, dequantised, stood_for
from tests.tables import QUANTISED, output

EVERY_KIND = pytest.mark.parametrize("kind", QUANTISED)
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "ranks step down": {"rank": StepDown([3, 2, 1])},
    "A frozen": {"freeze_A": True},
    "Frank-Wolfe": {"merge": FrankWolfe(NuclearBall(2.0), OpenLoop())},
    "aligned": {"reset": GradientAligned()},
    "blocks": {"blocks": Blocks(2)},
}
STEPS = 10  # three knots and a step


def relative(value: torch.Tensor, expected: torch.Tensor) -> float:
    return ((value - expected).norm() / expected.norm()).item()


@EVERY_KIND
def test_packed_weight_never_changes_by_a_bit(chained, kind, tmp_path):
    """Nor do its statistics, whatever a chain does."""
    model, optimizer, batch = chained(kind)
    before = base_bytes(model)
    train(optimizer, model, batch, STEPS)
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    optimizer.export_adapter(tmp_path)
    optimizer.compress(max_rank=3)
    train(optimizer, model, batch, 3)
    optimizer.rollback(2)
    after = base_bytes(model)
    assert after.keys() == before.keys(), "and the names stay"
    assert all(torch.equal(after[name], value) for name, value in before.items())


@EVERY_KIND
def test_knot_leaves_the_function_unchanged(chained, kind):
    model, optimizer, batch = chained(kind, steps=5, knots=Never())
    for _ in range(3):
        train(optimizer, model, batch, 2)
        before = output(model, batch).detach()
        optimizer.tie_knot()
        assert relative(output(model, batch), before) < 1e-6
        assert all(site.is_idle for site in optimizer.sites.values())


@EVERY_KIND
@pytest.mark.parametrize("variant", VARIANTS)
def test_training_goes_on_as_if_links_were_merged_into_the_dequantised_weight(kind, variant):
    """Losses, links and ledger of a float chain on what the packed weights stand for, to rounding."""
    case = QUANTISED[kind]
    model = case.model()
    twin = stood_for(model)
    optimizer, expected = (make_chain(case, m, **VARIANTS[variant]) for m in (model, twin))
    losses = [train(o, m, case.batch(), STEPS) for o, m in ((optimizer, model), (expected, twin))]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert losses[0][-1] < losses[0][0]
    for name in optimizer.sites:
        assert relative(optimizer.delta(name), expected.delta(name)) < 1e-3
    assert relative(output(model, case.batch()), output(twin, case.batch())) < 1e-3
    assert optimizer.ledger.column("ranks") == expected.ledger.column("ranks")


@EVERY_KIND
def test_ledger_has_updates_relative_to_the_dequantised_weight_and_no_gains(chained, kind):
    model, optimizer, _ = chained(kind, steps=3)
    record = optimizer.ledger[-1]
    for name in optimizer.sites:
        weight = dequantised(model.get_submodule(name).base_layer)
        assert record.relative_updates[name] == pytest.approx(record.link_norms[name] / weight.norm().item(), rel=1e-6)
        assert record.gains[name] is None


@EVERY_KIND
@pytest.mark.parametrize("variant", ["plain", "ranks step down", "Frank-Wolfe"])
@pytest.mark.parametrize("onto", ["a fresh base", "the live one"])
def test_resume_is_exact(chained, kind, variant, onto):
    """Bit for bit, and loading twice changes nothing."""
    model, optimizer, batch = chained(kind, steps=STEPS, **VARIANTS[variant])
    state = pickle.loads(pickle.dumps(optimizer.state_dict()))
    expected = copy.deepcopy((model, optimizer))
    if onto == "a fresh base":
        model, optimizer, _ = chained(kind, **VARIANTS[variant])
    else:
        train(optimizer, model, batch, 4)
    for _ in range(2):
        optimizer.load_state_dict(copy.deepcopy(state))
        assert torch.equal(output(model, batch), output(expected[0], batch))
    losses = train(optimizer, model, batch, 5)
    assert losses == train(expected[1], expected[0], batch, 5)
    assert_same(model, optimizer, *expected)


@EVERY_KIND
def test_state_of_another_base_is_refused_and_nothing_changed(chained, kind):
    """A scale that differs in one row or block is another base, though every code agrees."""
    _, optimizer, _ = chained(kind, steps=4)
    model, other, batch = chained(kind, steps=1)
    statistics = model.state_dict()[f"layers.0.base_layer.{'SCB' if kind == 'int8' else 'weight.absmax'}"]
    statistics[0] += 1
    before = output(model, batch)
    with pytest.raises(StateError, match="another quantised weight"):
        other.load_state_dict(optimizer.state_dict())
    assert torch.equal(output(model, batch), before)
    assert other.progress.step == 1


@EVERY_KIND
def test_state_of_a_float_base_is_refused(kind):
    case = QUANTISED[kind]
    model = case.model()
    twin = stood_for(model)
    optimizer, other = make_chain(case, model), make_chain(case, twin)
    train(other, twin, case.batch(), 4)
    with pytest.raises(StateError, match="another quantised weight"):
        optimizer.load_state_dict(other.state_dict())


@EVERY_KIND
def test_rollback_needs_no_originals_and_is_exact(chained, kind):
    """After it the chain is the one that stopped at that knot; back to 0 the base stands alone."""
    model, optimizer, batch = chained(kind, steps=7)
    expected_model, expected, _ = chained(kind, steps=3)
    pristine = output(QUANTISED[kind].model(), batch)
    optimizer.rollback(1)
    assert torch.equal(output(model, batch), output(expected_model, batch))
    assert train(optimizer, model, batch, 4) == train(expected, expected_model, batch, 4)
    optimizer.rollback(0)
    assert torch.equal(output(model, batch), pristine)


@EVERY_KIND
def test_copies_keep_their_own_links(chained, kind):
    """A deep copy and a pickle compute the same bits and go on alike; the original does not move with them."""
    model, optimizer, batch = chained(kind, steps=4)
    before = output(model, batch)
    copies = [copy.deepcopy((model, optimizer)), pickle.loads(pickle.dumps((model, optimizer)))]
    losses = []
    for other_model, other in copies:
        assert torch.equal(output(other_model, batch), before)
        losses.append(train(other, other_model, batch, 5))
        assert len(other.chain) == 3
    assert torch.equal(output(model, batch), before)
    assert losses[0] == losses[1] == train(optimizer, model, batch, 5)


@EVERY_KIND
def test_links_can_lie_in_files(chained, kind, tmp_path):
    model, optimizer, batch = chained(kind, steps=7, chain_dir=tmp_path)
    other_model, other, _ = chained(kind, chain_dir=tmp_path)
    other.load_state_dict(optimizer.state_dict())
    assert torch.equal(output(other_model, batch), output(model, batch))
    in_memory, expected, _ = chained(kind, steps=7)
    assert torch.equal(output(model, batch), output(in_memory, batch))
    assert all(torch.equal(optimizer.delta(name), expected.delta(name)) for name in optimizer.sites)
