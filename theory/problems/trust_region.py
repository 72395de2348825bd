"""Testbed c': the trust-region subproblem."""

from __future__ import annotations

from math import exp, log
from typing import Self

import numpy as np
from scipy.optimize import brentq

from theory.points import Array, real_array
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
        self.C = real_array("`C`", C)
        self.q = real_array("`q`", q, shape=self.C.shape)
        self.constraint = FrobeniusBall(self.C.shape, radius)
        self.beta, self.convex = max(0.0, float(self.q.max())), bool(self.q.min() >= 0)
        self._multiplier, self._solution = self._solve()
        # Weak duality: min L >= -1/2 sum C^2/(q + lambda) - lambda radius^2/2 for every lambda >= max(0, -min q).
        shifted = self.q + self._multiplier
        share = np.divide(np.square(self.C), shifted, out=np.zeros_like(self.C), where=shifted > 0)
        self.lowest = min(self.loss(self._solution), -0.5 * float(share.sum()) - self._multiplier * radius**2 / 2)

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
        return self._solution.copy()

    @classmethod
    def draw(cls, seed: int = 0, shape: tuple[int, int] | None = None) -> Self:
        """Curvatures between -1 and 1."""
        rng = np.random.default_rng(seed)
        size = shape or (40, 30)
        return cls(rng.uniform(-1, 1, size), rng.standard_normal(size) / np.sqrt(np.prod(size)), radius=2.0)

    def _solve(self) -> tuple[float, Array]:
        """``lambda`` and W. With ``d = q + max(0, -min q)``, ``|C/(d + mu)| = radius`` is solved for log mu: mu may be tiny."""
        radius, floor = self.constraint.radius, max(0.0, -float(self.q.min()))
        d = self.q + floor

        def stationary(mu: float) -> Array:
            return -np.divide(self.C, d + mu, out=np.zeros_like(self.C), where=d + mu > 0)

        far = float(np.linalg.norm(self.C)) / radius  # |W(mu)| <= |C|/mu
        near = far * 1e-140
        if near == 0 or np.linalg.norm(stationary(near)) <= radius:
            W = stationary(0.0)
            # Inside; or the hard case: C vanishes where d does, and any length along that entry costs nothing.
            if floor > 0:
                i = int(d.argmin())
                W.flat[i] = 0.0
                W.flat[i] = np.sqrt(max(0.0, radius**2 - float(np.square(W).sum()))) * (-1.0 if self.C.flat[i] > 0 else 1.0)
            return floor, W
        root = brentq(lambda s: np.linalg.norm(stationary(exp(s))) / radius - 1, log(near), log(far) + 1e-9, xtol=1e-13)
        mu = exp(float(root))  # pyright: ignore[reportArgumentType]
        W = stationary(mu)
        return floor + mu, W * (radius / np.linalg.norm(W))
