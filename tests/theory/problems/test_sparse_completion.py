"""Completion on factors and observed entries is completion, and never makes a matrix."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from scipy import sparse

from theory.errors import ArgumentError
from theory.frank_wolfe import frank_wolfe
from theory.oracles import Answer, Ask, Exact, Lanczos, Oracle
from theory.points import LowRank
from theory.problems import Completion, ObservedPoint, SparseCompletion, audit
from theory.problems.observed_point import Entries
from theory.sets import ConvexSet, NuclearBall
from theory.step_sizes import Fixed, LineSearch, OpenLoop, ShortStep, StepSize

RULES = [ShortStep(), OpenLoop(), Fixed(0.1)]


class DenseSVD(Oracle):
    """The same vertices for both forms of a gradient: what is left to differ is the point."""

    def open(self, K: ConvexSet, rng: np.random.Generator) -> Ask:
        def ask(G, W) -> Answer:
            U, _, Vt = np.linalg.svd(G.toarray() if sparse.issparse(G) else G, full_matrices=False)
            return Answer(LowRank(-U[:, :1], np.array([K.radius]), Vt[:1].T), 0.0)

        return ask


def twins(seed: int = 0, shape: tuple[int, int] = (60, 50)) -> tuple[SparseCompletion, Completion]:
    return SparseCompletion.draw(seed, shape), Completion.draw(seed, shape)


def repeated(seed: int = 0) -> tuple[SparseCompletion, Completion]:
    """Observations that come several times, in any order."""
    rng, shape, n = np.random.default_rng(seed), (12, 9), 200
    i, j, y = rng.integers(shape[0], size=n), rng.integers(shape[1], size=n), rng.standard_normal(n)
    return SparseCompletion(i, j, y, shape, radius=5.0), Completion.from_entries(i, j, y, NuclearBall(shape, 5.0))


@pytest.mark.parametrize("rule", RULES, ids=repr)
@pytest.mark.parametrize("pair", [twins, repeated], ids=["once", "repeated"])
def test_run_is_that_of_dense_completion(pair, rule: StepSize):
    """Losses, gaps, step sizes and distances agree to 1e-10, step by step."""
    sparse_run, dense_run = (frank_wolfe(problem, rule, 25, oracle=DenseSVD()) for problem in pair())
    for name in ("loss", "gap", "eta", "distance"):
        ours, theirs = sparse_run.column(name), dense_run.column(name)
        assert np.allclose(ours, theirs, rtol=1e-10, atol=1e-10 * np.abs(theirs).max()), name
    assert np.allclose(sparse_run.final.dense(), dense_run.final, atol=1e-10)
    assert sparse_run.final_loss == pytest.approx(dense_run.final_loss, rel=1e-10)


def test_exact_oracle_on_products_gives_the_dense_run():
    sparse_run, dense_run = (frank_wolfe(problem, ShortStep(), 20, oracle=Exact()) for problem in twins(1))
    for name in ("loss", "gap", "eta", "distance"):
        assert np.allclose(sparse_run.column(name), dense_run.column(name), rtol=1e-8), name


@pytest.mark.parametrize("pair", [twins, repeated], ids=["once", "repeated"])
def test_constants_are_those_of_dense_completion(pair):
    ours, theirs = (problem.constants() for problem in pair())
    for name in ("beta", "diameter", "radius", "initial_gap", "oscillation", "start_distance"):
        assert getattr(ours, name) == pytest.approx(getattr(theirs, name), rel=1e-10), name


def test_repeated_observations_add_their_weights():
    problem, _ = repeated()
    assert problem.beta == problem.multiplicities.max() > 1
    assert problem.multiplicities.sum() == 200
    assert audit(problem).holds


def test_arrays_are_answered_with_arrays():
    problem, dense = twins()
    W = problem.constraint.sample(np.random.default_rng(0))
    assert problem.loss(W) == pytest.approx(dense.loss(W), rel=1e-12)
    assert np.allclose(problem.gradient(W), dense.gradient(W))
    assert problem.line_curvature(W) == pytest.approx(dense.line_curvature(W), rel=1e-12)


def test_values_and_norm_follow_from_the_last_ones_as_from_the_factors():
    """After 200 steps, ``W_ij`` at the entries and ``|W|_F^2`` are still those of the factors."""
    problem = SparseCompletion.skewed(0, (120, 90), entries=2500, rank=4)
    W = frank_wolfe(problem, ShortStep(), 200, oracle=Lanczos(8)).final
    dense = W.dense()
    assert np.allclose(W.values, dense[W.entries.rows, W.entries.columns], atol=1e-11 * problem.constraint.radius)
    assert W.square == pytest.approx(float(np.square(dense).sum()), rel=1e-11)
    assert W.nuclear_norm() == pytest.approx(np.linalg.norm(dense, "nuc"), rel=1e-11)


def test_point_agrees_with_its_array_in_every_operation():
    problem = SparseCompletion.draw(0, (8, 6))
    rng = np.random.default_rng(0)
    X = LowRank(rng.standard_normal((8, 3)), rng.random(3), rng.standard_normal((6, 3)))
    V = LowRank(rng.standard_normal((8, 2)), rng.random(2), rng.standard_normal((6, 2)))
    W = ObservedPoint.of(X, problem.entries)
    after, G = W.toward(V, 0.3), problem.gradient(W)
    assert np.allclose(after.dense(), 0.7 * X.dense() + 0.3 * V.dense())
    assert np.allclose(after.values, after.dense()[W.entries.rows, W.entries.columns])
    assert W.distance(V) == pytest.approx(np.linalg.norm(V.dense() - X.dense()))
    assert after.inner(G) == pytest.approx(np.vdot(G.toarray(), after.dense()))
    assert after.inner(G.toarray()) == pytest.approx(after.inner(G))
    assert np.allclose(after.decomposed().dense(), after.dense())


def test_a_run_changes_no_older_point():
    """Two runs that part from one point: neither sees the other, and the point stays as it was."""
    problem = SparseCompletion.draw(0)
    W = frank_wolfe(problem, ShortStep(), 5).final
    before = (W.dense(), W.values.copy(), W.square, W.rank())
    first, second = (frank_wolfe(problem, rule, 5, start=W).final for rule in (ShortStep(), OpenLoop()))
    assert np.array_equal(W.dense(), before[0])
    assert np.array_equal(W.values, before[1])
    assert (W.square, W.rank()) == before[2:]
    assert (first.rank(), second.rank()) == (10, 5)  # the second began with a full step


def test_a_gradient_keeps_its_values_when_the_next_one_is_taken():
    problem = SparseCompletion.draw(0)
    G = problem.gradient(problem.start)
    data = G.data.copy()
    problem.gradient(frank_wolfe(problem, ShortStep(), 2).final)
    assert np.array_equal(G.data, data)
    assert G.indices is problem.gradient(problem.start).indices


def test_points_stay_in_the_ball_and_gain_one_atom_a_step():
    problem = SparseCompletion.skewed(0, (120, 90), entries=2500, rank=4)
    run = frank_wolfe(problem, ShortStep(), 30, oracle=Lanczos(5))
    assert run.column("rank").tolist() == list(range(30))
    assert np.linalg.matrix_rank(run.final.dense()) == run.final.rank() == 30
    assert run.final.nuclear_norm() <= problem.constraint.radius * (1 + 1e-12)


def test_a_full_step_forgets_all_older_atoms():
    problem = SparseCompletion.draw(0)
    V = problem.constraint.lmo(problem.gradient(problem.start))
    W = frank_wolfe(problem, ShortStep(), 5).final
    assert W.toward(V, 1.0).rank() == 1
    assert W.toward(V, 0.0) is W


def test_no_array_of_the_matrix_s_size_is_ever_made():
    """200,000 x 100,000 would take 160 GB; the run, its constants and its exact vertices need less than 200 MB."""
    rng, n, (d, k) = np.random.default_rng(0), 30_000, (200_000, 100_000)
    tracemalloc.start()
    problem = SparseCompletion(rng.integers(d, size=n), rng.integers(k, size=n), rng.standard_normal(n), (d, k), radius=50.0)
    run = frank_wolfe(problem, ShortStep(), 8, oracle=Lanczos(6))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert run.final_loss < run.column("loss")[0]
    assert peak < 200e6


@pytest.mark.parametrize("kind", [sparse.csr_array, sparse.coo_matrix, sparse.csc_array], ids=lambda kind: kind.__name__)
def test_a_sparse_matrix_of_ratings_is_its_observations(kind):
    """Zeros that are stored were seen."""
    ratings = kind(sparse.coo_array((np.array([2.0, 0.0, 5.0]), ([0, 1, 1], [1, 0, 2])), shape=(2, 3)))
    problem = SparseCompletion.from_matrix(ratings, radius=4.0)
    assert len(problem.entries) == 3
    assert problem.gradient(problem.start).toarray().tolist() == [[0.0, -2.0, 0.0], [0.0, 0.0, -5.0]]
    assert problem.beta == 1.0


def test_order_of_the_observations_does_not_matter():
    rng = np.random.default_rng(0)
    keys = rng.choice(63, 40, replace=False)
    i, j, y = keys // 9, keys % 9, rng.standard_normal(40)
    shuffled = rng.permutation(40)
    losses = [
        frank_wolfe(SparseCompletion(i[o], j[o], y[o], (7, 9), 3.0), ShortStep(), 10).column("loss")
        for o in (np.arange(40), shuffled)
    ]
    assert np.array_equal(*losses)


def test_skewed_observations_are_distinct_skewed_and_repeatable():
    problem, again = (SparseCompletion.skewed(3, (300, 200), entries=6000, rank=5) for _ in range(2))
    assert np.array_equal(problem.targets, again.targets)
    assert np.array_equal(problem.entries.columns, again.entries.columns)
    assert len(problem.entries) == 6000
    assert problem.beta == 1.0
    for entries in (problem.entries, problem.entries.transposed[0]):
        assert entries.counts.max() > 4 * np.median(entries.counts)
    assert np.var(problem.targets) == pytest.approx(1.25, rel=0.2)


def test_transposed_entries_are_the_same_positions():
    entries = SparseCompletion.draw(0, (8, 6)).entries
    turned, order = entries.transposed
    assert np.array_equal(turned.rows, entries.columns[order])
    assert np.array_equal(turned.columns, entries.rows[order])


@pytest.mark.parametrize("start", ["array", "factors"])
def test_a_start_may_be_an_array_or_factors(start: str):
    problem = SparseCompletion.draw(0)
    V = problem.constraint.lmo(np.random.default_rng(0).standard_normal(problem.constraint.shape))
    W = problem.admit(V if start == "factors" else V.dense())
    assert np.allclose(W.dense(), V.dense())
    assert problem.constants(V).start_distance == pytest.approx(problem.constraint.radius)


def test_a_start_outside_the_ball_or_of_another_problem_is_refused():
    problem = SparseCompletion.draw(0)
    V = problem.constraint.lmo(np.random.default_rng(0).standard_normal(problem.constraint.shape))
    with pytest.raises(ArgumentError, match="`start` lies outside"):
        problem.admit(LowRank(V.U, 1.1 * V.s, V.V))
    with pytest.raises(ArgumentError, match="`start` lies outside"):
        problem.admit(ObservedPoint.of(LowRank(V.U, 1.1 * V.s, V.V), problem.entries))
    with pytest.raises(ArgumentError, match="must be a point of this problem"):
        problem.admit(SparseCompletion.draw(1).start)
    with pytest.raises(ArgumentError, match="must have shape"):
        problem.admit(LowRank(V.U[:-1], V.s, V.V))


@pytest.mark.parametrize(
    ("rows", "columns", "values", "words"),
    [
        ([0, 1], [0], [1.0, 2.0], "as long as each other"),
        ([], [], [], "not empty"),
        ([0, 2], [0, 1], [1.0, 2.0], r"`rows` must lie in 0\.\.1"),
        ([0, 1], [0, -1], [1.0, 2.0], r"`columns` must lie in 0\.\.2"),
        ([0.5], [0], [1.0], "`rows` must hold whole numbers"),
        ([0], [0], [np.nan], "`values` must be finite"),
    ],
    ids=["lengths", "empty", "row", "column", "fraction", "nan"],
)  # fmt: skip
def test_observations_that_make_no_sense_are_refused(rows, columns, values, words: str):
    with pytest.raises(ArgumentError, match=words):
        SparseCompletion(rows, columns, values, (2, 3), radius=1.0)


def test_a_dense_matrix_of_ratings_and_too_many_entries_are_refused():
    with pytest.raises(ArgumentError, match="`ratings` must be a scipy sparse matrix"):
        SparseCompletion.from_matrix(np.ones((2, 2)), radius=1.0)
    with pytest.raises(ArgumentError, match="`entries` must be at most a quarter"):
        SparseCompletion.skewed(0, (10, 10), entries=26)


def test_blocks_cover_every_entry_once_and_end_with_rows():
    rng = np.random.default_rng(0)
    keys = np.sort(rng.choice(400 * 400, 100_000, replace=False))
    entries = Entries(keys // 400, keys % 400, (400, 400))
    assert len(entries.blocks) > 1
    assert [of_block.start for _, of_block in entries.blocks[1:]] == [of_block.stop for _, of_block in entries.blocks[:-1]]
    assert all(entries.counts[of_rows].sum() == of_block.stop - of_block.start for of_rows, of_block in entries.blocks)
    X = LowRank(rng.standard_normal((400, 1)), np.ones(1), rng.standard_normal((400, 1)))
    onto = rng.standard_normal(len(entries))
    assert np.allclose(entries.values(X, onto, 0.5), X.dense().ravel()[keys] + 0.5 * onto)


def test_line_search_is_that_of_the_dense_twin():
    """The curvature along a segment comes from the observed entries: no search is needed."""
    sparse_run = frank_wolfe(SparseCompletion.draw(0, (12, 10)), LineSearch(), 15)
    dense_run = frank_wolfe(Completion.draw(0, (12, 10)), LineSearch(), 15)
    assert np.allclose(sparse_run.column("eta"), dense_run.column("eta"), rtol=1e-9)
    problem = SparseCompletion.draw(0, (12, 10))
    W, V = sparse_run.final, problem.constraint.lmo(np.eye(12, 10))
    assert problem.segment_curvature(W, V) == pytest.approx(problem.line_curvature(V.dense() - W.dense()), rel=1e-9)
