"""How sure one may be: intervals and paired comparisons over seeds."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats


@dataclass(frozen=True)
class Interval:
    """A mean with its two-sided Student interval; the bounds are nan for a single value."""

    mean: float
    low: float
    high: float
    deviation: float


@dataclass(frozen=True)
class Comparison:
    """Two methods on the same seeds, as `treatment - control`.

    Attributes:
        difference: mean difference with its interval, in the metric's own unit and sign.
        p: two-sided paired t-test, corrected where the comparison is one of several (`holm`); nan for a single seed.
        wins: seeds on which the treatment is strictly better.
        seeds: number of pairs.
        higher_is_better: which sign of the difference is good.
    """

    difference: Interval
    p: float
    wins: int
    seeds: int
    higher_is_better: bool

    @property
    def verdict(self) -> str:
        """What interval and p say: "better", "worse" or "no clear difference"."""
        # Of one comparison by itself, p < 0.05 where the interval has no zero in it; a correction can only raise p.
        if not self.p < 0.05:
            return "no clear difference"
        if self.difference.low > 0:
            return "better" if self.higher_is_better else "worse"
        if self.difference.high < 0:
            return "worse" if self.higher_is_better else "better"
        return "no clear difference"


def interval(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """Mean and Student interval ``mean ± t s / sqrt(n)``.

    Args:
        values: one value per seed.
        confidence: probability that the interval is meant to hold.

    Returns:
        The interval.

    Raises:
        ValueError: no value was given.
    """
    x = np.asarray(values, dtype=float)
    if x.size == 0:
        raise ValueError("interval(values=...) needs at least one value and got none")
    mean = float(x.mean())
    if x.size == 1:
        return Interval(mean, math.nan, math.nan, math.nan)
    deviation = float(x.std(ddof=1))
    reach = float(stats.t.ppf((1 + confidence) / 2, x.size - 1)) * deviation / math.sqrt(x.size)
    return Interval(mean, mean - reach, mean + reach, deviation)


def compare(treatment: Sequence[float], control: Sequence[float], *, higher_is_better: bool = True) -> Comparison:
    """Paired comparison of two methods that ran on the same seeds in the same order.

    Args:
        treatment: one value per seed.
        control: one value per seed, the same seeds.
        higher_is_better: True for accuracies, False for losses.

    Returns:
        The comparison.

    Raises:
        ValueError: the two sequences are not paired.
    """
    if len(treatment) != len(control):
        raise ValueError(f"compare() needs pairs: {len(treatment)} values against {len(control)}")
    difference = np.asarray(treatment, dtype=float) - np.asarray(control, dtype=float)
    better = difference > 0 if higher_is_better else difference < 0
    # Pairs that differ by one and the same number, rounding apart, have no variance and the test nothing to say about them.
    rounding = 1e-9 * max(np.abs(treatment).max(), np.abs(control).max()) if len(difference) else 0.0
    testable = len(difference) > 1 and bool(np.ptp(difference) > rounding)
    p = float(stats.ttest_rel(treatment, control).pvalue) if testable else math.nan
    return Comparison(interval(difference.tolist()), p, int(better.sum()), len(difference), higher_is_better)


def wilcoxon(treatment: Sequence[float], control: Sequence[float]) -> float:
    """Two-sided p of Wilcoxon's signed-rank test on the same pairs, which asks for no normal differences.

    Args:
        treatment: one value per seed.
        control: one value per seed, the same seeds.

    Returns:
        The p-value; nan where no pair differs. With n pairs it cannot fall below 2^(1-n).

    Example:
        >>> wilcoxon([2.0, 4.0, 6.0, 8.0], [1.0, 2.0, 3.0, 4.0])
        0.125
    """
    difference = np.asarray(treatment, dtype=float) - np.asarray(control, dtype=float)
    if not difference.any() or not np.isfinite(difference).all():
        return math.nan
    with warnings.catch_warnings():
        # Ties and zeros make it an approximation, of which scipy says that the sample is small; the page does so too.
        warnings.simplefilter("ignore")
        _, p = stats.wilcoxon(difference)
        return float(p)  # pyright: ignore[reportArgumentType]


def bootstrap(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """Mean with its bias-corrected and accelerated bootstrap interval, from 9,999 resamples of one fixed generator.

    Args:
        values: one value per seed, such as paired differences.
        confidence: probability that the interval is meant to hold; with few values it holds less often.

    Returns:
        The interval; its bounds are nan for fewer than three values, and the mean where all values are equal.
    """
    student = interval(values, confidence)
    x = np.asarray(values, dtype=float)
    if x.size < 3 or not np.isfinite(x).all():
        return Interval(student.mean, math.nan, math.nan, student.deviation)
    if np.ptp(x) == 0:
        return Interval(student.mean, student.mean, student.mean, 0.0)
    found = stats.bootstrap(
        (x,), np.mean, confidence_level=confidence, n_resamples=9999, method="BCa", rng=np.random.default_rng(0)
    ).confidence_interval  # fmt: skip
    return Interval(student.mean, float(found.low), float(found.high), student.deviation)


def holm(p: Sequence[float]) -> list[float]:
    """Holm's correction: with these, the probability of one false verdict among all tests is at most the level.

    Args:
        p: one p-value per test; nan for a test that could not be made.

    Returns:
        The corrected ones in the same order, nan where they were.

    Example:
        >>> holm([0.25, 0.125, 0.5])
        [0.5, 0.375, 0.5]
    """
    corrected = list(p)
    order = sorted((index for index, value in enumerate(p) if not math.isnan(value)), key=lambda index: p[index])
    largest = 0.0
    for place, index in enumerate(order):
        # The k-th smallest is multiplied by the number of tests not yet rejected; none may come before a smaller one.
        largest = max(largest, min(1.0, (len(order) - place) * p[index]))
        corrected[index] = largest
    return corrected
