"""Quantiles against scipy's, and inequalities against simulation and against the law of their worst case."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from fwlora.confidence import Interval, frobenius_factor, range_finder_factor, standard_error, student_quantile
from fwlora.errors import ArgumentError

RUNS = 20_000
SPECTRA = {
    "rank one": torch.tensor([1.0]).double(),
    "flat": torch.ones(12).double(),
    "decaying": 0.7 ** torch.arange(12).double(),
    "two": torch.tensor([1.0, 0.9]).double(),
}
spectra = pytest.mark.parametrize("S", SPECTRA.values(), ids=SPECTRA.keys())
tails = st.one_of(st.floats(1e-6, 0.5), st.sampled_from([1e-6, 1e-5, 1e-4, 0.005, 0.025, 0.05]))
intervals = st.tuples(st.floats(-9, 9), st.floats(0, 5), st.floats(0, 5)).map(
    lambda drawn: Interval(drawn[0], drawn[0] + drawn[1], drawn[0] + drawn[1] + drawn[2])
)


@given(tail=tails, degrees=st.integers(1, 200))
def test_student_quantile_is_scipys(tail, degrees):
    # 1e-9 absolutely near the median, where scipy's own search is that coarse.
    assert student_quantile(1 - tail, degrees) == pytest.approx(stats.t.ppf(1 - tail, degrees), rel=1e-9, abs=1e-9)
    assert student_quantile(tail, degrees) == pytest.approx(stats.t.ppf(tail, degrees), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 15, 200])
def test_student_quantile_keeps_six_digits_in_the_last_tail_that_it_takes(degrees):
    assert student_quantile(1e-9, degrees) == pytest.approx(stats.t.ppf(1e-9, degrees), rel=1e-6)
    with pytest.raises(ArgumentError, match="ask for less confidence"):
        student_quantile(1 - 1e-10, degrees)


@given(probability=st.floats(1e-6, 1 - 1e-6))
def test_student_quantile_has_its_textbook_forms(probability):
    """One degree is Cauchy's law, two have t = (2p - 1) sqrt(2/(1 - (2p - 1)^2)); 1/2 is the median of all."""
    centre = 2 * probability - 1
    assert student_quantile(probability, 1) == pytest.approx(math.tan(math.pi / 2 * centre), rel=1e-8, abs=1e-12)
    two = centre * math.sqrt(2 / (4 * probability * (1 - probability)))
    assert student_quantile(probability, 2) == pytest.approx(two, rel=1e-8, abs=1e-12)
    assert student_quantile(0.5, 7) == 0.0


def test_interval_of_mean_covers_as_often_as_it_says():
    """The interval mean +- t standard_error, for 90 % of normal samples of five."""
    samples = 3 + 2 * torch.randn(4000, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    t = student_quantile(0.95, 4)
    covered = sum(abs(row.mean().item() - 3) <= t * standard_error(row) for row in samples)
    assert covered / 4000 == pytest.approx(0.9, abs=4 * math.sqrt(0.09 / 4000))


def test_standard_error_is_that_of_the_mean_in_any_precision():
    samples = torch.tensor([1.0, 2.0, 4.0, 9.0])
    assert standard_error(samples) == pytest.approx(stats.sem(samples.numpy()))
    # In float32 the squares would have drowned the differences.
    assert standard_error(samples + 2.0**20) == pytest.approx(standard_error(samples))
    with pytest.raises(ArgumentError, match="at least 2"):
        standard_error(torch.ones(1))


@spectra
@pytest.mark.parametrize("columns", [1, 2, 8])
@pytest.mark.parametrize("power", [1, 3])
def test_largest_column_bounds_the_top_singular_value(S, columns, power):
    """sigma_1 <= (max_j |M^p x_j|/alpha)^(1/p), M^p being p products, in all but a tenth of the draws at most."""
    X = torch.randn(RUNS, len(S), columns, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    largest = torch.linalg.vector_norm(S[:, None] ** power * X, dim=1).amax(1)
    failures = (largest / range_finder_factor(0.1, columns)) ** (1 / power) < S[0]
    assert failures.double().mean().item() <= 0.1 + 3 * math.sqrt(0.09 / RUNS)


@spectra
@pytest.mark.parametrize("columns", [1, 2, 8])
def test_norm_of_a_projection_bounds_the_frobenius_norm(S, columns):
    """|G|_F^2 <= |G X|_F^2/(t n), in all but a tenth of the draws at most."""
    X = torch.randn(RUNS, len(S), columns, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    seen = (S[:, None] * X).square().sum((1, 2))
    failures = seen < frobenius_factor(0.1, columns) * columns * S.square().sum()
    assert failures.double().mean().item() <= 0.1


@given(failure=st.floats(1e-12, 0.999), columns=st.integers(1, 64))
def test_factors_fail_at_most_as_often_as_said_in_rank_one(failure, columns):
    """Exact laws: |<v_1, x>| is |N(0, 1)|, and |G X|_F^2/|G|_F^2 is chi-square with n degrees."""
    alpha, t = range_finder_factor(failure, columns), frobenius_factor(failure, columns)
    assert math.erf(alpha / math.sqrt(2)) ** columns <= failure * (1 + 1e-12)
    assert 0 < t < 1
    assert stats.chi2.cdf(t * columns, columns) <= failure


@given(failure=st.floats(1e-12, 0.999), columns=st.integers(1, 64))
def test_frobenius_factor_solves_its_equation(failure, columns):
    t = frobenius_factor(failure, columns)
    assert columns / 2 * (1 - t + math.log(t)) == pytest.approx(math.log(failure), rel=1e-9)


def test_factors_grow_with_the_columns():
    """More directions see more: both factors rise to their limits, sqrt(pi/2) and 1."""
    alphas = [range_finder_factor(1e-3, n) for n in (1, 4, 16, 64, 10**6)]
    ts = [frobenius_factor(1e-3, n) for n in (1, 4, 16, 64, 10**6)]
    assert alphas == sorted(alphas)
    assert ts == sorted(ts)
    assert alphas[-1] == pytest.approx(math.sqrt(math.pi / 2), rel=1e-4)
    assert ts[-1] == pytest.approx(1.0, abs=0.01)


@given(a=intervals, b=intervals, where=st.tuples(st.floats(0, 1), st.floats(0, 1)))
def test_quotient_keeps_every_possible_truth(a, b, where):
    """For x in a and y in b the interval of the quotient contains the quotient."""
    x, y = (i.lower + part * (i.upper - i.lower) for i, part in zip((a, b), where, strict=True))
    positive = Interval(*(number + 10 for number in b))
    quotient = a.over(positive)
    assert quotient.lower - 1e-9 <= x / (y + 10) <= quotient.upper + 1e-9
    assert quotient.lower - 1e-9 <= quotient.point <= quotient.upper + 1e-9
    assert a.clip(-1.0, 1.0) == tuple(min(max(number, -1.0), 1.0) for number in a)
    assert a.clip(-20.0, 20.0) == a


def test_interval_reads_as_point_and_ends():
    assert str(Interval(0.5, 1.0, math.inf)) == "1 [0.5, inf]"
    with pytest.raises(ArgumentError, match="above 0"):
        Interval(1.0, 1.0, 1.0).over(Interval(-1.0, 1.0, 2.0))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: student_quantile(1.0, 3), r"`probability` .* is 1\.0"),
        (lambda: student_quantile(0.0, 3), "`probability`"),
        (lambda: student_quantile(math.nan, 3), "nan"),
        (lambda: student_quantile(0.9, 0), r"`degrees` .* is 0\."),
        (lambda: student_quantile(0.9, 2.5), r"2\.5"),
        (lambda: range_finder_factor(0.0, 3), "`failure`"),
        (lambda: range_finder_factor(0.1, 0), "`columns`"),
        (lambda: frobenius_factor(1.0, 3), "`failure`"),
        (lambda: frobenius_factor(0.1, True), "True"),
    ],
)
def test_bad_argument_is_named_as_typed(call, message):
    with pytest.raises(ArgumentError, match=message):
        call()
