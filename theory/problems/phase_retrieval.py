"""Testbed g: phase retrieval, whose smoothness holds on the set and nowhere else."""

from __future__ import annotations

from typing import Any, Self

import numpy as np

from theory.errors import ArgumentError
from theory.points import Array, Indices, dense, real_array
from theory.problems.problem import FiniteSum
from theory.sets import NuclearBall


class PhaseRetrieval(FiniteSum):
    """``L(W) = 1/(4m) sum_i (|W^T a_i|^2 - y_i)^2`` with y >= 0, on the nuclear ball of radius R.

    Along D the curvature is ``mean [(|W^T a|^2 - y) |D^T a|^2 + 2 (a^T W D^T a)^2] <= mean 3 |W|^2 |a|^2 |D^T a|^2``, and
    ``|W|_F <= R`` on the ball: ``beta = 3 R^2 lambda_max(mean |a|^2 a a^T)``. It grows with R: no constant holds everywhere. W
    = 0 is a saddle, so runs start at a vertex.

    Args:
        A: measurement vectors, ``(m, d)``.
        y: measured energies, ``(m,)``, not negative.
        columns: k, of W.
        radius: of the nuclear ball.
        planted: a point of the ball with ``L = 0``, where there is one.
    """

    lowest = 0.0

    def __init__(self, A: Array, y: Array, columns: int, radius: float = 1.0, planted: Array | None = None) -> None:
        A, y = real_array("`A`", A, axes=2), real_array("`y`", y, axes=1)
        if len(A) != len(y):
            raise ArgumentError(f"`A` and `y` must have one row a measurement, and have {len(A)} and {len(y)}.")
        if (y < 0).any():
            raise ArgumentError("`y` holds energies |W^T a|^2 and must not be negative: the certified beta needs it.")
        self.A, self.y, self.terms, self.planted = A, y, len(y), planted
        self.constraint = NuclearBall((A.shape[1], columns), radius)
        long = A * np.linalg.norm(A, axis=1)[:, None]
        self.beta = 3 * radius**2 * float(np.linalg.norm(long, 2)) ** 2 / self.terms
        self.lowest_is_minimum = planted is not None
        if planted is not None and not (
            self.constraint.contains(planted) and self.loss(planted) <= 1e-20 * float(np.mean(np.square(y)))
        ):
            raise ArgumentError("`planted` must lie in the ball and reproduce `y`: leave it out otherwise.")

    @property
    def start(self) -> Any:
        """The vertex opposite to the all-ones matrix."""
        return dense(self.constraint.lmo(np.ones(self.constraint.shape)))

    def loss(self, W: Array) -> float:
        """``mean (|W^T a|^2 - y)^2/4``."""
        return 0.25 * float(np.mean(np.square(np.square(self.A @ W).sum(axis=1) - self.y)))

    def batch_gradient(self, W: Array, rows: Indices) -> Array:
        """``mean (|W^T a|^2 - y) a a^T W``."""
        A = self.A[rows]
        Z = A @ W
        return A.T @ ((np.square(Z).sum(axis=1) - self.y[rows])[:, None] * Z) / len(rows)

    def solution(self) -> Array | None:
        """The planted point."""
        return self.planted

    @classmethod
    def draw(cls, seed: int = 0, shape: tuple[int, int] | None = None) -> Self:
        """A planted point on the boundary of the unit ball."""
        rng = np.random.default_rng(seed)
        d, k = shape or (20, 2)
        planted = rng.standard_normal((d, k))
        planted /= np.linalg.svd(planted, compute_uv=False).sum()
        A = rng.standard_normal((8 * d, d)) / np.sqrt(d)
        return cls(A, np.square(A @ planted).sum(axis=1), k, 1.0, planted)
