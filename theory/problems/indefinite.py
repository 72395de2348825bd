"""Testbed c: an indefinite quadratic with a minimum in closed form."""

from __future__ import annotations

from typing import Self

import numpy as np

from theory.errors import ArgumentError
from theory.points import Array, dense, real_array
from theory.problems.problem import Problem
from theory.sets import NuclearBall


class Indefinite(Problem):
    """``L(W) = 1/2 |P W|^2 - 1/2 |(I - P) W|^2 + <C, W>`` on the nuclear ball.

    P is an orthogonal projection and ``C = (I - P) C``. beta = 1. On the ball ``|W|_F <= radius`` and
    ``<C, W> >= -radius s_1(C)``, so ``L >= -radius s_1(C) - radius^2/2``; and ``W = -radius u_1 v_1^T`` attains it, for
    ``P u_1 = 0``.

    Args:
        basis: Q with orthonormal columns, ``(d, p)``; ``P = Q Q^T``.
        C: ``(d, k)``; its part in the range of P is taken out, and something must be left.
        radius: of the nuclear ball.
    """

    lowest_is_minimum = True
    beta = 1.0

    def __init__(self, basis: Array, C: Array, radius: float = 1.0) -> None:
        C = real_array("`C`", C, axes=2)
        Q = np.asarray(basis, dtype=float)
        if Q.shape[:-1] != C.shape[:1] or Q.shape[1] >= C.shape[0] or not np.allclose(Q.T @ Q, np.eye(Q.shape[1]), atol=1e-12):
            raise ArgumentError(
                f"`basis` must have fewer than {C.shape[0]} orthonormal columns of that length: P must leave something."
            )
        self.Q, self.C = Q, C - Q @ (Q.T @ C)
        if np.linalg.norm(self.C) <= 1e-12 * np.linalg.norm(C):
            raise ArgumentError(
                "`C` must have a part outside the range of `basis`: the closed form needs its top left vector there."
            )
        self.constraint = NuclearBall(C.shape, radius)
        self.lowest = -radius * float(np.linalg.norm(self.C, 2)) - radius**2 / 2

    def loss(self, W: Array) -> float:
        """``|P W|^2 - 1/2 |W|^2 + <C, W>``."""
        return self.line_curvature(W) / 2 + float(np.vdot(self.C, W))

    def gradient(self, W: Array) -> Array:
        """``2 P W - W + C``."""
        return 2 * self.Q @ (self.Q.T @ W) - W + self.C

    def line_curvature(self, direction: Array) -> float:
        """``|P direction|^2 - |(I - P) direction|^2``."""
        return 2 * float(np.square(self.Q.T @ direction).sum()) - float(np.square(direction).sum())

    def solution(self) -> Array:
        """``-radius u_1 v_1^T``."""
        return dense(self.constraint.lmo(self.C))

    @classmethod
    def draw(cls, seed: int = 0, shape: tuple[int, int] | None = None) -> Self:
        """P of half the rank."""
        rng = np.random.default_rng(seed)
        d, k = shape or (40, 30)
        Q, _ = np.linalg.qr(rng.standard_normal((d, d // 2)))
        return cls(Q, rng.standard_normal((d, k)) / np.sqrt(d), radius=2.0)
