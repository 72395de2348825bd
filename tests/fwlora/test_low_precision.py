"""How much of an update half-precision weights keep for good, and what a change of precision does to a chain."""

from __future__ import annotations

import copy
import math
import warnings

import pytest
import torch

from fwlora import Never
from fwlora.errors import LostUpdatesWarning, StateError, UnsupportedModelError
from fwlora.layers.rounding import RowMerge, lost, restore
from tests.conftest import assert_same, make_chain, train
from tests.tables import CASES, TOLERANCE, output

HALF = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)


def merged(dtype: torch.dtype, ratio: float, *, same: bool = False, merges: int = 30, weights=None):
    """`lost` asked at each merge of updates with ``|dW| = ratio |W|``, and the fraction kept of their sum."""
    shape, rank = (192, 192), 8
    generator = torch.Generator().manual_seed(0)
    W = (0.02 * torch.randn(shape, generator=generator) if weights is None else weights).to(dtype)
    residual = torch.zeros(W.shape, dtype=torch.int8) if dtype in {torch.bfloat16, torch.float16} else None
    start, asked = W.double(), torch.zeros(W.shape, dtype=torch.float64)
    answers = []
    for merge in range(merges):
        if merge == 0 or not same:
            B, A = torch.randn(W.shape[0], rank, generator=generator), torch.randn(rank, W.shape[1], generator=generator)
        scale = ratio * start.norm().item() / (B @ A).norm().item()
        row_merge = RowMerge(W, B, A, scale, residual)
        row_merge.run()
        size = scale * (B.double() @ A.double()).norm().item()
        gain = None if residual is None else row_merge.sums[0].sum().item() / size**2
        answers.append(lost(dtype, size / row_merge.sums[1].norm().item(), gain))
        asked += scale * (B.double() @ A.double())
    end = W.double() if residual is None else restore(W, residual).double()
    return answers, (torch.sum((end - start) * asked) / asked.square().sum()).item()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("same", [False, True], ids=["random directions", "one direction"])
@pytest.mark.parametrize(("units", "kept"), [(1000, 1.0), (30, 1.0), (1, 0.998), (0.5, 0.96), (0.1, 0.44), (0.003, 0.015)])
def test_lost_updates_are_told_where_less_than_99_percent_is_kept(dtype, same, units, kept):
    """At every merge of a run; and what the table says is kept."""
    unit = torch.finfo(dtype).eps / (1 if dtype is torch.float32 else 256)
    answers, fraction = merged(dtype, units * unit, same=same)
    assert fraction == pytest.approx(kept, abs=0.02)
    assert {answer is None for answer in answers} == {fraction >= 0.99}


@HALF
def test_small_gain_of_a_small_update_is_no_loss(dtype):
    """At first the weight does not move at all: it is all in the residual, and comes out later."""
    ratio = torch.finfo(dtype).eps / 80
    (answer,), _ = merged(dtype, ratio, merges=1)
    answers, kept = merged(dtype, ratio)
    assert (answer, set(answers)) == (None, {None})
    assert kept >= 0.99


def test_float16_weights_at_their_largest_number_are_told():
    """They stay there, and take updates in one direction only."""
    weights = torch.full((192, 192), 65504.0)
    answers, kept = merged(torch.float16, 0.01, weights=weights, merges=3)
    assert kept < 0.99
    assert all("largest number of torch.float16, and" in answer for answer in answers)
    assert merged(torch.bfloat16, 0.02, weights=weights, merges=3)[0] == [None] * 3


def test_idle_link_loses_nothing():
    assert lost(torch.bfloat16, 0.0, None) is None


@HALF
@pytest.mark.parametrize(("lr", "is_lost"), [(2e-2, False), (1e-8, True)])
def test_record_of_a_run_tells(chained, dtype, lr, is_lost):
    """And the optimizer says it, once for all sites and knots."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        _, optimizer, _ = chained("llama", steps=7, dtype=dtype, lr=lr)
    assert [w.category for w in caught if w.category is LostUpdatesWarning] == [LostUpdatesWarning] * is_lost
    record = optimizer.ledger[-1]
    answers = {lost(dtype, record.relative_updates[name], record.gains[name]) is not None for name in optimizer.sites}
    assert answers == {is_lost}


CASTS = [(torch.bfloat16, torch.float32), (torch.bfloat16, torch.float16), (torch.float32, torch.bfloat16)]
ENDS = {
    "tie_knot": lambda optimizer: optimizer.tie_knot(),
    "state_dict": lambda optimizer: optimizer.state_dict(),
    "rollback": lambda optimizer: optimizer.rollback(0, original={}),
}


@pytest.mark.parametrize(("before", "after"), CASTS, ids=str)
@pytest.mark.parametrize("way", ENDS)
def test_cast_after_a_knot_is_refused(chained, before, after, way):
    """Rounding errors are in units of the former, and nobody could replay what was merged since."""
    model, optimizer, batch = chained(steps=4, dtype=before)
    model.to(after)
    now = output(model, batch)
    with pytest.raises(UnsupportedModelError, match=rf"'layers\.0\.weight' was cast from {before} to {after} after"):
        ENDS[way](optimizer)
    assert torch.equal(output(model, batch), now)


@HALF
def test_cast_back_goes_on_exactly(chained, dtype):
    """A float32 holds every half-precision number."""
    model, optimizer, batch = chained(steps=4, dtype=dtype)
    expected = copy.deepcopy((model, optimizer))
    model.float()
    model.layers[0].base_layer.to(dtype), model.layers[2].base_layer.to(dtype)
    assert train(optimizer, model, batch, 5) == train(expected[1], expected[0], batch, 5)
    assert_same(model, optimizer, *expected)


@pytest.mark.parametrize(("before", "after"), CASTS, ids=str)
def test_cast_before_the_first_knot_is_served(before, after):
    """Knots leave the function alone, and a state resumes on a base in the new precision."""
    case = CASES["linear"]
    model = case.model(before)
    optimizer = make_chain(case, model, knots=Never())
    model.to(after)
    train(optimizer, model, case.batch(), 3)
    expected = output(model, case.batch()).double()
    optimizer.tie_knot()
    assert (output(model, case.batch()).double() - expected).norm() <= TOLERANCE[after] * expected.norm()
    fresh = case.model(before).to(after)
    other = make_chain(case, fresh, knots=Never())
    if after is not torch.float32:  # injection keeps factors in float32, a cast does not
        for parameter in other.parameters():
            parameter.data = parameter.data.to(after)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert torch.equal(output(fresh, case.batch()), output(model, case.batch()))


@pytest.mark.parametrize(("before", "after"), CASTS, ids=str)
def test_state_of_another_precision_is_refused(chained, before, after):
    _, optimizer, _ = chained(steps=4, dtype=before)
    model, other, batch = chained(dtype=after)
    now = output(model, batch)
    with pytest.raises(StateError, match="neither the original ones of this chain nor those merged"):
        other.load_state_dict(optimizer.state_dict())
    assert torch.equal(output(model, batch), now)


@HALF
def test_loading_a_state_notes_the_precision(chained, dtype):
    """A chain that was resumed knows what its weights are stored as, though it has merged nothing itself."""
    model, optimizer, _ = chained(steps=4, dtype=dtype)
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    other_model, other, _ = chained(dtype=dtype)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    other_model.float()
    with pytest.raises(UnsupportedModelError, match="was cast from"):
        other.tie_knot()
    assert math.isfinite(train(optimizer, model, CASES["linear"].batch(), 1)[0])
