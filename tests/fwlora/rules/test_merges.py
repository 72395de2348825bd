"""Merge rules: a planned step is a step of the Frank-Wolfe method, and never leaves the ball."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fwlora.errors import ArgumentError
from fwlora.rules import (
    Add,
    Centred,
    Coefficients,
    Fixed,
    FrankWolfe,
    NuclearBall,
    OpenLoop,
    Retiring,
    ShortStep,
    StepSize,
    SupportBall,
)

BALLS = [NuclearBall(2.0), SupportBall(0.5, rank=2)]
STEPS = [Fixed(0.3), OpenLoop(), Centred(beta=2.0, initial_gap=1.0, links=5), ShortStep(beta=1.0)]
sites = st.dictionaries(st.sampled_from("abc"), st.one_of(st.just(0.0), st.floats(1e-9, 10)), min_size=1)


def retiring(norms: dict[str, float], knot: int = 1, gap: float | None = 1.0, distance: float | None = 2.0) -> Retiring:
    return Retiring(knot=knot, norms=norms, gap=gap, distance=distance)


@given(norms=sites, knot=st.integers(0, 9))
def test_add_keeps_the_sum_and_adds_the_link_whole(norms, knot):
    assert Add().plan(retiring(norms, knot)) == dict.fromkeys(norms, (1.0, 1.0))
    assert Add().ball is None
    assert Add().eta(retiring(norms, knot)) is None
    assert not Add().needs_gap


@given(ball=st.sampled_from(BALLS), step_size=st.sampled_from(STEPS), knot=st.integers(0, 5), gap=st.floats(-1, 9))
def test_planned_step_is_convex_and_stays_in_the_ball(ball, step_size, knot, gap):
    """(1 - eta) D + eta V, V being the link on the ball's boundary: at most the radius whatever the link."""
    D, link = torch.randn(2, 6, 5, dtype=torch.float64)
    link = link[:, :2] @ torch.randn(2, 5, dtype=torch.float64) * 10 ** torch.randn(1).item()
    D *= ball.radius / ball.norm(torch.linalg.svdvals(D))
    norm = ball.norm(torch.linalg.svdvals(link))
    facts = retiring({"a": norm}, knot, gap)
    rule = FrankWolfe(ball, step_size)
    shrink, scale = rule.plan(facts)["a"]
    eta = rule.eta(facts)
    V = ball.radius / norm * link
    torch.testing.assert_close(shrink * D + scale * link, D + eta * (V - D))
    assert ball.contains(torch.linalg.svdvals(shrink * D + scale * link), tolerance=1e-12)


@given(norms=sites, step_size=st.sampled_from(STEPS))
def test_one_eta_serves_every_site_and_a_zero_link_does_not_move(norms, step_size):
    rule = FrankWolfe(NuclearBall(2.0), step_size)
    eta, plan = rule.eta(retiring(norms)), rule.plan(retiring(norms))
    assert plan.keys() == norms.keys()
    for site, (shrink, scale) in plan.items():
        if norms[site] == 0:
            assert (shrink, scale) == (1.0, 1.0)
        else:
            assert shrink + eta == pytest.approx(1.0)
            assert scale * norms[site] == pytest.approx(2.0 * eta)
    assert all(math.isfinite(scale) for _, scale in plan.values())


def test_knot_without_any_link_takes_no_step_and_asks_no_rule():
    rule = FrankWolfe(NuclearBall(2.0), ShortStep(beta=1.0))
    nothing = retiring({"a": 0.0, "b": 0.0}, gap=None, distance=None)
    assert rule.eta(nothing) == 0.0
    assert rule.plan(nothing) == dict.fromkeys("ab", Coefficients(1.0, 1.0))


def test_scale_of_a_tiny_link_would_not_fit_and_it_does_not_move():
    """float32 holds neither 2/1e-60 nor what it would be multiplied by."""
    assert FrankWolfe(NuclearBall(2.0), 0.5).plan(retiring({"a": 1e-60}))["a"] == (1.0, 1.0)


def test_step_size_is_told_the_radius_of_the_product():
    """R^2 = sum R_l^2, zero links included: their sets are there."""

    class Radius(StepSize):
        def eta(self, retiring, radius):
            return radius / 10

    assert FrankWolfe(NuclearBall(2.0), Radius()).eta(retiring({"a": 1.0, "b": 0.0, "c": 3.0, "d": 1.0})) == 0.4


def test_step_size_outside_the_unit_interval_is_refused():
    class Beyond(StepSize):
        def eta(self, retiring, radius):
            return 1.5

    with pytest.raises(ArgumentError, match=r"Beyond.* gave 1\.5"):
        FrankWolfe(NuclearBall(2.0), Beyond()).plan(retiring({"a": 1.0}))
    with pytest.raises(ArgumentError, match="gave nan"):
        FrankWolfe(NuclearBall(2.0), ShortStep(beta=1.0)).plan(retiring({"a": 1.0}, gap=math.nan))


def test_a_number_is_a_fixed_step():
    assert FrankWolfe(NuclearBall(2.0), 0.2) == FrankWolfe(set=NuclearBall(2.0), step_size=Fixed(0.2))
    assert FrankWolfe(NuclearBall(2.0), 1).plan(retiring({"a": 4.0}))["a"] == (0.0, 0.5)
    assert FrankWolfe(NuclearBall(2.0), OpenLoop()).ball == NuclearBall(2.0)


@pytest.mark.parametrize("step_size", STEPS, ids=repr)
def test_the_gap_is_asked_for_by_the_short_step_alone(step_size):
    assert FrankWolfe(NuclearBall(2.0), step_size).needs_gap == (step_size == ShortStep(beta=1.0))


def test_open_loop_begins_at_the_vertex_and_forgets_it():
    """The weights of T steps of 2/(k + 2) on their vertices rise as k + 1, and nothing is left of the start."""
    weights: list[float] = []
    for knot in range(6):
        shrink, _ = FrankWolfe(NuclearBall(1.0), OpenLoop()).plan(retiring({"a": 1.0}, knot))["a"]
        weights = [*(shrink * weight for weight in weights), 1 - shrink]
    assert weights == pytest.approx([(k + 1) / 21 for k in range(6)])


@given(beta=st.floats(0.1, 10), M=st.floats(0.1, 10), T=st.integers(1, 99), R=st.floats(0.1, 10))
def test_centred_minimises_its_bound(beta, M, T, R):
    """M/(eta T) + beta R^2 eta/(2 (1 - eta)) is nowhere below R sqrt(2 M beta/T) + M/T, which eta attains."""
    eta = Centred(beta, M, T).eta(retiring({}), R)

    def bound(eta: float) -> float:
        return M / (eta * T) + beta * R**2 * eta / (2 * (1 - eta))

    assert bound(eta) == pytest.approx(R * math.sqrt(2 * M * beta / T) + M / T)
    assert all(bound(eta) <= bound(k / 20) * (1 + 1e-12) for k in range(1, 20))


@given(beta=st.floats(0.1, 10), gap=st.floats(-5, 5), distance=st.floats(0, 5))
def test_short_step_minimises_the_upper_bound(beta, gap, distance):
    """-eta gap + eta^2 beta distance^2/2 over [0, 1]."""
    eta = ShortStep(beta).eta(retiring({}, gap=gap, distance=distance), 1.0)

    def model(eta: float) -> float:
        return -eta * gap + eta**2 * beta * distance**2 / 2

    assert 0 <= eta <= 1
    if distance > 0:
        assert all(model(eta) <= model(k / 20) + 1e-12 for k in range(21))


@pytest.mark.parametrize(("gap", "distance", "eta"), [(-1.0, 2.0, 0.0), (0.0, 2.0, 0.0), (1.0, 0.0, 0.0), (1.0, 1e-200, 1.0)])
def test_short_step_at_the_edges(gap, distance, eta):
    assert ShortStep(beta=1.0).eta(retiring({}, gap=gap, distance=distance), 1.0) == eta


@pytest.mark.parametrize(("gap", "distance"), [(None, 1.0), (1.0, None), (None, None)])
def test_short_step_without_a_gap_says_how_to_measure_it(gap, distance):
    with pytest.raises(ArgumentError, match=r"optimizer\.measure_at_knots\(batches, loss_fn\)"):
        ShortStep(beta=1.0).eta(retiring({}, gap=gap, distance=distance), 1.0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FrankWolfe(2.0, 0.5), r"`FrankWolfe\(set=\.\.\.\)` .* got 2\.0"),
        (lambda: FrankWolfe(NuclearBall, 0.5), r"`FrankWolfe\(set="),
        (lambda: FrankWolfe(NuclearBall(1.0), True), r"`FrankWolfe\(step_size=\.\.\.\)` .* got True"),
        (lambda: FrankWolfe(NuclearBall(1.0), "short"), "'short'"),
        (lambda: FrankWolfe(NuclearBall(1.0), OpenLoop), r"`FrankWolfe\(step_size="),
        (lambda: FrankWolfe(NuclearBall(1.0), 1.5), r"`Fixed\(value=\.\.\.\)` .* got 1\.5"),
        (lambda: Fixed(-0.1), r"-0\.1"),
        (lambda: Fixed(math.nan), "nan"),
        (lambda: Fixed(True), "True"),
        (lambda: Centred(0, 1.0, 3), r"`Centred\(beta="),
        (lambda: Centred(1.0, math.inf, 3), r"`Centred\(initial_gap=\.\.\.\)` .* got inf"),
        (lambda: Centred(1.0, 1.0, 0), r"`Centred\(links="),
        (lambda: Centred(1.0, 1.0, 2.5), r"2\.5"),
        (lambda: ShortStep(beta=-1), r"`ShortStep\(beta=\.\.\.\)` .* got -1"),
        (lambda: ShortStep(beta=True), "True"),
    ],
)
def test_bad_argument_is_named_as_typed(make, message):
    with pytest.raises(ArgumentError, match=message):
        make()
