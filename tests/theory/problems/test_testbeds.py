"""Every testbed, found by walking the folder: its gradient is one, its constants hold, and its truth is true."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from theory import problems
from theory.discovery import concrete_classes
from theory.errors import ArgumentError
from theory.points import Iterate, dense
from theory.problems import (
    Completion,
    Concave,
    DriftingCompletion,
    FiniteSum,
    GemanMcClure,
    Indefinite,
    Logistic,
    PhaseRetrieval,
    Problem,
    Sensing,
    SparseCompletion,
    TanhNetwork,
    TrustRegion,
    Welsch,
    WorstCase,
    WorstCentred,
    WorstDrift,
    audit,
)
from theory.problems.projected_gradient import minimise
from theory.sets import L1Ball, NuclearBall, SupportBall

KINDS = concrete_classes(problems, Problem)
SEEDS = st.integers(0, 10_000)
SMALL = (6, 5)
# Where the certified curvature is attained somewhere on the set, a search has to find it: an audit that cannot fail is none.
ATTAINED = [Completion, Indefinite, Sensing, Welsch, GemanMcClure, DriftingCompletion, WorstCase, WorstCentred]


def test_the_folder_holds_every_row_of_the_table():
    promised = {
        Completion, Sensing, Indefinite, TrustRegion, Concave, Welsch, GemanMcClure, Logistic, TanhNetwork, PhaseRetrieval,
        DriftingCompletion, WorstCase, WorstDrift,
    }  # fmt: skip
    assert promised <= set(KINDS)


@pytest.mark.parametrize("kind", KINDS, ids=lambda k: k.__name__)
@given(seed=SEEDS, shape=st.tuples(st.integers(1, 7), st.integers(1, 7)))
@settings(max_examples=6, deadline=None)
def test_sampled_curvature_never_exceeds_beta(kind: type[Problem], seed: int, shape: tuple[int, int]):
    """And no sampled loss, distance or derivative contradicts its constant."""
    seen = audit(kind.draw(seed, shape), seed, samples=5)
    assert seen.holds, seen
    assert seen.curvature <= seen.beta + 1e-6 * seen.steepest


@pytest.mark.parametrize("kind", ATTAINED, ids=lambda k: k.__name__)
def test_the_steepest_direction_attains_beta(kind: type[Problem]):
    seen = audit(kind.draw(0, SMALL), samples=20)
    assert seen.curvature == pytest.approx(seen.beta, rel=0.03)


@pytest.mark.parametrize("kind", [kind for kind in ATTAINED if "Worst" not in kind.__name__], ids=lambda k: k.__name__)
def test_an_audit_finds_a_beta_that_is_too_small(kind: type[Problem]):
    problem = kind.draw(0, SMALL)
    problem.beta *= 0.9
    assert not audit(problem, samples=20).holds


@pytest.mark.parametrize("scale", [1e-9, 1e9])
def test_an_audit_finds_wrong_constants_at_any_scale(scale: float):
    whole = Completion.draw(0, SMALL)
    problem = Completion(whole.targets, scale * whole.weights, whole.constraint)
    assert audit(problem).holds
    problem.beta *= 0.9
    assert not audit(problem).holds
    problem.beta /= 0.9
    problem.lowest = 0.01 * audit(problem).spread + audit(problem).loss
    assert not audit(problem).holds


def test_an_audit_finds_a_wrong_gradient_and_a_wrong_lower_bound():
    class WrongGradient(Completion):
        def gradient(self, W):
            return 1.001 * super().gradient(W)

    assert audit(WrongGradient.draw(0, SMALL)).gradient_error > 1e-6
    assert not audit(WrongGradient.draw(0, SMALL)).holds
    problem = Completion.draw(0, SMALL)
    problem.lowest = problem.loss(problem.start) * 2
    assert not audit(problem).holds


@pytest.mark.parametrize("kind", KINDS, ids=lambda k: k.__name__)
@given(seed=SEEDS)
@settings(max_examples=5, deadline=None)
def test_constants_bound_the_run_from_its_start(kind: type[Problem], seed: int):
    problem = kind.draw(seed, SMALL)
    constants, rng = problem.constants(), np.random.default_rng(seed)
    first = problem.at(1)
    assert problem.constraint.contains(dense(problem.start))
    losses = [first.loss(problem.constraint.sample(rng)) for _ in range(30)]
    slack = 1e-9 * (1 + abs(problem.lowest))
    assert min(losses) >= problem.lowest - slack
    assert max(losses) - min(losses) <= constants.oscillation + slack
    assert first.loss(problem.start) - min(losses) <= constants.initial_gap + slack


@pytest.mark.parametrize("kind", KINDS, ids=lambda k: k.__name__)
def test_ground_truth_lies_in_the_set_and_has_no_gap(kind: type[Problem]):
    problem = kind.draw(1, SMALL)
    W = problem.solution()
    if W is None:
        assert not problem.lowest_is_minimum or isinstance(problem.start, Iterate) or problem.drifts
        return
    K = problem.constraint
    assert K.contains(W, tolerance=1e-7)
    assert problem.loss(W) == pytest.approx(problem.minimum, rel=1e-8, abs=1e-10)
    G = dense(problem.gradient(W))
    assert np.vdot(G, W) + K.support(-G) <= 1e-6 * (1 + abs(problem.lowest))
    rng = np.random.default_rng(0)
    assert all(problem.loss(W) <= problem.loss(K.sample(rng)) + 1e-9 for _ in range(100))


@pytest.mark.parametrize("kind", [kind for kind in KINDS if issubclass(kind, FiniteSum)], ids=lambda k: k.__name__)
def test_a_batch_gradient_is_an_unbiased_part_of_the_whole(kind: type[FiniteSum]):
    """The mean over a partition into equal batches is the gradient."""
    problem = kind.draw(0, SMALL)
    W = problem.constraint.sample(np.random.default_rng(0))
    size = problem.terms // 4 * 4
    batches = np.random.default_rng(1).permutation(size).reshape(4, -1)
    mean = np.mean([problem.batch_gradient(W, rows) for rows in batches], axis=0)
    assert np.allclose(mean, problem.batch_gradient(W, np.arange(size)))
    assert np.allclose(problem.gradient(W), problem.batch_gradient(W, np.arange(problem.terms)))


@pytest.mark.parametrize(
    "kind", [Completion, Sensing, Indefinite, TrustRegion, Concave, WorstCase, WorstCentred], ids=lambda k: k.__name__
)
def test_quadratics_bend_alike_everywhere(kind: type[Problem]):
    """``L(W + D) - L(W) - <grad L(W), D> = line_curvature(D)/2``."""
    problem, rng = kind.draw(0, SMALL), np.random.default_rng(0)
    W, D = problem.constraint.sample(rng), problem.constraint.sample(rng)
    rise = problem.loss(W + D) - problem.loss(W) - np.vdot(problem.gradient(W), D)
    assert rise == pytest.approx(problem.line_curvature(D) / 2, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("radius", [0.3, 0.8])
def test_projected_gradient_agrees_with_conic_solver(radius: float):
    """Completion whose targets lie outside the ball, 12 x 10."""
    cvxpy = pytest.importorskip("cvxpy", reason="the conic solver comes with the dependency group certify")
    whole = Completion.draw(3, (12, 10))
    K = NuclearBall((12, 10), radius=radius * whole.constraint.radius)
    problem = Completion(whole.targets, whole.weights, K)
    assert not problem.lowest_is_minimum
    X = cvxpy.Variable((12, 10))
    loss = cvxpy.sum_squares(cvxpy.multiply(problem.weights, X - problem.targets)) / 2
    conic = cvxpy.Problem(cvxpy.Minimize(loss), [cvxpy.normNuc(X) <= K.radius])
    conic.solve(solver="CLARABEL")
    assert problem.minimum == pytest.approx(conic.value, rel=1e-6)


def test_projected_gradient_says_none_where_there_is_no_projection():
    assert minimise(Completion(np.ones((2, 2)), constraint=SupportBall((2, 2), radius=0.1))) is None


def test_repeated_observations_add_their_weights():
    K = L1Ball((2, 2), radius=9.0)
    once, twice = Completion.from_entries([0, 1], [0, 1], [1.0, 2.0], K), Completion.from_entries([0, 0], [1, 1], [1.0, 3.0], K)
    assert once.beta == 1.0
    assert (twice.beta, twice.targets[0, 1]) == (2.0, 2.0)
    assert Completion.from_entries([0, 1], [0, 1], [1.0, 2.0], K, mean=True).beta == 0.5
    # sum_j 1/2 (x - y_j)^2 and 1/2 w (x - mean y)^2 have one gradient
    W = np.array([[0.0, 0.7], [0.0, 0.0]])
    assert twice.gradient(W)[0, 1] == pytest.approx((0.7 - 1.0) + (0.7 - 3.0))


def test_trust_region_is_solved_inside_on_the_boundary_and_in_the_hard_case():
    ball = np.array([[1.0, 2.0]])
    inside = TrustRegion(ball, np.array([[0.1, 0.1]]), radius=3.0)
    assert np.allclose(inside.solution(), [[-0.1, -0.05]])
    hard = TrustRegion(np.array([[-1.0, 1.0]]), np.array([[0.0, 0.2]]), radius=1.0)
    W = hard.solution()
    assert np.linalg.norm(W) == pytest.approx(1.0)
    rng = np.random.default_rng(0)
    assert all(hard.loss(W) <= hard.loss(hard.constraint.sample(rng)) + 1e-12 for _ in range(2000))


@pytest.mark.parametrize("least", [0.0, 1e-300, 1e-20, 1e-16, 1e-8])
@pytest.mark.parametrize("scale", [1e-14, 1.0, 1e12])
def test_trust_region_is_solved_near_the_hard_case_and_at_any_scale(least: float, scale: float):
    """Q = (-1, 1), C = (least, .2): the least loss is continuous in `least`."""
    problem = TrustRegion(scale * np.array([[-1.0, 1.0]]), scale * np.array([[least, 0.2]]), radius=1.0)
    assert problem.lowest == pytest.approx(scale * (-0.51), rel=1e-7)
    W = problem.solution()
    assert np.linalg.norm(W) == pytest.approx(1.0)
    assert problem.loss(W) == pytest.approx(problem.lowest, rel=1e-7)


def test_a_problem_keeps_what_it_was_made_of():
    """Changing the caller's arrays, the solution or a gradient's structure changes no problem."""
    Y = np.diag([2.0, 1.0])
    problem = Completion(Y, constraint=NuclearBall((2, 2), 5.0))
    Y[0, 0] = problem.solution()[0, 0] = 9.0
    assert problem.targets[0, 0] == problem.solution()[0, 0] == 2.0
    sparse_problem = SparseCompletion([0, 1], [0, 1], [0.0, 1.0], (2, 2), 5.0)
    with pytest.raises(ValueError, match="read-only"):
        sparse_problem.gradient(sparse_problem.start).eliminate_zeros()
    assert sparse_problem.loss(sparse_problem.start) == 0.5


def test_phase_retrieval_judges_its_planted_point_at_any_scale():
    problem = PhaseRetrieval.draw(0, SMALL)
    for scale in (1e-6, 1e4):
        y, planted = scale**2 * problem.y, scale * problem.planted
        assert PhaseRetrieval(problem.A, y, 5, scale, planted).lowest_is_minimum
        with pytest.raises(ArgumentError, match="`planted` must lie"):
            PhaseRetrieval(problem.A, y, 5, scale, 0 * planted)


def test_drift_suprema_are_exact():
    """``sup_K (L_{t+1} - L_t)`` is attained by a vertex and never exceeded."""
    problem, rng = DriftingCompletion.draw(0, SMALL), np.random.default_rng(0)
    K = problem.constraint
    for t in (1, 2, 5):
        up, down = problem.drift(t)
        before, after = problem.at(t), problem.at(t + 1)
        slope = after.gradient(K.centre) - before.gradient(K.centre)
        moved = [after.loss(X) - before.loss(X) for X in (dense(K.lmo(-slope)), dense(K.lmo(slope)))]
        assert moved[0] == pytest.approx(up) if up > 0 else moved[0] <= 0
        assert -moved[1] == pytest.approx(down) if down > 0 else moved[1] >= 0
        for _ in range(20):
            X = K.sample(rng)
            assert -down - 1e-9 <= after.loss(X) - before.loss(X) <= up + 1e-9


def test_the_certified_beta_of_phase_retrieval_fails_outside_its_ball():
    """The constant holds on the set and nowhere else: that is why no chain runs on it."""
    problem = PhaseRetrieval.draw(0, SMALL)
    far = 30 * problem.start
    bend = np.vdot(far, problem.gradient(1.001 * far) - problem.gradient(0.999 * far)) / (0.002 * np.vdot(far, far))
    assert bend > problem.beta
    assert not problem.everywhere


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Completion(np.ones((2, 2)), weights=-np.ones((2, 2))), "`weights` must be finite, not negative"),
        (lambda: Completion(np.ones((2, 2)), weights=np.ones(2)), "`weights` must be"),
        (lambda: Completion(np.full((2, 2), np.nan), constraint=NuclearBall((2, 2))), "must be finite"),
        (lambda: Completion(np.ones((2, 2)), start=9 * np.ones((2, 2))), "`start` lies outside"),
        (lambda: Sensing(np.ones((3, 2)), np.ones((3, 2)), np.ones(2), 1.0), "one row a measurement"),
        (lambda: Welsch(np.ones((2, 2)), 0.5 * np.ones((2, 2)), 1.0), "`weights` must be 0 or 1: an entry"),
        (lambda: PhaseRetrieval(np.ones((3, 2)), -np.ones(3), 1), "must not be negative"),
        (lambda: PhaseRetrieval(np.ones((3, 2)), np.ones(3), 1, planted=np.zeros((2, 1))), "`planted` must lie"),
        (lambda: Completion(np.ones(3)), "`constraint` can be left out for a matrix"),
        (lambda: Completion(np.zeros((2, 2))), "`constraint` can be left out for a matrix"),
        (lambda: Completion(np.full((2, 2), np.nan)), "`targets` must be finite"),
        (lambda: Concave(np.full((2, 2), np.nan)), "`C` must be finite"),
        (lambda: Concave([["a", "b"]]), "`C` must hold real numbers"),
        (lambda: TrustRegion(np.ones((2, 3)), np.ones((2, 2))), r"`q` must have shape \(2, 2\)"),
        (lambda: Indefinite(2 * np.eye(3)[:, :1], np.ones((3, 2))), "`basis` must have fewer than 3 orthonormal columns"),
        (lambda: Indefinite(np.eye(3), np.ones((3, 2))), "`basis` must have fewer"),
        (lambda: Indefinite(np.eye(3)[:, :1], np.eye(3)[:, :1] @ np.ones((1, 2))), "`C` must have a part outside"),
        (lambda: Logistic(np.ones((3, 2)), np.array([0, 1, 2]), classes=2), "`labels` must be 3 whole numbers from 0 to 1"),
        (lambda: Logistic(np.ones((3, 2)), np.array([0.0, 1.0, 1.0]), classes=2), "`labels` must be"),
        (lambda: Sensing(np.ones((2, 2)), np.ones((2, 2)), np.array([1.0, np.nan]), 1.0), "`y` must be finite"),
        (lambda: TanhNetwork(np.ones(2), np.ones((3, 2)), np.ones(2)), "one row an example"),
        (
            lambda: DriftingCompletion(np.ones((2, 3)), *[np.ones((2, 2))] * 2, NuclearBall((2, 2))),
            "`first` for .* must have shape",
        ),
        (lambda: SparseCompletion.skewed(0, (20, 20), 10, rank=0), "`rank` must be a whole number"),
        (lambda: SparseCompletion.skewed(0, (20, 20), 10, noise=np.nan), "`noise` must be finite"),
        (lambda: WorstCentred(size=0), "`size` must be a whole number"),
        (lambda: WorstCentred(size=1, M=0.01), "`size` must be at least"),
        (lambda: WorstCase(M=0.0), "`M` must be a finite number above 0"),
        (lambda: DriftingCompletion(*[np.ones((2, 2))] * 3, NuclearBall((2, 2)), speed=np.inf), "`speed` must be finite"),
    ],
)
def test_bad_testbeds_are_refused_by_name(make, words: str):
    with pytest.raises(ArgumentError, match=words):
        make()
