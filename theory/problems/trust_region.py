"""Testbed c': the trust-region subproblem."""

from __future__ import annotations

from typing import Self

import numpy as np
from scipy.optimize import brentq

from theory.points import Array
from theory.problems.problem import Problem
from theory.sets import FrobeniusBall


class TrustRegion(Problem):
    """``L(W) = 1/2 sum q_ij W_ij^2 + <C, W>`` on the Frobenius ball: nonconvex where some q is negative, and yet solved.

    beta = max(q, 0). The minimiser is ``W = -C/(q + lambda)`` with the multiplier ``lambda >= max(0, -min q)`` for which
    ``|W| = radius``, the root of the secular equation; lambda = 0 where the unconstrained minimiser lies inside.

    Args:
        q: curvatures, ``(d, k)``.
        C: ``(d, k)``.
        radius: of the ball.

    Source: More and Sorensen 1983.
    """

    lowest_is_minimum = True

    def __init__(self, q: Array, C: Array, radius: float = 1.0) -> None:
        self.q, self.C = q, C
        self.constraint = FrobeniusBall(C.shape, radius)
        self.beta, self.convex = max(0.0, float(q.max())), bool(q.min() >= 0)
        self.lowest = self.loss(self.solution())

    def loss(self, W: Array) -> float:
        """``1/2 sum q W^2 + <C, W>``."""
        return 0.5 * float(np.vdot(self.q, np.square(W))) + float(np.vdot(self.C, W))

    def gradient(self, W: Array) -> Array:
        """``q W + C``."""
        return self.q * W + self.C

    def line_curvature(self, direction: Array) -> float:
        """``sum q direction^2``."""
        return float(np.vdot(self.q, np.square(direction)))

    def solution(self) -> Array:
        """By the secular equation."""
        floor, radius = max(0.0, -float(self.q.min())), self.constraint.radius
        W = self._stationary(floor)
        if np.linalg.norm(W) <= radius:
            # Inside; or the hard case: C vanishes where q is least, and any length along that entry costs nothing.
            if floor > 0:
                W.flat[int(self.q.argmin())] = np.sqrt(radius**2 - np.square(W).sum())
            return W
        # |W(lambda)| falls from above the radius to below it.
        far = floor + float(np.linalg.norm(self.C)) / radius
        root = brentq(lambda shift: np.linalg.norm(self._stationary(shift)) - radius, floor, far, xtol=1e-15)
        W = self._stationary(float(root))  # pyright: ignore[reportArgumentType]
        return W * (radius / np.linalg.norm(W))

    @classmethod
    def draw(cls, seed: int = 0, shape: tuple[int, int] | None = None) -> Self:
        """Curvatures between -1 and 1."""
        rng = np.random.default_rng(seed)
        size = shape or (40, 30)
        return cls(rng.uniform(-1, 1, size), rng.standard_normal(size) / np.sqrt(np.prod(size)), radius=2.0)

    def _stationary(self, shift: float) -> Array:
        """``-C/(q + shift)``; 0 where both vanish, infinite where only the divisor does."""
        return -np.divide(self.C, self.q + shift, out=np.where(self.C == 0, 0.0, np.inf), where=self.q + shift > 0)
