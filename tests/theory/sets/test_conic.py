"""The oracles against a conic solver that knows nothing of singular vectors."""

from __future__ import annotations

import numpy as np
import pytest

from theory import sets
from theory.points import inner
from theory.sets import ConvexSet

cvxpy = pytest.importorskip("cvxpy", reason="the conic solver comes with the dependency group certify")


def constraints(K: ConvexSet, X) -> list:
    """K, written as a conic program."""
    if isinstance(K, sets.NuclearBall):
        return [cvxpy.normNuc(X) <= K.radius]
    if isinstance(K, sets.SpectralBall):
        return [cvxpy.sigma_max(X) <= K.bound]
    if isinstance(K, sets.FrobeniusBall):
        return [cvxpy.norm(cvxpy.vec(X, order="C")) <= K.radius]
    if isinstance(K, sets.L1Ball):
        return [cvxpy.sum(cvxpy.abs(X)) <= K.radius]
    if isinstance(K, sets.Simplex):
        return [X >= 0, cvxpy.sum(X) == K.scale]
    if isinstance(K, sets.SupportBall):
        # |X|^2 = inf { tr(X^T S^-1 X) : 0 < S <= I, tr S <= r }  (McDonald, Pontil and Stamos 2014)
        d = K.shape[0]
        S = cvxpy.Variable((d, d), PSD=True)
        return [cvxpy.matrix_frac(X, S) <= K.radius**2, np.eye(d) - S >> 0, cvxpy.trace(S) <= K.atom_rank]
    assert isinstance(K, sets.Product)
    parts, start = [], 0
    for layer in K.sets:
        size = int(np.prod(layer.shape))
        block = X[start : start + size]
        parts += constraints(layer, cvxpy.reshape(block, layer.shape, order="C") if len(layer.shape) == 2 else block)
        start += size
    return parts


EXAMPLES = [
    sets.NuclearBall((4, 3), radius=1.5), sets.SpectralBall((3, 4), bound=2.0), sets.FrobeniusBall((3, 2), radius=2.0),
    sets.L1Ball((2, 3), radius=3.0), sets.Simplex(4, scale=2.0), sets.SupportBall((4, 3), rank=1),
    sets.SupportBall((4, 3), radius=2.0, rank=2), sets.SupportBall((3, 4), rank=3),
    sets.Product([sets.NuclearBall((3, 2)), sets.Simplex(3)]),
]  # fmt: skip


@pytest.mark.parametrize("K", EXAMPLES, ids=repr)
def test_lmo_agrees_with_conic_solver(K: ConvexSet):
    """``<G, lmo(G)> = min_K <G, .>`` to the solver's accuracy."""
    for seed in range(2):
        G = np.random.default_rng(seed).standard_normal(K.shape)
        X = cvxpy.Variable(K.shape)
        problem = cvxpy.Problem(cvxpy.Minimize(cvxpy.sum(cvxpy.multiply(G, X))), constraints(K, X))
        problem.solve(solver="CLARABEL")
        assert inner(G, K.lmo(G)) == pytest.approx(problem.value, abs=1e-6)


@pytest.mark.parametrize("K", [K for K in EXAMPLES if isinstance(K, sets.SupportBall)], ids=repr)
def test_support_norm_agrees_with_conic_solver(K: sets.SupportBall):
    """The formula of Argyriou, Foygel and Srebro against ``max { <X, G> : |G|_{F,r} <= 1 }``, a sum of eigenvalues."""
    X = np.random.default_rng(2).standard_normal(K.shape)
    G, P = cvxpy.Variable(K.shape), cvxpy.Variable((K.shape[1], K.shape[1]), symmetric=True)
    # P >= G^T G, and the r largest eigenvalues of P sum to at most 1
    lift = cvxpy.bmat([[P, G.T], [G, np.eye(K.shape[0])]])
    problem = cvxpy.Problem(
        cvxpy.Maximize(cvxpy.sum(cvxpy.multiply(X, G))), [lift >> 0, cvxpy.lambda_sum_largest(P, K.atom_rank) <= 1]
    )
    problem.solve(solver="CLARABEL")
    assert K.norm(X) == pytest.approx(problem.value, rel=1e-6)
