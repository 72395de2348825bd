"""Triggers tie when the link's own history says that it is done: by hand, and in a training loop."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fwlora import ChainLoRAOptimizer, Decay, Flat, GapBelow, GradientAligned, Plateau, Progress
from fwlora.errors import ArgumentError
from tests.tables import TRIGGERS

FLAT = [1.0] * 100


def due(rule, history, *, probes=0, total=None, start=0):
    """The steps of a link at which `rule` would tie, the history growing by one record a step after the probe steps."""
    (quantity,) = rule.reads
    return [
        n
        for n in range(len(history) + probes + 1)
        if rule.due(
            Progress(step=start + n, link_step=n, total_steps=total, history={quantity: tuple(history[: max(0, n - probes)])})
        )
    ]


def naive_gap_below(rule, history):
    """The docstring's formula, window by window."""
    m = [sum(history[k : k + rule.window]) / rule.window for k in range(0, len(history) - rule.window + 1, rule.window)]
    low = [abs(m[i]) <= rule.fraction * max(abs(m[j]) for j in range(i + 1)) for i in range(len(m))]
    return len(m) >= rule.patience and all(low[-rule.patience :]) and any(m)


def naive_plateau(rule, history):
    """The docstring's formula, window by window."""
    m = [sum(history[k : k + rule.window]) / rule.window for k in range(0, len(history) - rule.window + 1, rule.window)]
    if len(m) <= rule.patience:
        return False
    b = min(m[: -rule.patience])
    return not any(mean < b - rule.threshold * abs(b) for mean in m[-rule.patience :])


VALUES = st.lists(st.integers(-8, 8).map(float), max_size=24)
COUNTS = {"window": st.integers(1, 4), "patience": st.integers(1, 3), "min_steps": st.integers(1, 6)}


@given(history=VALUES, rule=st.builds(GapBelow, fraction=st.sampled_from([0.25, 0.5]), **COUNTS))
def test_gap_below_is_its_formula_where_a_window_fills(history, rule):
    expected = [
        n
        for n in range(rule.min_steps, len(history) + 1)
        if n % rule.window == 0 and naive_gap_below(rule, history[:n])
    ]  # fmt: skip
    assert due(rule, history) == expected


@given(history=VALUES, rule=st.builds(Plateau, threshold=st.sampled_from([0.0, 0.25]), **COUNTS))
def test_plateau_is_its_formula_where_a_window_fills(history, rule):
    expected = [
        n
        for n in range(rule.min_steps, len(history) + 1)
        if n % rule.window == 0 and naive_plateau(rule, history[:n])
    ]  # fmt: skip
    assert due(rule, history) == expected


@given(history=VALUES, scale=st.sampled_from([0.5, 4.0, -1.0, -2.0]))
def test_gap_below_does_not_depend_on_the_losss_unit_or_sign(history, scale):
    rule = GapBelow(window=2, patience=2, min_steps=3)
    assert due(rule, history) == due(rule, [scale * value for value in history])


@given(history=VALUES, scale=st.sampled_from([0.5, 4.0]))
def test_plateau_does_not_depend_on_the_losss_unit(history, scale):
    rule = Plateau(threshold=0.25, window=2, patience=1, min_steps=3)
    assert due(rule, history) == due(rule, [scale * value for value in history])


def test_gap_below_waits_while_the_link_grows_and_ties_once_it_is_spent():
    rising, spent = [0.0, 1.0, 2.0, 3.0, 4.0, 4.0], [2.0, 1.5, 0.8, 0.4, -0.2, 0.1]
    rule = GapBelow(fraction=0.25, window=2, patience=2, min_steps=1)
    assert due(rule, rising + spent) == [12]  # 0.6 and -0.05 against a largest mean of 4
    assert due(rule, rising + spent[:4]) == []


def test_an_overshot_link_is_not_done():
    """A descent far below zero says that the loss would fall if the link shrank."""
    assert due(GapBelow(window=2, patience=1, min_steps=1), [1.0, 3.0, -4.0, -4.0]) == []


def test_a_link_that_never_grew_is_left_alone():
    assert due(GapBelow(window=2, patience=1, min_steps=1), [0.0] * 12) == []


@pytest.mark.parametrize(
    ("losses", "ties"),
    [
        ([2.0, 1.5, 1.0, 0.5, 0.25], []),
        ([-1.0, -2.0, -3.0, -4.0, -5.0], []),
        ([2.0, 1.0, 0.995, 0.992], [4]),
        ([-1.0, -2.0, -2.01, -2.01], [4]),
        ([-1.0, -2.0, -1.0, -1.0], [4]),
        ([1.0, 0.0, 0.0, 0.0], [4]),
        ([1.0, 0.0, -0.001, -0.002], []),
        ([1.0, 2.0, 0.9, 2.0], []),
    ],
    ids=[
        "falling",
        "falling below zero",
        "flat",
        "flat below zero",
        "rising below zero",
        "at zero",
        "below zero",
        "one better",
    ],
)
def test_plateau_holds_for_losses_of_any_sign(losses, ties):
    assert due(Plateau(threshold=0.01, window=1, patience=2, min_steps=4), losses) == ties


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("rule", [Plateau(window=2, patience=1, min_steps=1), GapBelow(window=2, patience=1, min_steps=1)])
def test_what_is_not_finite_neither_raises_nor_ties(rule, bad):
    """The window itself says nothing; a mean of nan compares with nothing."""
    assert 4 not in due(rule, [1.0, 1.0, bad, -bad])


@pytest.mark.parametrize("rule", [Plateau(window=4, min_steps=10), GapBelow(window=4, min_steps=10)])
def test_no_link_is_shorter_than_min_steps_on_either_side_of_a_knot(rule):
    history = FLAT if isinstance(rule, Plateau) else [100.0, 100.0, 100.0, 100.0, *FLAT]
    assert min(due(rule, history[:40])) == 12
    assert due(rule, history[:40], total=40) == [12, 16, 20, 24, 28]
    assert due(rule, history[:40], total=140, start=100) == [12, 16, 20, 24, 28]
    assert due(rule, history[:19], total=19) == []


def test_a_long_link_is_ended_in_any_case_but_not_too_late_for_the_next():
    rule = GapBelow(min_steps=10, max_steps=15)
    assert due(rule, FLAT[:40]) == [15, 30]
    assert due(rule, FLAT[:40], total=25) == [15]
    assert due(rule, FLAT[:40], total=24) == []


def test_windows_are_counted_in_records_and_lengths_in_steps():
    """Probe steps of a reset are steps of the link and leave no record."""
    rule = Plateau(window=4, patience=1, min_steps=10)
    assert due(rule, FLAT[:16], probes=2) == [10, 14, 18]
    assert due(rule, FLAT[:16], probes=3) == [11, 15, 19]


@pytest.mark.parametrize("rule", TRIGGERS, ids=repr)
def test_trigger_that_was_told_nothing_does_not_tie(rule):
    assert not rule.due(Progress(step=500, link_step=500))
    assert not rule.due(Progress())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GapBelow(0.0), r"GapBelow\(fraction=\.\.\.\)` takes a number between 0 and 1 and got 0\.0"),
        (lambda: GapBelow(1), r"GapBelow\(fraction="),
        (lambda: GapBelow(math.nan), "nan"),
        (lambda: GapBelow("0.5"), "'0.5'"),
        (lambda: Plateau(-0.1), r"Plateau\(threshold="),
        (lambda: Plateau(1.0), r"Plateau\(threshold="),
        (lambda: Plateau(True), "True"),
        (lambda: Plateau(window=0), r"Plateau\(window=\.\.\.\)` takes a whole number of at least 1 and got 0"),
        (lambda: GapBelow(patience=1.5), r"GapBelow\(patience=.* 1\.5"),
        (lambda: GapBelow(min_steps=0), r"GapBelow\(min_steps="),
        (lambda: GapBelow(max_steps=299), r"GapBelow\(max_steps=.*min_steps=300` and got 299"),
        (lambda: Plateau(max_steps=400.0), r"Plateau\(max_steps="),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_argument_is_named_as_typed(make, message):
    with pytest.raises(ArgumentError, match=message):
        make()


def least_squares():
    """A 6 x 6 matrix and its rank-2 update, noiseless and in float64, which one link of rank 1 cannot hold."""
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 6, bias=False)).double()
    nn.init.normal_(model[0].weight, generator=generator)
    x, left, right = (torch.randn(shape, generator=generator).double() for shape in ((12, 6), (6, 2), (2, 6)))
    target = model(x).detach() + x @ (left @ right).T
    return model, lambda: (model(x) - target).square().mean()


def chain(model, knots, **options):
    return ChainLoRAOptimizer(model, 0.02, rank=1, knots=knots, link_lr=Flat(warmup=0), **options)


def train(optimizer, loss_of, steps):
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = loss_of()
        loss.backward()
        optimizer.observe(loss)
        optimizer.step()
        losses.append(loss.item())
    return losses


LOOP = [Plateau(window=5, min_steps=20), GapBelow(window=5, min_steps=20)]


@pytest.mark.parametrize("rule", LOOP, ids=["Plateau", "GapBelow"])
def test_spent_link_is_tied_and_the_next_one_goes_below_it(rule):
    model, loss_of = least_squares()
    optimizer = chain(model, rule)
    losses = train(optimizer, loss_of, 600)
    first, *_ = (record.step for record in optimizer.ledger)
    assert losses[first - 10] - losses[first] < 0.1 * (losses[0] - losses[first])
    assert losses[-1] < 1e-3 * losses[first]


@pytest.mark.parametrize("rule", LOOP, ids=["Plateau", "GapBelow"])
def test_run_of_known_length_that_is_too_short_for_a_knot_is_lora(rule):
    """`optimizer.total_steps` reaches the rule; the same steps without it, or in a longer run, tie."""

    def knots(total):
        model, loss_of = least_squares()
        optimizer = chain(model, rule)
        if total is not None:
            optimizer.total_steps = total
        train(optimizer, loss_of, 150)
        return [record.step for record in optimizer.ledger]

    first = knots(None)[0]
    assert knots(first + 19) == []
    assert knots(first + 20) == [first]


@pytest.mark.parametrize("rule", LOOP, ids=["Plateau", "GapBelow"])
@pytest.mark.parametrize("cut", [3, 5, -1, 0], ids=lambda cut: f"cut={cut}")
def test_resumed_run_ties_at_the_same_steps(rule, cut):
    """Cut within a window, at its end, and around the first knot (cuts of 0 and -1 are relative to it)."""
    model, loss_of = least_squares()
    whole = chain(model, rule)
    losses = train(whole, loss_of, 120)
    steps = [record.step for record in whole.ledger]
    at = steps[0] + cut if cut <= 0 else cut
    model, loss_of = least_squares()
    before = chain(model, rule)
    head = train(before, loss_of, at)
    saved = copy.deepcopy(before.state_dict())
    model, loss_of = least_squares()
    after = chain(model, rule)
    after.load_state_dict(saved)
    assert head + train(after, loss_of, 120 - at) == losses
    assert [record.step for record in after.ledger] == steps
    assert after.progress == whole.progress


@pytest.mark.parametrize("rule", TRIGGERS, ids=repr)
def test_rate_that_decays_within_a_link_is_refused(rule):
    with pytest.raises(ArgumentError, match="decides by data"):
        ChainLoRAOptimizer(least_squares()[0], rank=1, knots=rule, link_lr=Decay())


def test_plateau_asks_for_the_loss():
    model, loss_of = least_squares()
    optimizer = chain(model, Plateau())
    loss_of().backward()
    with pytest.raises(ArgumentError, match=r"optimizer\.observe\(loss\)"):
        optimizer.step()


def test_probe_steps_count_towards_a_links_length_and_leave_no_record():
    model, loss_of = least_squares()
    optimizer = chain(model, GapBelow(window=5, min_steps=20), reset=GradientAligned(steps=2))
    train(optimizer, loss_of, 12)
    assert optimizer.progress.link_step == 12
    assert len(optimizer.progress.history["descent"]) == 10
    train(optimizer, loss_of, 150)
    # A window fills 5 n + 2 steps after the link began.
    lengths = [record.link_steps for record in optimizer.ledger]
    assert lengths
    assert all(length % 5 == 2 and length >= 20 for length in lengths)
