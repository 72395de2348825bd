"""Paired comparisons say what the numbers say."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from experiments.pages.wording import versus
from experiments.statistics import Interval, bootstrap, compare, interval, wilcoxon
from experiments.tasks.metric import ACCURACY

VALUES = st.lists(st.floats(-100, 100), min_size=3, max_size=12)


def test_interval_is_the_students_one():
    x = [1.0, 2.0, 4.0, 8.0]
    low, high = stats.t.interval(0.95, 3, loc=np.mean(x), scale=stats.sem(x))
    assert (interval(x).low, interval(x).high) == pytest.approx((low, high))


def test_interval_of_one_value_claims_nothing():
    assert interval([3.0]).mean == 3.0
    assert math.isnan(interval([3.0]).low)


@given(VALUES, st.floats(0.5, 5))
def test_verdict_turns_around_with_the_good_direction(control: list[float], lead: float):
    treatment = [value + lead * (1 + 0.01 * index) for index, value in enumerate(control)]
    assert compare(treatment, control, higher_is_better=True).verdict == "better"
    assert compare(treatment, control, higher_is_better=False).verdict == "worse"


@given(VALUES)
def test_swapping_the_methods_swaps_the_difference(x: list[float]):
    y = [value**2 / 50 for value in x]
    there, back = compare(x, y), compare(y, x)
    assert there.difference.mean == pytest.approx(-back.difference.mean)
    assert there.wins + back.wins <= len(x)
    assert there.p == pytest.approx(back.p, nan_ok=True)


def test_identical_runs_are_no_difference_and_no_division_by_zero():
    same = compare([1.0, 2.0, 3.0], [1.0, 2.0, 3.0])
    assert (same.verdict, same.wins) == ("no clear difference", 0)
    assert math.isnan(same.p)


def test_p_is_that_of_the_paired_test_and_not_of_the_unpaired_one():
    control = [10.0, 20.0, 30.0, 40.0]
    treatment = [11.0, 21.1, 30.9, 41.0]
    differences = np.subtract(treatment, control)
    t = differences.mean() / (differences.std(ddof=1) / 2)
    assert compare(treatment, control).p == pytest.approx(2 * stats.t.sf(t, 3))
    assert stats.ttest_ind(treatment, control).pvalue > 0.5 > compare(treatment, control).p


@pytest.mark.parametrize("call", [lambda: interval([]), lambda: compare([1.0], [1.0, 2.0])])
def test_values_without_partners_are_refused(call):
    with pytest.raises(ValueError, match="needs"):
        call()


def test_pairs_that_differ_by_rounding_alone_have_no_p_value():
    """Differences of 1, rounding apart: a t-test would give a p of 1e-15 for two seeds."""
    control = [58.93, 62.5]
    treatment = [value + 1.0 for value in control]
    assert math.isnan(compare(treatment, control).p)
    assert compare([value + 0.1 * n for n, value in enumerate(control)], control).p > 0
    # Nor a verdict: without a test there is nothing to say.
    same = compare([50.5] * 8, [50.0] * 8)
    assert same.verdict == "no clear difference"
    assert "the same on every seed" in versus("chain", "LoRA", same, ACCURACY)


def test_wilcoxon_is_the_exact_signed_rank_test():
    """All n differences of one sign: p = 2^(1-n)."""
    for pairs in (3, 5, 8):
        assert wilcoxon([float(n) for n in range(1, pairs + 1)], [0.0] * pairs) == 2.0 ** (1 - pairs)
    assert math.isnan(wilcoxon([1.0, 2.0], [1.0, 2.0]))
    assert math.isnan(wilcoxon([math.nan, 2.0], [1.0, 2.0]))


def test_bootstrap_is_repeatable_lies_around_the_mean_and_is_silent_on_few_values():
    values = [0.0, 1.0, 2.0, 4.0, 8.0]
    first, again = bootstrap(values), bootstrap(values)
    assert first == again
    assert min(values) < first.low < first.mean == 3.0 < first.high < max(values)
    assert math.isnan(bootstrap([1.0, 2.0]).low)
    assert bootstrap([2.0, 2.0, 2.0]) == Interval(2.0, 2.0, 2.0, 0.0)
    shifted = bootstrap([value + 10 for value in values])
    assert shifted.low == pytest.approx(first.low + 10)
