"""Testbed i: losses that attain a theorem exactly, so that the checkers are seen to have no slack to hide in."""

from __future__ import annotations

from typing import Any, Self

import numpy as np

from theory.errors import ArgumentError, count, positive
from theory.points import Array
from theory.problems.problem import Problem
from theory.sets import FrobeniusBall, L1Ball, Simplex
from theory.step_sizes import best_fixed


class WorstCase(Problem):
    """``L(x) = -slope (x - x_1) + beta/2 (x - x_1)^2`` on an interval of length D, from its left end x_1.

    With ``eta = min(1, sqrt(2 M/(beta D^2)))`` and ``slope = (M/eta + beta eta D^2/2)/D`` one step of length eta D ends at the
    minimum, M below the start, and the gap at the start is ``slope D = M/eta + beta eta D^2/2``: Theorem A at T = 1, with
    equality. For M = 4, beta = D = 1 the gap is 4.5, above the 4 that the paper's Theorem 4.1 prints.

    Args:
        M: ``L(x_1) - min L``.
        beta: curvature.
        diameter: D.
    """

    lowest_is_minimum = True
    convex = True
    lowest: float

    def __init__(self, M: float = 0.5, beta: float = 1.0, diameter: float = 1.0) -> None:
        self.constraint = FrobeniusBall(1, positive("diameter", diameter) / 2)
        self.beta = positive("beta", beta)
        eta = best_fixed(positive("M", M), beta * diameter**2, T=1)
        self.slope = (M / eta + beta * eta * diameter**2 / 2) / diameter
        self.lowest = -M

    @property
    def start(self) -> Array:
        """The left end."""
        return np.array([-self.constraint.radius])

    def loss(self, W: Array) -> float:
        """``-slope x + beta x^2/2``, x the distance from the left end."""
        x = float(W[0]) + self.constraint.radius
        return -self.slope * x + self.beta * x**2 / 2

    def gradient(self, W: Array) -> Array:
        """``beta x - slope``."""
        return self.beta * (W + self.constraint.radius) - self.slope

    def line_curvature(self, direction: Array) -> float:
        """``beta direction^2``."""
        return self.beta * float(direction[0]) ** 2

    def solution(self) -> Array:
        """``x = slope/beta``, or the right end."""
        return self.start + min(self.slope / self.beta, self.constraint.diameter)

    @classmethod
    def draw(cls, seed: int = 0, shape: tuple[int, int] | None = None) -> Self:
        """Any M, beta and D, on either side of ``M = beta D^2/2``; the seed 0 gives the default."""
        return cls() if seed == 0 else cls(*np.exp(np.random.default_rng(seed).uniform(-2, 2, 3)))


class WorstCentred(Problem):
    """``L(W) = -slope sum W_i + beta/2 |W|^2`` on the l1 ball of radius R in n dimensions, from its centre.

    Each iteration finds a fresh vertex: no coordinate that was visited has as large a derivative. With
    ``slope = M/R + beta R/(2n)`` the minimum is -M, at ``W_i = R/n``, as long as ``n >= beta R^2/(2M)``. A run of T = n
    iterations with the centred step comes as near to Theorem C as one likes when T grows: 87 % at 10, 95 % at 100. On diagonal
    matrices it is the same example for the nuclear ball.

    Args:
        size: n, the horizon that it is made for.
        M: ``L(0) - min L``.
        beta: curvature.
        radius: R.

    Raises:
        ArgumentError: n is smaller than that.
    """

    lowest_is_minimum = True
    convex = True

    def __init__(self, size: int = 100, M: float = 0.5, beta: float = 1.0, radius: float = 0.5) -> None:
        self.constraint = L1Ball(count("size", size), radius)
        self.beta, self.lowest = positive("beta", beta), -positive("M", M)
        if 2 * M * size < beta * radius**2:
            raise ArgumentError(f"`size` must be at least beta R^2/(2 M) = {beta * radius**2 / (2 * M):g}, and is {size}.")
        self.slope = M / radius + beta * radius / (2 * size)

    def loss(self, W: Array) -> float:
        """``-slope sum W_i + beta/2 |W|^2``."""
        return -self.slope * float(W.sum()) + self.beta / 2 * float(W @ W)

    def gradient(self, W: Array) -> Array:
        """``beta W - slope``."""
        return self.beta * W - self.slope

    def line_curvature(self, direction: Array) -> float:
        """``beta |direction|^2``."""
        return self.beta * float(direction @ direction)

    def solution(self) -> Array:
        """``W_i = R/n``."""
        return np.full(self.constraint.shape, self.constraint.radius / self.constraint.shape[0])

    @classmethod
    def draw(cls, seed: int = 0, shape: tuple[int, int] | None = None) -> Self:
        """The default; or of as many dimensions as a matrix of that shape has entries, with a random M of at least 1/2."""
        if shape is None:
            return cls()
        return cls(int(np.prod(shape)), M=0.5 + np.random.default_rng(seed).exponential())


class WorstDrift(Problem):
    """Two linear losses on the triangle: ``L_1 = M x_0`` and, from t = 2 on, ``L_t = M x_0 + up x_1 - down x_2``.

    From e_0, with eta = 1 (beta = 0) and T = 2: ``g_1 = M`` and the run lands on e_1, from where ``g_2 = up + down``. The mean
    is ``(M + Delta+ + Delta-)/T``, Theorem E with equality.

    Args:
        M: ``L_1(e_0) - min L_1``.
        up: Delta+.
        down: Delta-.
    """

    beta = 0.0
    convex = True
    drifts = True
    lowest = 0.0
    lowest_is_minimum = True

    def __init__(self, M: float = 1.0, up: float = 2.0, down: float = 3.0) -> None:
        self.constraint = Simplex(3)
        self.M, self.up, self.down = positive("M", M), positive("up", up), positive("down", down)
        self._losses = [_Linear(np.array(c), self.constraint) for c in ([M, 0.0, 0.0], [M, up, -down])]

    @property
    def start(self) -> Any:
        """e_0."""
        return np.array([1.0, 0.0, 0.0])

    def at(self, t: int) -> Problem:
        """``L_1``, then the other."""
        return self._losses[min(t, 2) - 1]

    def loss(self, W: Array) -> float:
        """``L_1(W)``."""
        return self.at(1).loss(W)

    def gradient(self, W: Array) -> Array:
        """``grad L_1(W)``."""
        return self.at(1).gradient(W)

    def drift(self, t: int) -> tuple[float, float]:
        """(up, down) after the first iteration, then nothing."""
        return (self.up, self.down) if t == 1 else (0.0, 0.0)

    @classmethod
    def draw(cls, seed: int = 0, shape: tuple[int, int] | None = None) -> Self:
        """Any three numbers; the seed 0 gives the default."""
        return cls() if seed == 0 else cls(*np.random.default_rng(seed).uniform(0.1, 4, 3))


class _Linear(Problem):
    """``<c, x>``."""

    beta = 0.0
    convex = True
    lowest_is_minimum = True

    def __init__(self, c: Array, constraint: Simplex) -> None:
        self.c, self.constraint, self.lowest = c, constraint, float(c.min())

    def loss(self, W: Array) -> float:
        return float(self.c @ W)

    def gradient(self, W: Array) -> Array:
        return self.c

    def line_curvature(self, direction: Array) -> float:
        return 0.0

    @classmethod
    def draw(cls, seed: int = 0, shape: tuple[int, int] | None = None) -> Self:
        return cls(np.random.default_rng(seed).standard_normal(3), Simplex(3))
