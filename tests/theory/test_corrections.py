"""A correction lowers the loss inside the set; a sweep over the factors does."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from theory.corrections import FactorSweep
from theory.errors import ArgumentError
from theory.frank_wolfe import frank_wolfe
from theory.oracles import Lanczos
from theory.points import LowRank
from theory.problems import Completion, ObservedPoint, SparseCompletion
from theory.step_sizes import ShortStep

SWEEPS = [FactorSweep(every=4), FactorSweep(sweeps=3, every=2), FactorSweep(every=3, rank=2)]


def skewed(radius: float = 1.0) -> SparseCompletion:
    """An instance whose ball is smaller or larger than the one that holds the planted matrix."""
    made = SparseCompletion.skewed(0, (120, 90), entries=2500, rank=4)
    return SparseCompletion(made.entries.rows, made.entries.columns, made.targets, (120, 90), radius * made.constraint.radius)


def repeated() -> SparseCompletion:
    rng, n = np.random.default_rng(0), 600
    return SparseCompletion(rng.integers(30, size=n), rng.integers(20, size=n), rng.standard_normal(n), (30, 20), radius=8.0)


PROBLEMS = {"binding": skewed(0.2), "planted": skewed(), "loose": skewed(50.0), "repeated": repeated()}


@pytest.mark.parametrize("sweep", SWEEPS, ids=repr)
@pytest.mark.parametrize("name", PROBLEMS)
def test_sweep_never_raises_the_loss_and_stays_in_the_ball(name: str, sweep: FactorSweep):
    problem = PROBLEMS[name]
    W = problem.start
    for t in range(1, 25):
        V = problem.constraint.lmo(problem.gradient(W))
        stepped = W.toward(V, 1 / (t + 10))
        W = sweep.apply(problem, stepped, t)
        assert problem.loss(W) <= problem.loss(stepped)
        assert np.linalg.norm(W.dense(), "nuc") <= problem.constraint.radius * (1 + 1e-9)
        assert (W is stepped) or t % sweep.every == 0


@pytest.mark.parametrize("name", PROBLEMS)
def test_swept_point_is_what_its_factors_say(name: str):
    """Values at the entries, ``|W|_F^2`` and the loss are those of the matrix."""
    problem = PROBLEMS[name]
    run = frank_wolfe(problem, ShortStep(), 8, oracle=Lanczos(10), correction=FactorSweep(every=4))
    W, dense = run.final, run.final.dense()
    assert np.allclose(W.values, dense[W.entries.rows, W.entries.columns], atol=1e-10 * np.abs(dense).max())
    assert W.square == pytest.approx(float(np.square(dense).sum()), rel=1e-10)
    assert run.final_loss == pytest.approx(problem.loss(dense), rel=1e-8)


def test_swept_run_is_marked_and_ends_far_below_the_plain_one():
    plain, swept = (
        frank_wolfe(PROBLEMS["planted"], ShortStep(), 40, oracle=Lanczos(10), correction=correction)
        for correction in (None, FactorSweep(every=10))
    )
    assert (plain.corrected, swept.corrected) == (False, True)
    assert swept.final_loss < plain.final_loss / 2
    assert (swept.losses_after() <= swept.column("loss") * (1 + 1e-12)).all()


def test_swept_gap_still_bounds_the_error():
    """``L(W_t) - L(X) <= g_t`` for every X of the ball: here for the swept run's own end."""
    run = frank_wolfe(PROBLEMS["binding"], ShortStep(), 40, correction=FactorSweep(every=5))
    assert (run.column("loss") - run.final_loss <= run.column("gap") * (1 + 1e-9)).all()


def test_sweep_solves_a_matrix_of_the_rank_it_keeps():
    """Everything observed and a ball that does not bind: one alternation finds the top factors of a rank-2 matrix."""
    rng = np.random.default_rng(0)
    Y = rng.standard_normal((12, 2)) @ rng.standard_normal((2, 9))
    i, j = np.divmod(np.arange(108), 9)
    problem = SparseCompletion(i, j, Y.ravel(), (12, 9), radius=2 * float(np.linalg.norm(Y, "nuc")))
    start = ObservedPoint.of(
        LowRank(rng.standard_normal((12, 2)), np.full(2, 1e-3), rng.standard_normal((9, 2))), problem.entries
    )
    assert problem.loss(FactorSweep(sweeps=20, every=1).apply(problem, start, 1)) < 1e-6 * problem.loss(start)


def test_rank_is_cut_to_what_was_asked_for():
    problem = PROBLEMS["planted"]
    W = frank_wolfe(problem, ShortStep(), 10, oracle=Lanczos(10)).final
    assert FactorSweep(every=10, rank=3).apply(problem, W, 10).rank() == 3
    assert FactorSweep(every=10).apply(problem, W, 10).rank() <= 10


def test_zero_is_left_alone():
    problem = PROBLEMS["planted"]
    W = problem.start
    assert FactorSweep(every=1).apply(problem, W, 1) is W


def test_a_sweep_makes_no_matrix():
    """20,000 x 10,000 would take 1.6 GB."""
    rng, n, (d, k) = np.random.default_rng(0), 20_000, (20_000, 10_000)
    problem = SparseCompletion(rng.integers(d, size=n), rng.integers(k, size=n), rng.standard_normal(n), (d, k), radius=100.0)
    W = frank_wolfe(problem, ShortStep(), 3, oracle=Lanczos(5)).final
    tracemalloc.start()
    swept = FactorSweep(every=1).apply(problem, W, 1)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert problem.loss(swept) < problem.loss(W)
    assert peak < 50e6


def test_sweep_refuses_points_without_factors():
    problem = Completion.draw(0)
    with pytest.raises(ArgumentError, match="corrects an ObservedPoint of a SparseCompletion"):
        FactorSweep().apply(problem, problem.start, 1)
    sparse = SparseCompletion.draw(0)
    with pytest.raises(ArgumentError, match="corrects an ObservedPoint of a SparseCompletion"):
        FactorSweep().apply(sparse, sparse.start.dense(), 1)


@pytest.mark.parametrize("arguments", [{"sweeps": 0}, {"every": 0}, {"rank": 0}], ids=str)
def test_counts_below_one_are_refused(arguments: dict):
    with pytest.raises(ArgumentError, match=rf"FactorSweep\({next(iter(arguments))}=\.\.\.\)"):
        FactorSweep(**arguments)
