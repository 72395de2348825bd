"""Testbed b: matrix sensing by rank-one measurements."""

from __future__ import annotations

from typing import Self

import numpy as np

from theory.errors import ArgumentError
from theory.points import Array, Indices, real_array
from theory.problems.completion import low_rank
from theory.problems.problem import FiniteSum
from theory.problems.projected_gradient import minimise
from theory.sets import NuclearBall


class Sensing(FiniteSum):
    """``L(W) = 1/(2m) sum_i (a_i^T W b_i - y_i)^2`` on the nuclear ball.

    beta is the largest eigenvalue of the m x m Gram matrix of the measurements over m; as
    ``<a_i b_i^T, a_j b_j^T> = (a_i^T a_j) (b_i^T b_j)``, that is ``lambda_max((A A^T) o (B B^T))/m``. Convex, quadratic, smooth
    everywhere; only products are taken.

    Args:
        A: left measurement vectors, ``(m, d)``.
        B: right ones, ``(m, k)``.
        y: what was measured, ``(m,)``.
        radius: of the nuclear ball.
    """

    convex = True
    everywhere = True

    def __init__(self, A: Array, B: Array, y: Array, radius: float) -> None:
        A, B, y = real_array("`A`", A, axes=2), real_array("`B`", B, axes=2), real_array("`y`", y, axes=1)
        if not len(A) == len(B) == len(y):
            raise ArgumentError(f"`A`, `B` and `y` must have one row a measurement, and have {len(A)}, {len(B)} and {len(y)}.")
        self.A, self.B, self.y, self.terms = A, B, y, len(y)
        self.constraint = NuclearBall((A.shape[1], B.shape[1]), radius)
        self.beta = float(np.linalg.eigvalsh((A @ A.T) * (B @ B.T))[-1]) / self.terms
        self.lowest = 0.0

    def loss(self, W: Array) -> float:
        """``1/(2m) |residual|^2``."""
        return 0.5 * float(np.mean(np.square(self._measure(W) - self.y)))

    def batch_gradient(self, W: Array, rows: Indices) -> Array:
        """``A^T diag(residual) B/m``."""
        A, B = self.A[rows], self.B[rows]
        residual = np.einsum("md,md->m", A @ W, B) - self.y[rows]
        return A.T @ (residual[:, None] * B) / len(rows)

    def line_curvature(self, direction: Array) -> float:
        """``mean (a_i^T direction b_i)^2``."""
        return float(np.mean(np.square(self._measure(direction))))

    def solution(self) -> Array | None:
        """By projected gradient."""
        return minimise(self)

    @classmethod
    def draw(cls, seed: int = 0, shape: tuple[int, int] | None = None) -> Self:
        """Twice as many measurements as a rank-2 matrix has freedoms, of a matrix on the ball's boundary."""
        rng = np.random.default_rng(seed)
        d, k = shape or (30, 20)
        m = 4 * (d + k)
        W = low_rank(rng, (d, k), rank=min(2, d, k))
        A, B = rng.standard_normal((m, d)), rng.standard_normal((m, k))
        return cls(A, B, np.einsum("md,md->m", A @ W, B), float(np.linalg.svd(W, compute_uv=False).sum()))

    def _measure(self, W: Array) -> Array:
        return np.einsum("md,md->m", self.A @ W, self.B)
