"""The checkers can fail: planted violations are found at any scale, and what a theorem does not speak of is refused."""

from __future__ import annotations

import numpy as np
import pytest

from theory.bounds import (
    AnytimeBound,
    Bound,
    ChainBound,
    CircumradiusBound,
    ConvexGapRate,
    ConvexRate,
    DriftBound,
    FixedStepBound,
    ShortStepBound,
    all_bounds,
)
from theory.chain import chain
from theory.corrections import Correction
from theory.errors import ArgumentError, AssumptionError
from theory.frank_wolfe import frank_wolfe
from theory.links import TruncatedStep
from theory.problems import (
    Completion,
    DriftingCompletion,
    Sensing,
    Welsch,
    WorstCase,
    WorstDrift,
)
from theory.sets import NuclearBall, SupportBall
from theory.step_sizes import Anytime, Centred, Fixed, LineSearch, OpenLoop, ShortStep, Step, StepSize
from theory.trajectory import Constants, Trajectory

SMALL = (6, 5)
CONSTANTS = Constants(beta=1.0, diameter=1.0, radius=0.5, initial_gap=0.5, oscillation=0.6, start_distance=0.0)


@pytest.mark.parametrize(
    ("bound", "rule"),
    [
        (FixedStepBound(), Fixed()), (CircumradiusBound(), Centred()), (AnytimeBound(), Anytime()),
        (ShortStepBound(), ShortStep()),
        (ConvexRate(), OpenLoop()), (ConvexGapRate(), OpenLoop()), (DriftBound(), Fixed()), (DriftBound(), LineSearch()),
    ],
    ids=repr,
)  # fmt: skip
def test_a_planted_violation_is_found(bound: Bound, rule):
    """Iteration 7 is forged: a gap (for the primal rate, a loss) far above what any run could show."""
    run = frank_wolfe(Sensing.draw(0, SMALL), rule, 20)
    assert bound.check(run).holds
    forged: dict = {"loss": 1e6} if isinstance(bound, ConvexRate) else {"gap": 1e6, "eps": 0.0}
    if isinstance(bound, ShortStepBound) or isinstance(rule, LineSearch):
        forged["eta"] = 1.0  # the short step's answer to such a gap: another would be refused before it is checked
    planted = run.altered(7, **forged)
    if isinstance(bound, ConvexGapRate):
        for t in range(2, 8):
            planted = planted.altered(t, gap=1e6)
    certificate = bound.check(planted)
    assert not certificate.holds
    assert certificate.slack < 0
    assert certificate.first_violation == {ConvexRate: 6, ConvexGapRate: 3}.get(type(bound), 7)


@pytest.mark.parametrize("scale", [1e-9, 1.0, 1e9])
def test_a_planted_violation_is_found_at_any_scale(scale: float):
    """A fifth more of the first gap than the loss's fall allows, where M alone would allow it."""
    K = NuclearBall(SMALL, radius=scale)
    problem = Completion(1e9 * scale * np.eye(*SMALL), constraint=K)
    run = frank_wolfe(problem, Fixed(1.0), 20)
    assert FixedStepBound().check(run).holds
    certificate = FixedStepBound().check(run.altered(1, gap=1.2 * run.iterations[0].gap))
    assert not certificate.holds
    assert certificate.first_violation == 1
    assert certificate.slack < 0


def test_a_distance_that_is_understated_is_found():
    """The middle term of the proof: the sum of (*) with the run's own distances."""
    run = frank_wolfe(WorstCase(), Fixed(), 1)
    assert not FixedStepBound().check(run.altered(1, distance=0.9)).holds


def test_a_small_planted_violation_is_found_too():
    """A part in ten thousand above a tight run."""
    run = frank_wolfe(WorstCase(), Fixed(), 1)
    assert not FixedStepBound().check(run.altered(1, gap=1.0001)).holds
    assert FixedStepBound().check(run.altered(1, gap=1.0 + 1e-13)).holds


def test_a_chain_that_breaks_its_solver_s_promise_is_found():
    run = chain(Completion.draw(0, SMALL), TruncatedStep(2), 5)
    for shortfall in ({}, {"eps": 1e9}):  # a shortfall is no excuse for a solver that promised none
        certificate = ChainBound().check(run.altered(3, gradient_norm=1e3, **shortfall))
        assert not certificate.holds
        assert certificate.first_violation == 3


def test_a_drift_that_is_understated_is_found():
    run = frank_wolfe(WorstDrift(), Fixed(), 2)
    calm = run.iterations[0].drift.__class__(up=0.0, down=0.0, here=run.iterations[0].drift.here)
    assert not DriftBound().check(run.altered(1, drift=calm)).holds


def test_a_wrong_constant_is_found():
    run = frank_wolfe(WorstCase(M=4.0), Fixed(), 1)
    run.constants = Constants(beta=0.9, diameter=1.0, radius=0.5, initial_gap=4.0, oscillation=4.0, start_distance=0.5)
    assert not FixedStepBound().check(run).holds


# ---------------------------------------------------------------- assumptions


class Dawdle(LineSearch):
    """Calls itself a line search, and is none."""

    def eta(self, step: Step) -> float:
        return 0.01


# Step sizes that belong to such a radius are tiny: a fixed absolute tolerance would take any of them for any rule.
FLAT = Welsch(np.random.default_rng(0).standard_normal(SMALL), np.ones(SMALL), radius=1e8)
SOLVED = Completion.draw(0, SMALL)


def test_a_run_from_a_minimiser_is_a_short_step_s_too():
    """M = 0: Fixed takes no step, and Theorem E reads the record as that of a short step."""
    certificate = DriftBound().check(frank_wolfe(SOLVED, Fixed(), 5, start=SOLVED.solution()))
    assert certificate.holds
    assert certificate.measured == pytest.approx(0.0, abs=1e-12)


def test_the_record_decides_and_not_the_rule_s_name():
    """A rule of the user's own that is the short step gets the short step's guarantee."""

    class Mine(StepSize):
        def eta(self, step: Step) -> float:
            return ShortStep().eta(step)

    runs = [frank_wolfe(Sensing.draw(0, SMALL), rule, 20) for rule in (Mine(), ShortStep())]
    assert DriftBound().check(runs[0]) == DriftBound().check(runs[1])
    assert ShortStepBound().check(runs[0]).holds


class _Nudge(Correction):
    def apply(self, problem, W, t):
        better = 0.5 * (W + problem.targets)
        return better if problem.loss(better) <= problem.loss(W) else W


@pytest.mark.parametrize(
    ("bound", "run", "words"),
    [
        (FixedStepBound(), lambda: frank_wolfe(Completion.draw(0, SMALL), ShortStep(), 9), "its step size is not constant"),
        (FixedStepBound(), lambda: frank_wolfe(DriftingCompletion.draw(0, SMALL), Fixed(), 9), "drifts"),
        (CircumradiusBound(), lambda: frank_wolfe(Completion.draw(0, SMALL), Fixed(1.0), 9), "needs eta < 1"),
        (
            CircumradiusBound(),
            lambda: frank_wolfe(Completion.draw(0, SMALL), Fixed(), 9, correction=_Nudge()),
            "a correction moved its iterates",
        ),
        (AnytimeBound(), lambda: frank_wolfe(Completion.draw(0, SMALL), OpenLoop(), 9), "its step size at t = 1 is 1"),
        (ShortStepBound(), lambda: frank_wolfe(Completion.draw(0, SMALL), Fixed(), 9), "its step size at t = "),
        (ConvexRate(), lambda: frank_wolfe(Welsch.draw(0, SMALL), OpenLoop(), 9), "is not convex"),
        (ConvexRate(), lambda: frank_wolfe(Completion.draw(0, SMALL), Fixed(), 9), "its step size at t = 1"),
        (
            ConvexRate(),
            lambda: frank_wolfe(Completion(np.ones(SMALL), constraint=SupportBall(SMALL, 0.1)), OpenLoop(), 9),
            "the minimum of .* is not known",
        ),
        (ChainBound(), lambda: frank_wolfe(Completion.draw(0, SMALL), Fixed(), 9), "the theorem is about the chain"),
        (FixedStepBound(), lambda: chain(Completion.draw(0, SMALL), TruncatedStep(1), 3), "made by chain"),
        (ChainBound(), lambda: chain(Completion.draw(0, SMALL), TruncatedStep(1), 3).altered(2, rank=4), "its rank grows"),
        (ShortStepBound(), lambda: frank_wolfe(FLAT, Fixed(9e-7), 9), "its step size at t = 1 is 9e-07"),
        (AnytimeBound(), lambda: frank_wolfe(FLAT, Fixed(1e-9), 9), "its step size at t = 1 is 1e-09"),
        (ShortStepBound(), lambda: frank_wolfe(Completion.draw(0, SMALL), Dawdle(), 9), "less than the"),
        (FixedStepBound(), lambda: frank_wolfe(SOLVED, Fixed(), 5, start=SOLVED.solution()), "its step size is 0"),
        (DriftBound(), lambda: frank_wolfe(DriftingCompletion.draw(0, SMALL), Anytime(), 9), "its step size at t = "),
    ],
)
def test_bound_refuses_unmet_assumptions(bound: Bound, run, words: str):
    with pytest.raises(AssumptionError, match=f"says nothing about this run: .*{words}"):
        bound.check(run())


def test_a_corrected_run_keeps_the_theorems_that_need_only_one_step():
    run = frank_wolfe(Completion.draw(0, SMALL), ShortStep(), 20, correction=_Nudge())
    assert ShortStepBound().check(run).holds


def test_an_empty_run_and_one_with_nan_are_refused():
    run = frank_wolfe(Completion.draw(0, SMALL), Fixed(), 3)
    with pytest.raises(ArgumentError, match="must be a whole number of at least 1, and is 0"):
        FixedStepBound().check(Trajectory("Frank-Wolfe", run.problem, run.step_size, run.constants))
    with pytest.raises(ArgumentError, match="not finite"):
        FixedStepBound().check(run.altered(2, gap=float("nan")))


@pytest.mark.parametrize("bound", all_bounds(), ids=repr)
def test_values_refuse_a_horizon_of_zero(bound: Bound):
    with pytest.raises(ArgumentError, match="`T` must be a whole number"):
        bound.value(0, CONSTANTS)


def test_drift_refuses_a_negative_drift():
    with pytest.raises(ArgumentError, match="must be finite and at least 0"):
        DriftBound(up=-1.0)
