"""The nuclear-norm ball: its vertices are the rank-one knots."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
from scipy import sparse
from scipy.sparse.linalg import LinearOperator

from theory.errors import ArgumentError, ConvergenceError
from theory.lanczos import top_singular_pair
from theory.points import Array, LowRank
from theory.sets.convex_set import NormBall, matrix_shape
from theory.sets.simplex import project_onto_simplex

RELATIVE_RESIDUAL, ACCEPTED_RESIDUAL = 1e-12, 1e-6
"""Where the oracle for sparse matrices and operators stops, and what it accepts where singular values lie too close for that.
Some singular value lies within the residual of the answer's; where the others are farther away, within its square over that
distance.
"""
STEPS, RESTARTS = 60, 50
"""Lanczos vectors kept at a time, ``60 (d + k)`` numbers, and how often it starts again from its best one."""


class NuclearBall(NormBall):
    """``{X : |X|_* <= radius}``, the sum of the singular values bounded.

    With ``G = sum_i s_i u_i v_i^T``: ``lmo(G) = -radius u_1 v_1^T``, ``support(G) = radius |G|_op``. Gradients may be arrays,
    scipy sparse matrices or linear operators; of the last two only products are taken, never a dense copy.

    Args:
        shape: ``(rows, columns)``.
        radius: bound of the nuclear norm.

    Example:
        >>> ball = NuclearBall((2, 2), radius=3.0)
        >>> V = ball.lmo(np.diag([2.0, 1.0]))
        >>> V.dense().tolist()
        [[-3.0, 0.0], [0.0, 0.0]]

    Source: Jaggi 2013, section 4.3.
    """

    shape: tuple[int, int]

    def __init__(self, shape: Sequence[int], radius: float = 1.0) -> None:
        super().__init__(matrix_shape("NuclearBall", shape), radius)

    def lmo(self, G: Any) -> LowRank:
        """``-radius u_1 v_1^T``, in factors."""
        u, _, v = self._top(G)
        return LowRank(-u[:, None], np.array([self.radius]), v[:, None])

    def norm(self, X: Array) -> float:
        """``|X|_*``."""
        return float(np.linalg.svd(X, compute_uv=False).sum())

    def dual_norm(self, G: Any) -> float:
        """``|G|_op``."""
        if _by_products(G):
            return self._top(G)[1]
        return float(np.linalg.svd(self.gradient(G), compute_uv=False)[0])

    def project(self, X: Array) -> Array:
        """The nearest point of the ball: the singular values are projected onto the l1 ball.

        Args:
            X: a matrix.

        Returns:
            A matrix of the set.
        """
        U, s, Vt = np.linalg.svd(self.gradient(X), full_matrices=False)
        return X if s.sum() <= self.radius else (U * project_onto_simplex(s, self.radius)) @ Vt

    @classmethod
    def examples(cls) -> Sequence[Self]:
        """A unit ball and a larger one."""
        return [cls((4, 3)), cls((3, 5), radius=2.5)]

    def _top(self, G: Any) -> tuple[Array, float, Array]:
        """The top singular triplet."""
        if _by_products(G):
            if G.shape != self.shape:
                raise ArgumentError(f"a gradient for {self!r} must have shape {self.shape}, and has {G.shape}.")
            if np.dtype(G.dtype).kind == "c":
                raise ArgumentError(f"a gradient for {self!r} must hold real numbers, and holds {G.dtype}.")
            # Other sparse formats have slow products, or, at one row, wrong ones.
            G = G.tocsr() if sparse.issparse(G) and G.format not in {"csr", "csc"} else G
            pair = top_singular_pair(G, STEPS, tolerance=RELATIVE_RESIDUAL)
            for _ in range(RESTARTS):
                if pair.residual <= RELATIVE_RESIDUAL * pair.sigma:
                    break
                pair = top_singular_pair(G, STEPS, start=pair.v, tolerance=RELATIVE_RESIDUAL)
            if pair.residual > ACCEPTED_RESIDUAL * pair.sigma:
                raise ConvergenceError(
                    f"the oracle of {self!r} did not settle: relative residual {pair.residual / pair.sigma:.0e}; "
                    "use `Lanczos()`, which answers after a few steps and says how far it may be off."
                )
            return pair.u, pair.sigma, pair.v
        U, s, Vt = np.linalg.svd(self.gradient(G), full_matrices=False)
        return U[:, 0], float(s[0]), Vt[0]


def _by_products(G: Any) -> bool:
    return sparse.issparse(G) or isinstance(G, LinearOperator)
