"""Testbed c'': a concave loss, for which upper smoothness costs nothing."""

from __future__ import annotations

from typing import Self

import numpy as np

from theory.points import Array, dense, real_array
from theory.problems.problem import Problem
from theory.sets import NuclearBall


class Concave(Problem):
    """``L(W) = -1/2 |W|^2 + <C, W>`` on the nuclear ball.

    beta = 0: only the upper half of smoothness is asked for. Every theorem then takes eta = 1 and says ``mean g <= M/T``. The
    minimum is ``-radius s_1(C) - radius^2/2``, at ``-radius u_1 v_1^T``.

    Args:
        C: ``(d, k)``.
        radius: of the nuclear ball.
    """

    lowest_is_minimum = True
    beta = 0.0

    def __init__(self, C: Array, radius: float = 1.0) -> None:
        self.C = real_array("`C`", C, axes=2)
        self.constraint = NuclearBall(self.C.shape, radius)
        self.lowest = -radius * float(np.linalg.norm(self.C, 2)) - radius**2 / 2

    def loss(self, W: Array) -> float:
        """``-1/2 |W|^2 + <C, W>``."""
        return float(np.vdot(self.C, W)) - 0.5 * float(np.square(W).sum())

    def gradient(self, W: Array) -> Array:
        """``C - W``."""
        return self.C - W

    def line_curvature(self, direction: Array) -> float:
        """``-|direction|^2``."""
        return -float(np.square(direction).sum())

    def solution(self) -> Array:
        """``-radius u_1 v_1^T``."""
        return dense(self.constraint.lmo(self.C))

    @classmethod
    def draw(cls, seed: int = 0, shape: tuple[int, int] | None = None) -> Self:
        """A random C."""
        rng = np.random.default_rng(seed)
        size = shape or (40, 30)
        return cls(rng.standard_normal(size) / np.sqrt(size[0]), radius=2.0)
