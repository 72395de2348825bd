"""The proofs of theorems A, B, C and E are identities, at any T and any rational step size; whatever is altered is refused."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from theory.bounds import CircumradiusBound, FixedStepBound
from theory.certificates import Identity, anytime_step, centred_average, centred_step, drifting_loss, fixed_step
from theory.errors import ArgumentError
from theory.sets import L1Ball
from theory.trajectory import Constants

MADE = {
    "A": lambda T, eta: fixed_step(T, eta, "3/2", "4/3", "5/3"),
    "B": lambda T, eta: anytime_step([Fraction(eta) / t for t in range(1, T + 1)], "3/2", "4/3", "5/3"),
    "C from the centre": lambda T, eta: centred_step(T, eta, "3/2", "2/3", "5/3"),
    "C from anywhere": lambda T, eta: centred_step(T, eta, "3/2", "2/3", "5/3", start_distance="2/3"),
    "E": lambda T, eta: drifting_loss(T, eta, "3/2", "4/3", "5/3", up="1/5", down="1/9"),
}
inner_steps = st.fractions(0, 1, max_denominator=1000).filter(lambda eta: 0 < eta < 1)
numbers = st.fractions(0, 10, max_denominator=1000)


@pytest.mark.parametrize("theorem", MADE)
@pytest.mark.parametrize("T", [1, 2, 3, 6, 20, 50])
def test_proof_is_an_identity(theorem: str, T: int):
    """``average gap - bound - sum lambda_i constraint_i + sum w_j |x_j|^2`` has no coefficient left; no weight is negative."""
    certificate = MADE[theorem](T, "2/7")
    assert certificate.residual.terms == {}
    assert certificate.holds


@given(T=st.integers(1, 5), eta=inner_steps, beta=numbers, size=numbers, M=numbers, away=numbers)
@settings(max_examples=30, deadline=None)
def test_proof_is_an_identity_for_every_rational_step(T, eta, beta, size, M, away):
    assert fixed_step(T, eta, beta, size, M).holds
    assert centred_step(T, eta, beta, size, M, away).holds
    assert drifting_loss(T, eta, beta, size, M, away, size).holds


def test_whole_step_is_certified_where_the_theorem_allows_it():
    assert fixed_step(4, 1).holds
    assert drifting_loss(4, 1).holds
    with pytest.raises(ArgumentError, match="`eta` must be below 1"):
        centred_step(4, 1)


@pytest.mark.parametrize("theorem", MADE)
def test_smaller_bound_is_refused(theorem: str):
    certificate = MADE[theorem](3, "2/7")
    claimed = replace(certificate, bound=certificate.bound - Fraction(1, 10**9))
    assert not claimed.holds
    assert claimed.residual.terms == {"1": Fraction(1, 10**9)}


@pytest.mark.parametrize("theorem", MADE)
def test_every_altered_multiplier_is_refused(theorem: str):
    certificate = MADE[theorem](3, "2/7")
    for name, multiplier in certificate.multipliers.items():
        assert not replace(certificate, multipliers={**certificate.multipliers, name: multiplier + Fraction(1, 10**9)}).holds, (
            name
        )


def test_every_dropped_square_is_refused():
    certificate = centred_step(3, "2/7", start_distance=1)
    for name in certificate.squares:
        left = {other: square for other, square in certificate.squares.items() if other != name}
        assert not replace(certificate, squares=left).holds, name


def test_identity_with_a_negative_multiplier_is_refused():
    """A constraint and its opposite cancel in the identity, but a theorem follows from neither that way."""
    certificate = fixed_step(2, "1/3")
    start = certificate.constraints["start"]
    constraints = {**certificate.constraints, "again": start, "opposite": -start}
    forged = replace(certificate, constraints=constraints, multipliers={**certificate.multipliers, "again": -1, "opposite": -1})
    assert not forged.residual
    assert not forged.holds


def test_growing_steps_prove_nothing_about_the_anytime_rule():
    growing = anytime_step(["1/3", "1/2"])
    assert not growing.residual
    assert min(growing.multipliers.values()) < 0
    assert not growing.holds


def test_constant_steps_turn_theorem_b_into_theorem_a():
    a, b = fixed_step(3, "1/3"), anytime_step(["1/3"] * 3)
    assert (a.bound, a.multipliers, a.constraints) == (b.bound, b.multipliers, b.constraints)


@pytest.mark.parametrize("T", [4, 9, 25])
def test_certified_bound_is_the_tuned_bound_where_its_step_is_a_fraction(T: int):
    """M = 1/2 and beta = D = 1 make ``eta* = 1/sqrt T``; R = 1, beta = 2 M make ``eta = 1/(1 + sqrt T)``."""
    root = Fraction(int(T**0.5))
    known = Constants(1.0, 1.0, 1.0, initial_gap=0.5, oscillation=0.5, start_distance=0.0)
    assert float(fixed_step(T, 1 / root).bound) == pytest.approx(FixedStepBound().value(T, known), rel=1e-15)
    certified = centred_step(T, 1 / (1 + root), radius=1).bound
    assert float(certified) == pytest.approx(CircumradiusBound().value(T, known), rel=1e-15)


@pytest.mark.parametrize("altered", [Fraction(9, 10), Fraction(11, 10)], ids=["shorter", "longer"])
def test_tuned_step_gives_the_least_bound(altered: Fraction):
    assert fixed_step(9, altered / 3).bound > fixed_step(9, "1/3").bound
    assert centred_step(9, altered / 4, radius=1).bound > centred_step(9, "1/4", radius=1).bound


def test_drift_costs_what_theorem_e_says():
    """``(Delta+ + Delta-)/(eta T)`` on top of Theorem A."""
    extra = drifting_loss(5, "1/4", up="1/3", down="1/7").bound - fixed_step(5, "1/4").bound
    assert extra == (Fraction(1, 3) + Fraction(1, 7)) / (Fraction(1, 4) * 5)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"eta": 0.1}, "`eta` must be exact, and 0.1 is a float.*write text, '0.1'"),
        ({"eta": "3/2"}, "`eta` must be above 0 and at most 1"),
        ({"eta": "half"}, "`eta` must be a whole number, a Fraction or text"),
        ({"eta": True}, "`eta` must be a whole number, a Fraction or text"),
        ({"eta": "1/2", "beta": -1}, "`beta` must be at least 0, and is -1"),
        ({"eta": "1/2", "T": 0}, "`T` must be a whole number of at least 1"),
    ],
    ids=str,
)
@pytest.mark.parametrize("build", [fixed_step, centred_step, drifting_loss])
def test_number_that_is_not_exact_is_refused(build, wrong: dict, words: str):
    with pytest.raises(ArgumentError, match=words):
        build(**{"T": 2, **wrong})


def test_text_fraction_and_whole_number_are_the_same_number():
    assert fixed_step(2, "0.5").bound == fixed_step(2, Fraction(1, 2)).bound == fixed_step(2, "1/2", beta="1").bound


@pytest.mark.parametrize("T", [2, 10, 60])
def test_centred_example_is_a_run_of_frank_wolfe(T: int):
    """``L(W) = -s sum W_i + beta |W|^2/2`` on the l1 ball, run step by step; ``L(0) - min L`` is M."""
    M, beta, R = 0.4, 1.3, 0.7
    ball, s, eta = L1Ball(T, radius=R), M / R + beta * R / (2 * T), 1 / (1 + R * np.sqrt(beta * T / (2 * M)))
    W, gaps = np.zeros(T), []
    for _ in range(T):
        G = beta * W - s
        V = ball.lmo(G)
        gaps.append(G @ (W - V))
        W = W + eta * (V - W)
    assert np.mean(gaps) == pytest.approx(centred_average(T, M, beta, R), rel=1e-12)
    lowest = np.full(T, R / T)
    assert s * lowest.sum() - beta * lowest @ lowest / 2 == pytest.approx(M, rel=1e-12)
    slope = beta * lowest - s
    assert slope @ (lowest - ball.lmo(slope)) == pytest.approx(0, abs=1e-12)


def test_circumradius_bound_is_attained_in_the_limit():
    """The example stays below the bound, and the ratio tends to 1: no fixed step has a constant below sqrt 2 R."""
    known = Constants(1.0, 1.0, 0.5, initial_gap=0.1, oscillation=0.1, start_distance=0.0)
    ratios = [centred_average(10**k, 0.1) / CircumradiusBound().value(10**k, known) for k in range(1, 9)]
    assert ratios == sorted(ratios)
    assert 1 - 1e-4 < ratios[-1] < 1


def test_centred_example_refuses_a_run_too_short_for_it():
    with pytest.raises(ArgumentError, match=r"`T` must be at least beta R\^2/\(2 M\) = 12.5, and is 12"):
        centred_average(12, 0.01, 1.0, 0.5)


def test_certificate_needs_every_multiplier_named():
    certificate = fixed_step(2, "1/3")
    with pytest.raises(KeyError, match="oracle_1"):
        Identity("A", 2, certificate.bound, certificate.constraints, {"smooth_1": Fraction(1)}).holds
