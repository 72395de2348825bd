"""Testbed d: completion with a loss that forgets outliers."""

from __future__ import annotations

from abc import abstractmethod
from typing import Self

import numpy as np

from theory.errors import ArgumentError, positive
from theory.points import Array, real_array
from theory.problems.completion import low_rank, observed
from theory.problems.problem import Problem
from theory.sets import NuclearBall


class RobustCompletion(Problem):
    """``L(W) = sum over observed entries of rho(W_ij - Y_ij)`` on the nuclear ball.

    rho is bounded by ``c^2/2``, and ``rho'' <= 1`` with equality at a residual of 0: beta = 1. The lower curvature is negative,
    so the loss is nonconvex; smooth everywhere. ``0 <= L <= n c^2/2`` for n observed entries.

    Args:
        targets: Y, ``(d, k)``.
        weights: 1 on observed entries and 0 elsewhere, ``(d, k)``.
        radius: of the nuclear ball.
        scale: c, the residual at which an entry begins to count as an outlier.
    """

    everywhere = True
    beta = 1.0
    lowest = 0.0

    def __init__(self, targets: Array, weights: Array, radius: float, scale: float = 1.0) -> None:
        targets = real_array("`targets`", targets, axes=2)
        weights = real_array("`weights`", weights, shape=targets.shape)
        if not np.isin(weights, (0.0, 1.0)).all():
            raise ArgumentError("`weights` must be 0 or 1: an entry was observed or not.")
        self.constraint = NuclearBall(targets.shape, radius)
        self.targets, self.weights, self.scale = targets.copy(), weights.copy(), positive("scale", scale)
        self.highest = float(weights.sum()) * scale**2 / 2

    @abstractmethod
    def rho(self, r: Array) -> Array:
        """The loss of a residual."""

    @abstractmethod
    def psi(self, r: Array) -> Array:
        """Its derivative."""

    def loss(self, W: Array) -> float:
        """``sum rho``."""
        return float(np.vdot(self.weights, self.rho(W - self.targets)))

    def gradient(self, W: Array) -> Array:
        """``psi`` on observed entries."""
        return self.weights * self.psi(W - self.targets)

    @classmethod
    def draw(cls, seed: int = 0, shape: tuple[int, int] | None = None) -> Self:
        """30 % of the entries of a rank-3 matrix seen, a tenth of them far off."""
        rng = np.random.default_rng(seed)
        size = shape or (60, 50)
        Y = low_rank(rng, size, rank=min(3, *size))
        radius = float(np.linalg.svd(Y, compute_uv=False).sum())
        outliers = 10.0 * rng.standard_normal(size) * (rng.random(size) < 0.1)
        return cls(Y + outliers, observed(rng, size), radius, scale=2.0)


class Welsch(RobustCompletion):
    """``rho(r) = c^2/2 (1 - exp(-r^2/c^2))``; its curvature lies in ``[-2 e^(-3/2), 1]``."""

    def rho(self, r: Array) -> Array:
        """``c^2/2 (1 - exp(-r^2/c^2))``."""
        return -(self.scale**2) / 2 * np.expm1(-np.square(r / self.scale))

    def psi(self, r: Array) -> Array:
        """``r exp(-r^2/c^2)``."""
        return r * np.exp(-np.square(r / self.scale))


class GemanMcClure(RobustCompletion):
    """``rho(r) = (r^2/2)/(1 + r^2/c^2)``; its curvature lies in ``[-1/4, 1]``."""

    def rho(self, r: Array) -> Array:
        """``(r^2/2)/(1 + r^2/c^2)``."""
        return np.square(r) / 2 / (1 + np.square(r / self.scale))

    def psi(self, r: Array) -> Array:
        """``r/(1 + r^2/c^2)^2``."""
        return r / np.square(1 + np.square(r / self.scale))
