"""Algorithm 2 and its variants: what every run keeps, and what each variant is for."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from theory import problems, sets
from theory.chain import chain
from theory.corrections import Correction
from theory.discovery import concrete_classes
from theory.errors import ArgumentError, AssumptionError
from theory.frank_wolfe import frank_wolfe
from theory.gradients import Full, Minibatch, Noisy
from theory.invariants import violations
from theory.links import TruncatedStep
from theory.oracles import Blunted, Exact, Lanczos, Lazy, OneBlock, Oracle
from theory.points import dense
from theory.problems import Completion, Concave, DriftingCompletion, Logistic, Problem, Sensing, SparseCompletion, WorstCase
from theory.sets import NuclearBall, Product, Simplex
from theory.step_sizes import Anytime, Centred, Fixed, LineSearch, OpenLoop, ShortStep

KINDS = concrete_classes(problems, Problem)
RULES = [Fixed(), Centred(), Anytime(), ShortStep(), OpenLoop(), LineSearch()]
SEEDS = st.integers(0, 10_000)
SMALL = (6, 5)


@pytest.mark.parametrize("rule", RULES, ids=lambda r: type(r).__name__)
@pytest.mark.parametrize("kind", KINDS, ids=lambda k: k.__name__)
@given(seed=SEEDS, shape=st.tuples(st.integers(1, 7), st.integers(1, 7)))
@settings(max_examples=4, deadline=None)
def test_every_run_keeps_every_invariant(kind: type[Problem], rule, seed: int, shape: tuple[int, int]):
    """One-step inequality, gap >= 0, gap >= h where convex, distances <= D, rank growth, feasibility."""
    assert violations(frank_wolfe(kind.draw(seed, shape), rule, 15)) == []


def test_the_loop_is_the_paper_s():
    """Against Algorithm 2 in three lines of dense algebra."""
    problem = Completion.draw(0, SMALL)
    run = frank_wolfe(problem, Fixed(0.2), 7)
    W, tau = np.zeros(SMALL), problem.constraint.radius
    for i in run:
        G = problem.weights * (W - problem.targets)
        U, s, Vt = np.linalg.svd(G)
        V = -tau * np.outer(U[:, 0], Vt[0])
        assert i.gap == pytest.approx(np.sum(G * W) + tau * s[0], rel=1e-12)
        assert i.distance == pytest.approx(np.linalg.norm(V - W), rel=1e-12)
        assert i.loss == pytest.approx(0.5 * np.sum(problem.weights * (W - problem.targets) ** 2), rel=1e-12)
        assert (i.eps, i.eta, i.lmo_calls) == (0.0, 0.2, 1)
        W = 0.8 * W + 0.2 * V
    assert np.allclose(run.final, W, atol=1e-12)
    assert run.final_loss == pytest.approx(problem.loss(W))


def test_one_record_an_iteration_and_the_caller_hears_each():
    heard: list = []
    run = frank_wolfe(WorstCase(), ShortStep(), 4, on_iteration=heard.append)
    assert heard == run.iterations
    assert [i.t for i in run] == [1, 2, 3, 4]
    assert all(i.seconds >= 0 for i in run)
    assert run.rows()[0]["gap"] == run.column("gap")[0]


def test_the_start_is_not_written_to():
    problem = Completion.draw(0, SMALL)
    start = 0.1 * problem.constraint.sample(np.random.default_rng(0))
    kept = start.copy()
    run = frank_wolfe(problem, ShortStep(), 5, start=start)
    assert np.array_equal(start, kept)
    assert run.column("loss")[0] == problem.loss(start)


def test_the_gap_bounds_the_primal_error_of_a_convex_loss():
    problem = Sensing.draw(0, SMALL)
    run = frank_wolfe(problem, LineSearch(), 60)
    assert np.all(run.column("gap") >= run.column("loss") - problem.minimum - 1e-9)
    assert run.column("gap")[-1] < 0.05 * run.column("gap")[0]


@pytest.mark.parametrize(
    "oracle", [Blunted(0.5), Blunted(0.0), Lazy(), Lanczos(steps=3), Lanczos(steps=20)], ids=repr
)  # fmt: skip
@pytest.mark.parametrize("rule", RULES, ids=lambda r: type(r).__name__)
def test_inexact_oracles_measure_their_own_shortfall(oracle: Oracle, rule):
    """The vertex shows gap - eps, and the true gap lies between that and the gap."""
    problem = Completion.draw(1, SMALL)
    W, K = problem.start, problem.constraint
    run = frank_wolfe(problem, rule, 30, oracle=oracle, seed=3)
    assert violations(run) == []
    ask = oracle.open(K, np.random.default_rng(3))
    for i in run:
        G = problem.gradient(W)
        answer = ask(G, W)
        V = dense(answer.vertex)
        true = np.vdot(G, W) + K.support(-G)
        assert i.eps == pytest.approx(answer.eps)
        assert np.vdot(G, W - V) == pytest.approx(i.gap - i.eps, abs=1e-9)
        assert i.gap - i.eps - 1e-9 <= true <= i.gap + 1e-9
        W = W + i.eta * (V - W)


def test_a_blunted_oracle_is_spoilt_by_no_more_than_asked():
    eps = frank_wolfe(Completion.draw(0, SMALL), ShortStep(), 60, oracle=Blunted(0.3)).column("eps")
    assert 0.1 < eps.max() <= 0.3
    assert (eps > 0).mean() > 0.5


def test_a_lazy_oracle_saves_calls_and_still_converges():
    on_simplex = Completion(np.random.default_rng(0).dirichlet(np.ones(10)), constraint=Simplex(10))
    for problem, calls in ((on_simplex, 30), (Completion.draw(0, (12, 10)), 120)):
        exact = frank_wolfe(problem, ShortStep(), 300)
        lazy = frank_wolfe(problem, ShortStep(), 300, oracle=Lazy())
        assert exact.column("lmo_calls").sum() == 300
        assert lazy.column("lmo_calls").sum() < calls
        assert lazy.final_loss < 0.01 * lazy.column("loss")[0]
        assert violations(lazy) == []


def test_a_lazy_oracle_on_a_sparse_problem_keeps_its_vertices_in_factors():
    """15 iterations at 3000 x 2500, where one dense matrix takes 60 MB."""
    problem = SparseCompletion.skewed(0, (3000, 2500), entries=20_000, rank=2)
    tracemalloc.start()
    run = frank_wolfe(problem, ShortStep(), 15, oracle=Lazy())
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 30e6
    assert violations(run) == []


@pytest.mark.parametrize("shuffled", [False, True])
def test_block_coordinate_moves_one_layer_at_a_time(shuffled: bool):
    K = Product([NuclearBall((3, 2)), NuclearBall((2, 4), radius=2.0), Simplex(3)])
    targets = 2 * K.sample(np.random.default_rng(5))
    problem = Completion(targets, constraint=K)
    before = problem.start
    for t in range(1, 5):
        after = frank_wolfe(problem, ShortStep(), t, oracle=OneBlock(shuffled), seed=1).final
        moved = [not np.array_equal(a, b) for a, b in zip(K.split(before), K.split(after), strict=True)]
        assert sum(moved) <= 1
        if not shuffled:
            assert moved[(t - 1) % 3] == any(moved)
        before = after
    run = frank_wolfe(problem, ShortStep(), 300, oracle=OneBlock(shuffled), seed=1)
    assert violations(run) == []
    # The recorded gap is the whole product's: what the other layers would have given is the answer's eps.
    G = problem.gradient(problem.start)
    assert run.column("gap")[0] == pytest.approx(np.vdot(G, problem.start) + K.support(-G))
    assert run.column("eps")[0] > 0.1 * run.column("gap")[0]
    assert run.column("gap")[-1] < 0.1 * run.column("gap")[0]


@pytest.mark.parametrize("gradient", [Noisy(0.0), Noisy(0.3), Minibatch(20)], ids=repr)
def test_a_noisy_gradient_is_a_measured_shortfall(gradient):
    """The record's gap is the true one, whatever the oracle was asked with."""
    problem = Logistic.draw(0, SMALL)
    run = frank_wolfe(problem, Fixed(), 25, gradient=gradient, seed=2)
    assert violations(run) == []
    first = problem.gradient(problem.start)
    assert run.column("gap")[0] == pytest.approx(np.vdot(first, problem.start) + problem.constraint.support(-first))
    noise = run.column("eps").sum()
    assert noise == pytest.approx(0, abs=1e-12) if gradient == Noisy(0.0) else noise > 1e-4


def test_minibatches_are_drawn_anew_and_are_the_gradient_on_average():
    problem, rng = Sensing.draw(0, SMALL), np.random.default_rng(0)
    W = problem.constraint.sample(rng)
    G = problem.gradient(W)
    drawn = np.array([Minibatch(problem.terms // 2).at(problem, W, G, rng) for _ in range(400)])
    assert len(np.unique(drawn[:, 0, 0])) > 390
    assert np.linalg.norm(drawn.mean(axis=0) - G) < 0.15 * np.linalg.norm(drawn - G, axis=(1, 2)).mean()


def test_minibatches_of_all_terms_are_the_gradient():
    problem = Sensing.draw(0, SMALL)
    whole = frank_wolfe(problem, Fixed(), 10, gradient=Minibatch(problem.terms))
    assert np.allclose(whole.final, frank_wolfe(problem, Fixed(), 10, gradient=Full()).final)


def test_a_drifting_loss_is_followed_by_its_own_gradients():
    """``loss`` is L_t(W_t), and what drifted in between is written down."""
    problem = DriftingCompletion.draw(0, SMALL)
    run = frank_wolfe(problem, ShortStep(), 8)
    after = run.losses_after()
    for earlier, later, end in zip(run.iterations, run.iterations[1:], after, strict=False):
        assert earlier.drift.here == pytest.approx(later.loss - end)
        assert -earlier.drift.down - 1e-9 <= earlier.drift.here <= earlier.drift.up + 1e-9
    assert run.iterations[-1].drift.here == 0.0
    assert run.final_loss == pytest.approx(problem.at(8).loss(run.final))


@pytest.mark.parametrize(("factor", "words"), [(-1.0, "raised the loss from"), (None, "left NuclearBall")])
def test_a_correction_that_breaks_its_promise_is_refused(factor: float | None, words: str):
    """One that raises the loss; one that lowers it outside the set."""

    class Cheat(Correction):
        def apply(self, problem, W, t):
            return problem.targets if factor is None else factor * W

    whole = Completion.draw(0, SMALL)
    problem = Completion(whole.targets, whole.weights, NuclearBall(SMALL, 0.1 * whole.constraint.radius))
    with pytest.raises(ArgumentError, match=words):
        frank_wolfe(problem, ShortStep(), 3, correction=Cheat())


def test_a_correction_is_marked_and_must_only_lower_the_loss():
    class TowardsTruth(Correction):
        def apply(self, problem, W, t):
            return 0.5 * (W + problem.targets) if t % 2 == 0 else W

    problem = Completion.draw(0, SMALL)
    run = frank_wolfe(problem, ShortStep(), 10, correction=TowardsTruth())
    assert run.corrected
    assert violations(run) == []
    assert run.final_loss < frank_wolfe(problem, ShortStep(), 10).final_loss


def test_runs_repeat_bit_for_bit():
    problem = Logistic.draw(0, SMALL)
    runs = [frank_wolfe(problem, Fixed(), 10, oracle=Blunted(0.1), gradient=Minibatch(8), seed=4) for _ in range(2)]
    assert np.array_equal(runs[0].final, runs[1].final)
    other = frank_wolfe(problem, Fixed(), 10, oracle=Blunted(0.1), gradient=Minibatch(8), seed=5)
    assert not np.array_equal(runs[0].final, other.final)


@pytest.mark.parametrize("forged", [{"gap": 99.0}, {"eta": 1.5}, {"eps": -1.0}, {"distance": 1e4}, {"gap": -1.0}, {"rank": 9}])
def test_a_forged_record_is_found(forged: dict):
    run = frank_wolfe(Completion.draw(0, SMALL), ShortStep(), 20)
    assert violations(run) == []
    found = violations(run.altered(4, **forged))
    assert found
    assert any(words.endswith("t = 4") for words in found)


def test_what_is_not_a_number_and_what_lies_too_far_is_found_without_curvature_too():
    run = frank_wolfe(Concave.draw(0, SMALL), ShortStep(), 5)
    assert violations(run.altered(2, distance=1e9)) == ["the vertex lies farther than the diameter at t = 2"]
    assert violations(run.altered(2, gap=float("nan")))


def test_runs_of_other_methods_are_refused():
    with pytest.raises(AssumptionError, match="made by chain"):
        violations(chain(Completion.draw(0, SMALL), TruncatedStep(1), 2))


def test_an_end_outside_the_set_is_found():
    run = frank_wolfe(Completion.draw(0, SMALL), ShortStep(), 5)
    run.final = 3 * run.final + 100
    assert violations(run) == ["the run left its set at t = 6"]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda p: frank_wolfe(p, Fixed(), 0), "`steps` must be a whole number of at least 1, and is 0"),
        (lambda p: frank_wolfe(p, Fixed(), 2.5), "`steps` must be a whole number"),
        (lambda p: frank_wolfe(p, Fixed(), 3, start=np.ones(3)), "must have shape"),
        (lambda p: frank_wolfe(p, Fixed(), 3, start=np.full(SMALL, np.nan)), "must be finite"),
        (lambda p: frank_wolfe(p, Fixed(), 3, start=np.full(SMALL, 1e3)), "`start` lies outside"),
        (lambda p: frank_wolfe(p, Fixed(), 3, gradient=Minibatch(4)), "needs a problem that is a sum"),
        (lambda p: frank_wolfe(p, Fixed(), 3, oracle=OneBlock()), "one layer of a Product"),
        (lambda p: Blunted(-0.1), r"`Blunted\(eps=...\)` must be finite and at least 0"),
        (lambda p: Noisy(float("inf")), r"`Noisy\(deviation=...\)` must be"),
        (lambda p: Minibatch(0), r"`Minibatch\(size=...\)` must be"),
        (lambda p: Lazy(factor=0.5), r"`Lazy\(factor=...\)` must be"),
        (lambda p: Lanczos(tolerance=float("nan")), r"`Lanczos\(tolerance=...\)` must be"),
        (lambda p: frank_wolfe(p, Fixed(), 3, start=SparseCompletion.draw(0, SMALL).start), "must be an array or a LowRank"),
        (lambda p: Lanczos(steps=0), r"`Lanczos\(steps=...\)` must be"),
        (
            lambda p: frank_wolfe(Completion(np.ones(3), constraint=sets.L1Ball(3)), Fixed(), 3, oracle=Lanczos()),
            "answers for a NuclearBall",
        ),
    ],
)
def test_bad_calls_are_refused_by_name(call, words: str):
    with pytest.raises(ArgumentError, match=words):
        call(Completion.draw(0, SMALL))


def test_a_gradient_that_breaks_down_is_refused_by_name():
    class Broken(Completion):
        def gradient(self, W):
            return np.full(W.shape, np.nan)

    with pytest.raises(ArgumentError, match="must be finite"):
        frank_wolfe(Broken(np.ones(SMALL)), Fixed(), 3, oracle=Exact())
