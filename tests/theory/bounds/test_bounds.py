"""The theorems, found by walking the folder: they hold, they are tight where they say so, and they can be refuted."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from theory import problems
from theory.bounds import (
    AnytimeBound,
    Bound,
    ChainBound,
    CircumradiusBound,
    ConvexGapRate,
    ConvexRate,
    DriftBound,
    FixedStepBound,
    PrintedBound,
    ShortStepBound,
    all_bounds,
)
from theory.bounds.huber import phi, phi_inverse
from theory.certificates.attained import centred_average
from theory.chain import chain
from theory.discovery import concrete_classes
from theory.frank_wolfe import frank_wolfe
from theory.gradients import Minibatch, Noisy
from theory.links import BestLink, LinkSolver, TrainedLink, TruncatedStep
from theory.oracles import Blunted, Lanczos, Lazy, OneBlock
from theory.problems import (
    Completion,
    Concave,
    DriftingCompletion,
    Logistic,
    PhaseRetrieval,
    Problem,
    Sensing,
    TanhNetwork,
    Welsch,
    WorstCase,
    WorstCentred,
    WorstDrift,
)
from theory.sets import FrobeniusBall, NuclearBall, Product, SupportBall
from theory.step_sizes import Anytime, Centred, Fixed, LineSearch, OpenLoop, ShortStep
from theory.trajectory import Constants, Trajectory

KINDS = concrete_classes(problems, Problem)
RULES = [Fixed(), Fixed(0.05), Centred(), Anytime(), ShortStep(), OpenLoop(), LineSearch()]
TRUE = [bound for bound in all_bounds() if bound.verdict != "refuted"]
SEEDS = st.integers(0, 10_000)
SMALL = (6, 5)
CONSTANTS = Constants(beta=1.0, diameter=1.0, radius=0.5, initial_gap=0.5, oscillation=0.6, start_distance=0.0)


def verdicts(run: Trajectory) -> dict[str, bool]:
    """Every true theorem's verdict on a run that it speaks of."""
    return {bound.name: bound.check(run).holds for bound in TRUE if bound.obstacle(run) is None}


def test_the_folder_holds_the_theorems_that_are_promised():
    promised = {
        FixedStepBound, PrintedBound, AnytimeBound, CircumradiusBound, ShortStepBound, DriftBound, ChainBound, ConvexRate,
        ConvexGapRate,
    }  # fmt: skip
    assert {type(bound) for bound in all_bounds()} == promised


@pytest.mark.parametrize("rule", RULES, ids=repr)
@pytest.mark.parametrize("kind", KINDS, ids=lambda k: k.__name__)
@given(seed=SEEDS, T=st.integers(1, 25), shape=st.tuples(st.integers(1, 7), st.integers(1, 7)))
@settings(max_examples=4, deadline=None)
def test_bound_holds(kind: type[Problem], rule, seed: int, T: int, shape: tuple[int, int]):
    said = verdicts(frank_wolfe(kind.draw(seed, shape), rule, T))
    assert all(said.values()), said


@pytest.mark.parametrize("rule", [r for r in RULES if not isinstance(r, OpenLoop)], ids=repr)
def test_each_rule_has_a_theorem(rule):
    assert verdicts(frank_wolfe(Completion.draw(0, SMALL), rule, 5))


@pytest.mark.parametrize("rule", RULES, ids=repr)
@pytest.mark.parametrize(
    "options",
    [
        {"oracle": Blunted(0.4)}, {"oracle": Lazy()}, {"oracle": Lanczos(steps=2)}, {"gradient": Noisy(0.2)},
        {"gradient": Minibatch(10)}, {"oracle": Blunted(0.4), "gradient": Minibatch(10)},
    ],
    ids=repr,
)  # fmt: skip
def test_bound_holds_with_measured_shortfalls(rule, options: dict):
    for kind in (Sensing, Logistic, TanhNetwork):
        said = verdicts(frank_wolfe(kind.draw(1, SMALL), rule, 40, seed=2, **options))
        assert all(said.values()), (kind, said)


@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_bound_holds_for_block_coordinate_runs(rule):
    K = Product([NuclearBall((3, 2)), SupportBall((4, 3), radius=2.0)])
    problem = Completion(2 * K.sample(np.random.default_rng(0)), constraint=K)
    said = verdicts(frank_wolfe(problem, rule, 60, oracle=OneBlock()))
    assert all(said.values()), said


@pytest.mark.parametrize("start", ["vertex", "inside"])
@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_bound_holds_from_anywhere(rule, start: str):
    """``1/2 |W|^2`` from a vertex, and a random start."""
    K = NuclearBall(SMALL, radius=2.0)
    problem = Completion(np.zeros(SMALL), constraint=K)
    W = K.lmo(np.eye(*SMALL)) if start == "vertex" else 0.5 * K.sample(np.random.default_rng(0))
    said = verdicts(frank_wolfe(problem, rule, 50, start=W))
    assert all(said.values()), said


@pytest.mark.parametrize(
    "link", [TruncatedStep(1), TruncatedStep(3), TrainedLink(2, 2), TrainedLink(2, 20), BestLink(2)], ids=repr
)
@pytest.mark.parametrize("kind", ChainBound().testbeds(), ids=lambda k: k.__name__)
def test_chain_bound_holds(kind: type[Problem], link: LinkSolver):
    certificate = ChainBound().check(chain(kind.draw(3, SMALL), link, 6))
    assert certificate.holds
    assert 0 < certificate.ratio <= 1 + 1e-12


@pytest.mark.parametrize("bound", [bound for bound in TRUE if bound.verdict == "tight"], ids=repr)
def test_tight_bound_is_attained(bound: Bound):
    example = bound.tight_example()
    assert example is not None
    run = (chain if isinstance(example.rule, LinkSolver) else frank_wolfe)(example.problem, example.rule, example.steps)
    certificate = bound.check(run)
    assert certificate.holds
    assert certificate.ratio == pytest.approx(1.0, rel=1e-12)
    drift = example.problem.total_drift(example.steps)
    value = (DriftBound(*drift) if isinstance(bound, DriftBound) else bound).value(example.steps, run.constants)
    assert certificate.measured == pytest.approx(value, rel=1e-12)


@given(seed=SEEDS)
@settings(max_examples=20, deadline=None)
def test_theorem_a_is_attained_on_both_branches(seed: int):
    """One step on an interval, any M, beta and D: ``g_1 = M/eta + beta D^2 eta/2``."""
    problem = WorstCase.draw(seed)
    run = frank_wolfe(problem, Fixed(), 1)
    c = run.constants
    expected = c.initial_gap + c.curvature / 2 if c.curvature < 2 * c.initial_gap else np.sqrt(2 * c.initial_gap * c.curvature)
    assert run.column("gap")[0] == pytest.approx(expected, rel=1e-9)
    assert FixedStepBound().check(run).ratio == pytest.approx(1.0, rel=1e-9)


@pytest.mark.parametrize("T", [1, 2, 7])
def test_theorem_a_with_the_run_s_own_decrease_is_attained_at_every_t(T: int):
    """``beta/2 x^2`` on [-1/2, 1/2], from end to end with eta = 1: every gap is beta D^2/2 and the loss never falls."""
    problem = Completion(np.zeros(1), constraint=FrobeniusBall(1, 0.5), start=np.array([0.5]))
    run = frank_wolfe(problem, Fixed(1.0), T)
    assert np.allclose(run.column("gap"), 0.5)
    assert np.allclose(FixedStepBound().on_trajectory(run), 0.5)


def test_theorem_a_is_attained_at_every_t_without_curvature():
    """A linear loss: the first gap is M, the others are 0."""
    problem = Concave(1e9 * np.random.default_rng(0).standard_normal(SMALL))  # the quadratic part is rounding
    run = frank_wolfe(problem, Fixed(), 30)
    assert FixedStepBound().check(run).ratio == pytest.approx(1.0, rel=1e-6)


@given(seed=SEEDS)
@settings(max_examples=20, deadline=None)
def test_theorem_e_is_attained_by_any_drift(seed: int):
    run = frank_wolfe(WorstDrift.draw(seed), Fixed(), 2)
    assert DriftBound().check(run).ratio == pytest.approx(1.0, rel=1e-12)


def test_bounds_that_call_themselves_upper_know_no_tight_example():
    assert all(bound.tight_example() is None for bound in TRUE if bound.verdict == "upper")


def test_theorem_c_is_approached_by_a_fresh_vertex_at_each_step():
    """Its constant cannot be improved: the ratio tends to 1 with T; and the run is the closed form of the certificates."""
    ratios = []
    for T in (10, 100, 1000):
        run = frank_wolfe(WorstCentred(T), Centred(), T)
        assert run.column("gap").mean() == pytest.approx(centred_average(T), rel=1e-9)
        ratios.append(CircumradiusBound().check(run).ratio)
    assert ratios == sorted(ratios)
    assert ratios[1] > 0.94
    assert ratios[2] > 0.98


# ---------------------------------------------------------------- the printed theorem


def test_the_printed_theorem_fails_at_small_t():
    """K = [0, 1], L(x) = -4.5 x + x^2/2, x_1 = 0, M = 4, T = 1: the gap is 4.5, the printed bound 4, Theorem A's 4.5."""
    example = PrintedBound().counterexample()
    run = frank_wolfe(example.problem, example.rule, example.steps)  # pyright: ignore[reportArgumentType]
    certificate = PrintedBound().check(run)
    assert (run.constants.beta, run.constants.diameter, run.constants.initial_gap) == (1.0, 1.0, 4.0)
    assert not certificate.holds
    assert certificate.first_violation == 1
    assert (certificate.measured, certificate.guaranteed, certificate.slack) == (4.5, 4.0, -0.5)
    assert FixedStepBound().check(run).ratio == 1.0


@given(m=st.floats(0.05, 20.0))
@settings(max_examples=60, deadline=None)
def test_the_printed_theorem_fails_exactly_beyond_its_threshold(m: float):
    """At T = 1 if and only if ``M/(beta D^2) > (1 + 1/sqrt 2)^2``."""
    threshold = (1 + 1 / np.sqrt(2)) ** 2
    assert threshold == pytest.approx(2.914, abs=1e-3)
    if abs(m - threshold) > 1e-6:
        run = frank_wolfe(WorstCase(M=m), Fixed(), 1)
        assert PrintedBound().check(run).holds == (m < threshold)


def test_the_printed_theorem_fails_at_every_t_for_a_concave_loss():
    """It promises a gap of 0 for beta = 0."""
    for T in (1, 10, 100):
        assert not PrintedBound().check(frank_wolfe(Concave.draw(0, SMALL), Fixed(), T)).holds


# ---------------------------------------------------------------- values


@pytest.mark.parametrize("T", [1, 2, 5, 17, 400])
def test_values_are_the_formulas(T: int):
    c = CONSTANTS
    assert FixedStepBound().value(T, c) == pytest.approx(np.sqrt(2 * 0.5 / T))
    assert PrintedBound().value(T, c) == pytest.approx(2 * np.sqrt(0.5 / T))
    assert AnytimeBound().value(T, c) == pytest.approx(2 * np.sqrt(0.6 / T))
    assert CircumradiusBound().value(T, c) == pytest.approx(0.5 * np.sqrt(1 / T) + 0.5 / T)
    assert ShortStepBound().value(T, c) == FixedStepBound().value(T, c)
    assert DriftBound(up=0.2, down=0.3).value(T, c) == pytest.approx(np.sqrt(2 / T) if T >= 2 else 1 + 0.5)
    assert ChainBound().value(T, c) == pytest.approx(1 / T)
    assert ConvexRate().value(T, c) == pytest.approx(2 / (T + 2))
    for bound in TRUE:
        if not isinstance(bound, ConvexGapRate):
            assert bound.value(T, c, eps=0.1) > bound.value(T, c)


def test_the_small_t_branch_is_continuous_and_below_twice_m():
    far = Constants(1.0, 1.0, 0.5, initial_gap=8.0, oscillation=8.0, start_distance=0.0)
    assert FixedStepBound().value(16, far) == 1.0
    assert FixedStepBound().value(15, far) == pytest.approx(8 / 15 + 0.5)
    assert FixedStepBound().value(1, far) <= 2 * 8.0


def test_for_norm_balls_theorem_c_is_half_of_theorem_a_in_the_limit():
    c = Constants(1.0, 2.0, 1.0, 3.0, 3.0, start_distance=0.0)
    assert CircumradiusBound().value(10**10, c) / FixedStepBound().value(10**10, c) == pytest.approx(0.5, rel=1e-4)


@given(g=st.floats(0, 50), C=st.floats(0.01, 20))
@settings(max_examples=50, deadline=None)
def test_phi_is_the_best_decrease_and_has_an_inverse(g: float, C: float):
    grid = np.linspace(0, 1, 2001)
    assert phi(g, C) == pytest.approx((grid * g - grid**2 * C / 2).max(), abs=1e-5 * (1 + g + C))
    assert phi_inverse(phi(g, C), C) == pytest.approx(g, rel=1e-9, abs=1e-9)


def test_a_run_at_the_prescribed_step_is_guaranteed_the_value():
    for bound, rule in [(FixedStepBound(), Fixed()), (CircumradiusBound(), Centred()), (ShortStepBound(), ShortStep()),
                        (AnytimeBound(), Anytime())]:  # fmt: skip
        for problem in (Completion.draw(0, SMALL), Welsch.draw(0, SMALL), PhaseRetrieval.draw(0, SMALL)):
            run = frank_wolfe(problem, rule, 30)
            assert bound.check(run).guaranteed == pytest.approx(bound.value(30, run.constants), rel=1e-9)


# ---------------------------------------------------------------- what each says of itself


@pytest.mark.parametrize("bound", all_bounds(), ids=repr)
def test_every_theorem_says_what_it_is(bound: Bound):
    """Name, statement, verdict, testbeds, and a docstring in the fixed order."""
    order = ["Setting:", "Guarantee (", "Algorithm:", "Proof", "Reference:"]
    places = [type(bound).__doc__.index(word) for word in order]  # pyright: ignore[reportOptionalMemberAccess]
    assert places == sorted(places)
    assert bound.name
    assert "<=" in bound.statement
    assert f"Guarantee ({bound.verdict}" in type(bound).__doc__  # pyright: ignore[reportOperatorIssue]


def test_theorems_name_the_testbeds_that_meet_their_assumptions():
    assert DriftingCompletion in DriftBound().testbeds()
    assert DriftingCompletion not in FixedStepBound().testbeds()
    assert Welsch not in ConvexRate().testbeds()
    assert PhaseRetrieval not in ChainBound().testbeds()
    assert all(TanhNetwork in bound.testbeds() for bound in (FixedStepBound(), CircumradiusBound(), ChainBound()))
