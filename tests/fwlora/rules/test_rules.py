"""Rules are pure, frozen and compare by value; each says what it is said to say."""

from __future__ import annotations

import math
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import fwlora.rules
from fwlora import At, Constant, Decay, Evenly, Every, Flat, Gaussian, Kaiming, Never, Orthogonal, Progress, StepDown
from fwlora.errors import ArgumentError
from tests.tables import BLOCKS, KNOTS, LINK_LRS, MERGES, RANKS, RESETS, SETS, STEP_SIZES, TRIGGERS

RULES = [*KNOTS, *TRIGGERS, *RANKS, *LINK_LRS, *RESETS, *SETS, *STEP_SIZES, *MERGES, *BLOCKS]


def test_every_rule_has_a_row():
    """A rule class without a row in the tables would go untested."""
    abstract = {
        "Ball", "BlockRule", "CountedKnots", "KnotSchedule", "LinkLR", "MergeRule", "RankSchedule", "ResetRule", "StepSize",
        "Coefficients", "Progress", "Retiring",
    }  # fmt: skip
    classes = {name for name, value in vars(fwlora.rules).items() if isinstance(value, type)} - abstract
    assert classes == {type(rule).__name__ for rule in RULES}


@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_rule_is_frozen_and_round_trips(rule):
    assert pickle.loads(pickle.dumps(rule)) == rule
    assert hash(pickle.loads(pickle.dumps(rule))) == hash(rule)
    assert type(rule).__name__ in repr(rule)
    with pytest.raises(AttributeError):
        rule.anything = 1


@given(schedule=st.sampled_from(KNOTS), total=st.integers(1, 40))
def test_due_steps_are_the_next_knots_and_never_step_zero(schedule, total):
    """due(step) iff step = next_knot(step - 1); next_knot looks ahead and never back."""
    total = schedule.total_steps if isinstance(schedule, Evenly) and schedule.total_steps else total
    assert not schedule.due(Progress(step=0, total_steps=total))
    due = [step for step in range(1, total + 1) if schedule.due(Progress(step=step, total_steps=total))]
    walked, step = [], 0
    while (step := schedule.next_knot(step, total)) is not None and step <= total:
        walked.append(step)
    assert walked == due


@given(links=st.integers(1, 12), total=st.integers(1, 200))
def test_evenly_ties_after_ceil_k_t_over_n_and_never_at_the_end(links, total):
    due = [step for step in range(1, total + 1) if Evenly(links).due(Progress(step=step, total_steps=total))]
    assert due == sorted({math.ceil(k * total / links) for k in range(1, links)} - {total})
    if total >= links:
        lengths = [b - a for a, b in zip([0, *due], [*due, total], strict=True)]
        assert len(lengths) == links
        assert max(lengths) - min(lengths) <= 1


@given(warmup=st.integers(0, 8), length=st.integers(1, 40))
def test_decay_rises_then_falls_within_zero_and_one(warmup, length):
    factors = [Decay(warmup).factor(Progress(step=100 + j, link_step=j, link_end=100 + length)) for j in range(length)]
    assert all(0 < factor <= 1 for factor in factors)
    peak = factors.index(max(factors))
    assert factors[: peak + 1] == sorted(factors[: peak + 1])
    assert factors[peak:] == sorted(factors[peak:], reverse=True)
    assert max(factors) == 1.0


def test_decay_is_zero_beyond_the_end_of_the_run():
    assert Decay(warmup=1).factor(Progress(step=9, knot=3, link_step=0, total_steps=9, link_end=9)) == 0.0
    assert Decay(warmup=1).factor(Progress(step=12, knot=2, link_step=6, total_steps=9, link_end=9)) == 0.0


def test_decay_without_a_known_end_says_how_to_tell_it():
    with pytest.raises(ArgumentError, match=r"optimizer\.total_steps"):
        Decay().factor(Progress())


@given(
    widths=st.lists(st.integers(1, 16), min_size=1, max_size=6).map(lambda w: sorted(w, reverse=True)), knot=st.integers(0, 9)
)
def test_step_down_never_grows_and_its_last_rank_repeats(widths, knot):
    ranks = StepDown(widths)
    assert ranks.rank(knot + 1) <= ranks.rank(knot)
    assert ranks.rank(len(widths) + knot) == widths[-1]


@pytest.mark.parametrize("rule", RESETS, ids=repr)
@pytest.mark.parametrize("shape", [(2, 5), (4, 3, 3, 3), (7, 2)], ids=str)
def test_draw_has_the_shape_and_depends_on_the_generator_alone(rule, shape):
    draw = rule.draw(shape, torch.Generator().manual_seed(1))
    torch.manual_seed(7)
    assert draw.shape == shape
    assert torch.equal(draw, rule.draw(shape, torch.Generator().manual_seed(1)))
    assert not torch.equal(draw, rule.draw(shape, torch.Generator().manual_seed(2)))


def test_kaiming_is_pefts_own_start():
    """Same distribution as torch's kaiming_uniform_ with a = sqrt 5, which PEFT uses."""
    mine = Kaiming().draw((64, 400), torch.Generator().manual_seed(0))
    theirs = torch.empty(64, 400)
    torch.nn.init.kaiming_uniform_(theirs, a=math.sqrt(5), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Every(0), r"Every\(steps="),
        (lambda: Every(1.5), "1.5"),
        (lambda: Every(True), "True"),
        (lambda: Evenly(0), r"Evenly\(links="),
        (lambda: Evenly(2, total_steps=0), r"Evenly\(total_steps="),
        (lambda: At([3, -1]), r"At\(steps="),
        (lambda: Evenly(2).next_knot(0, None), "needs the length"),
        (lambda: Constant(0), r"Constant\(width="),
        (lambda: StepDown([]), "at least one"),
        (lambda: StepDown([2, 4]), "grows"),
        (lambda: Flat(warmup=-1), r"Flat\(warmup="),
        (lambda: Decay(warmup=0.5), r"Decay\(warmup="),
        (lambda: Gaussian(std=0.0), r"Gaussian\(std="),
        (lambda: Gaussian(std=float("nan")), "nan"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_argument_is_named_as_typed(make, message):
    with pytest.raises(ArgumentError, match=message):
        make()


def test_never_and_at_know_when_no_knot_will_follow():
    assert Never().next_knot(3, 10) is None
    assert At([5]).next_knot(5, 10) is None
    assert Orthogonal() == Orthogonal()
