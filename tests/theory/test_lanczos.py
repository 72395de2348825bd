"""Golub-Kahan Lanczos, what it says of its own error, and the oracle that stands on it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse
from scipy.sparse.linalg import svds

from theory.errors import ArgumentError
from theory.frank_wolfe import frank_wolfe
from theory.lanczos import top_singular_pair
from theory.oracles import Answer, Ask, Lanczos, Oracle
from theory.points import inner
from theory.problems import SparseCompletion
from theory.sets import ConvexSet, NuclearBall, SpectralBall
from theory.step_sizes import ShortStep

SEEDS = st.integers(0, 2**32 - 1)
SHAPES = [(40, 30), (30, 40), (1, 7), (7, 1), (1, 1)]


class Watched(Oracle):
    """An oracle whose true shortfall is measured by svds to machine precision, beside the eps that it reports."""

    def __init__(self, oracle: Oracle) -> None:
        self.oracle = oracle
        self.seen: list[tuple[float, float]] = []

    def open(self, K: ConvexSet, rng: np.random.Generator) -> Ask:
        ask = self.oracle.open(K, rng)

        def watch(G, W) -> Answer:
            answer = ask(G, W)
            (top,) = svds(G, k=1, tol=0, rng=0, return_singular_vectors=False)
            self.seen.append((K.radius * float(top) + inner(G, answer.vertex), answer.eps))
            return answer

        return watch


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@given(seed=SEEDS)
@settings(max_examples=10, deadline=None)
def test_as_many_steps_as_the_smaller_side_give_the_top_pair(shape: tuple[int, int], seed: int):
    G = np.random.default_rng(seed).standard_normal(shape)
    pair = top_singular_pair(G, steps=min(shape))
    top = np.linalg.svd(G, compute_uv=False)[0]
    assert pair.sigma == pytest.approx(top, rel=1e-12)
    assert pair.residual <= 1e-10 * top
    assert abs(pair.u @ G @ pair.v) == pytest.approx(top, rel=1e-10)


@given(seed=SEEDS, steps=st.integers(1, 12))
@settings(max_examples=40, deadline=None)
def test_sigma_is_never_above_the_norm_and_the_residual_is_what_it_says(seed: int, steps: int):
    """``sigma = u^T G v <= |G|_op``, ``G v = sigma u`` and ``residual = |G^T u - sigma v|``."""
    G = np.random.default_rng(seed).standard_normal((25, 18))
    pair = top_singular_pair(G, steps, seed=seed)
    assert pair.sigma <= np.linalg.norm(G, 2) * (1 + 1e-12)
    assert np.allclose(G @ pair.v, pair.sigma * pair.u, atol=1e-10)
    assert np.linalg.norm(G.T @ pair.u - pair.sigma * pair.v) == pytest.approx(pair.residual, rel=1e-6, abs=1e-10)
    for vector in (pair.u, pair.v, pair.onward):
        assert np.linalg.norm(vector) == pytest.approx(1.0)


@given(seed=SEEDS, steps=st.integers(1, 12), decay=st.floats(0.0, 2.0))
@settings(max_examples=60, deadline=None)
def test_the_norm_is_at_most_the_upper_bound_for_the_true_overlap(seed: int, steps: int, decay: float):
    """``|G|_op <= upper(|<p, v_1>|)`` for the start p, whatever the spectrum; a smaller overlap gives a larger bound."""
    rng = np.random.default_rng(seed)
    G = rng.standard_normal((25, 18)) * np.arange(1, 19) ** -decay
    start = rng.standard_normal(18)
    _, s, Vt = np.linalg.svd(G)
    overlap = abs(float(Vt[0] @ start)) / float(np.linalg.norm(start))
    pair = top_singular_pair(G, steps, start=start)
    assert s[0] <= pair.upper(overlap) * (1 + 1e-9)
    assert pair.upper(overlap) <= pair.upper(overlap / 10)


def test_a_start_that_hides_the_top_pair_deceives_the_residual_but_not_the_upper_bound():
    """``G = diag(10, 9, 1, ...)`` from a start with 1e-6 of the first: the pair settles on the second."""
    G = np.diag([10.0, 9.0, *np.linspace(0, 1, 30)])
    start = np.r_[1e-6, 1.0, 0.1 * np.ones(30)]
    pair = top_singular_pair(G, steps=4, start=start)
    assert pair.sigma + pair.residual < 10
    assert pair.upper(1e-6 / float(np.linalg.norm(start))) >= 10


def test_upper_bound_closes_in_as_steps_are_added():
    G = np.random.default_rng(0).standard_normal((60, 50))
    excess = [pair.upper(1e-4) - pair.sigma for pair in (top_singular_pair(G, steps) for steps in (5, 10, 20, 50))]
    assert excess == sorted(excess, reverse=True)
    assert excess[-1] <= 1e-9


def test_a_zero_matrix_and_an_invariant_start_end_at_once():
    assert top_singular_pair(np.zeros((4, 3)), steps=3).sigma == 0.0
    assert top_singular_pair(np.zeros((4, 3)), steps=3).upper(0.1) == 0.0
    pair = top_singular_pair(np.diag([3.0, 2.0, 1.0]), steps=3, start=np.array([1.0, 0.0, 0.0]))
    assert (pair.sigma, pair.residual) == (3.0, 0.0)


def test_room_grows_with_the_steps_that_are_taken():
    """More steps than are made room for at first, to a residual that needs them all."""
    G = sparse.csr_array(np.diag(np.linspace(1, 2, 90)))
    pair = top_singular_pair(G, steps=90, tolerance=1e-10)
    assert pair.sigma == pytest.approx(2.0, rel=1e-12)
    assert len(pair.bidiagonal) > 32


@pytest.mark.parametrize("start", [np.ones(3), np.zeros(2), np.array([1.0, np.nan])], ids=["shape", "zero", "nan"])
def test_a_start_that_cannot_be_normalised_is_refused(start: np.ndarray):
    with pytest.raises(ArgumentError, match="`start` must be a finite vector"):
        top_singular_pair(np.eye(2), steps=1, start=start)


@pytest.mark.parametrize("steps", [5, 10])
@pytest.mark.parametrize(
    "problem",
    [SparseCompletion.skewed(1, (120, 90), entries=2500, rank=4), SparseCompletion.draw(2)],
    ids=["skewed", "uniform"],
)
def test_eps_is_an_honest_upper_bound_along_a_warm_started_run(problem: SparseCompletion, steps: int):
    """``<V_t, G_t> <= min_K <., G_t> + eps_t``; at most a share of `doubt` may fail, and none does here."""
    oracle = Watched(Lanczos(steps))
    frank_wolfe(problem, ShortStep(), 150, oracle=oracle)
    shortfall, eps = np.array(oracle.seen).T
    assert (shortfall <= eps + 1e-9 * problem.constraint.radius).all()
    assert shortfall.mean() < 0.1 * eps.mean()


def test_remembering_all_ritz_vectors_serves_better_than_the_last_vertex():
    """Median true shortfall, in shares of the gap, of warm starts against starts drawn afresh."""
    problem = SparseCompletion.skewed(0, (120, 90), entries=2500, rank=4)

    class Forgetful(Oracle):
        def open(self, K: ConvexSet, rng: np.random.Generator) -> Ask:
            return lambda G, W: Lanczos(10).open(K, rng)(G, W)

    medians = []
    for oracle in (Watched(Lanczos(10)), Watched(Forgetful())):
        run = frank_wolfe(problem, ShortStep(), 100, oracle=oracle)
        medians.append(np.median(np.array(oracle.seen)[:, 0] / run.column("gap")))
    assert medians[0] < medians[1] / 2


def test_more_doubt_reports_less_eps():
    K, G = NuclearBall((40, 30)), np.random.default_rng(0).standard_normal((40, 30))
    eps = [Lanczos(5, doubt=doubt).open(K, np.random.default_rng(0))(G, None).eps for doubt in (1e-6, 1e-4, 1e-2)]
    assert eps[0] > eps[1] > eps[2] > 0


def test_lanczos_answers_for_the_nuclear_ball_alone():
    with pytest.raises(ArgumentError, match=r"use `Exact\(\)`"):
        Lanczos().open(SpectralBall((3, 2)), np.random.default_rng(0))


@pytest.mark.parametrize("arguments", [{"steps": 0}, {"noise": 0.0}, {"doubt": 0.0}, {"doubt": 2.0}], ids=str)
def test_settings_without_meaning_are_refused(arguments: dict):
    with pytest.raises(ArgumentError, match=rf"Lanczos\({next(iter(arguments))}=\.\.\.\)"):
        Lanczos(**arguments)
