"""Testbed h: completion of a matrix that moves."""

from __future__ import annotations

from math import cos, sin
from typing import Self

import numpy as np

from theory.errors import ArgumentError
from theory.points import Array
from theory.problems.completion import Completion, low_rank, observed
from theory.problems.problem import Problem
from theory.sets import ConvexSet, NuclearBall


class DriftingCompletion(Problem):
    """``L_t(W) = 1/2 sum w (W - Y_t)^2`` with ``Y_t = cos(a_t) Y + sin(a_t) Z`` and ``a_{t+1} = a_t + speed t^(-power)``.

    ``L_{t+1} - L_t`` is affine in W, so its supremum and infimum over K are exact: a constant plus, and minus, a support
    function.

    Args:
        first: Y, ``(d, k)``.
        second: Z, ``(d, k)``.
        weights: w, ``(d, k)``.
        constraint: K.
        speed: first change of the angle, in radians; 0 stands still.
        power: how fast the changes die out.
    """

    convex = True
    everywhere = True
    lowest = 0.0

    def __init__(
        self, first: Array, second: Array, weights: Array, constraint: ConvexSet, speed: float = 0.1, power: float = 0.5
    ) -> None:
        if not (np.isfinite(speed) and np.isfinite(power) and power >= 0):
            raise ArgumentError(f"`speed` must be finite and `power` at least 0, and they are {speed!r} and {power!r}.")
        self.first, self.second, self.weights = (
            constraint.array(name, value).copy()
            for name, value in (("`first`", first), ("`second`", second), ("`weights`", weights))
        )
        self.constraint = constraint
        self.speed, self.power = speed, power
        self.beta, self.drifts = float(weights.max()), speed != 0
        self._angles = [0.0]
        self._last: tuple[int, Completion] | None = None

    def at(self, t: int) -> Completion:
        """Completion of ``Y_t``."""
        if self._last is None or self._last[0] != t:
            self._last = (t, _Instant(self.target(t), self.weights, self.constraint))
        return self._last[1]

    def target(self, t: int) -> Array:
        """``Y_t``."""
        while len(self._angles) < t:
            self._angles.append(self._angles[-1] + self.speed * len(self._angles) ** -self.power)
        return cos(self._angles[t - 1]) * self.first + sin(self._angles[t - 1]) * self.second

    def loss(self, W: Array) -> float:
        """``L_1(W)``."""
        return self.at(1).loss(W)

    def gradient(self, W: Array) -> Array:
        """``grad L_1(W)``."""
        return self.at(1).gradient(W)

    def drift(self, t: int) -> tuple[float, float]:
        """From ``L_{t+1} - L_t = 1/2 sum w (Y_{t+1}^2 - Y_t^2) - <w (Y_{t+1} - Y_t), W>``, affine in W."""
        Y, following = self.target(t), self.target(t + 1)
        constant = 0.5 * float(np.vdot(self.weights, np.square(following) - np.square(Y)))
        slope = -self.weights * (following - Y)
        return max(0.0, constant + self.constraint.support(slope)), max(0.0, self.constraint.support(-slope) - constant)

    @classmethod
    def draw(cls, seed: int = 0, shape: tuple[int, int] | None = None) -> Self:
        """Two matrices of rank 3, a third of the entries seen."""
        rng = np.random.default_rng(seed)
        size = shape or (60, 50)
        Y, Z = (low_rank(rng, size, rank=min(3, *size)) for _ in range(2))
        radius = float(np.linalg.svd(Y, compute_uv=False).sum())
        return cls(Y, Z, observed(rng, size), NuclearBall(size, radius))


class _Instant(Completion):
    """Completion at one time: no ground truth is asked of it, so none is computed."""

    def __init__(self, targets: Array, weights: Array, constraint: ConvexSet) -> None:
        self.targets, self.weights, self.constraint = targets, weights, constraint
        self.beta, self.lowest, self._start = float(weights.max()), 0.0, None

    def solution(self) -> None:
        return None
