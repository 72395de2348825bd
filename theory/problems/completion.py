"""Testbed a: matrix completion."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import numpy as np

from theory.errors import ArgumentError
from theory.points import Array, real_array
from theory.problems.problem import Problem
from theory.problems.projected_gradient import minimise
from theory.sets import ConvexSet, NuclearBall


class Completion(Problem):
    """``L(W) = 1/2 sum_ij w_ij (W_ij - Y_ij)^2``, by default on the nuclear ball.

    beta = max w; where K has interior, no less: the curvature along a single entry is its weight. With all weights 1 this is
    the squared distance ``1/2 |W - Y|^2``. Convex, quadratic, smooth everywhere.

    Args:
        targets: Y, ``(d, k)``; entries of weight 0 do not matter.
        weights: w, ``(d, k)``, not negative; None weighs every entry 1.
        constraint: K; None takes the nuclear ball through the targets, ``radius = |Y|_*``.
        start: W_1; None takes the circumcentre.
    """

    convex = True
    everywhere = True

    def __init__(
        self, targets: Array, weights: Array | None = None, constraint: ConvexSet | None = None, start: Array | None = None
    ) -> None:
        Y = real_array("`targets`", targets)
        if constraint is None and (Y.ndim != 2 or not Y.any()):
            raise ArgumentError("`constraint` can be left out for a matrix of `targets` other than 0 only: give a set.")
        w = np.ones(Y.shape) if weights is None else np.asarray(weights, dtype=float)
        if w.shape != Y.shape or not (np.isfinite(w) & (w >= 0)).all() or not w.any():
            raise ArgumentError(f"`weights` must be finite, not negative, not all 0 and of shape {Y.shape}, as `targets` is.")
        self.constraint = constraint or NuclearBall(Y.shape, radius=float(np.linalg.svd(Y, compute_uv=False).sum()))
        self.targets, self.weights = self.constraint.array("`targets`", Y).copy(), w.copy()
        self.beta = float(w.max())
        self.lowest, self.lowest_is_minimum = 0.0, self.constraint.contains(self.targets)
        self._start: Array | None = None
        self._start = None if start is None else self.admit(start)

    @property
    def start(self) -> Any:
        """W_1, as given; else the circumcentre."""
        return self.constraint.centre if self._start is None else self._start

    def loss(self, W: Array) -> float:
        """``1/2 sum w (W - Y)^2``."""
        return 0.5 * float(np.vdot(self.weights, np.square(W - self.targets)))

    def gradient(self, W: Array) -> Array:
        """``w (W - Y)``."""
        return self.weights * (W - self.targets)

    def line_curvature(self, direction: Array) -> float:
        """``sum w direction^2``."""
        return float(np.vdot(self.weights, np.square(direction)))

    def solution(self) -> Array | None:
        """Y where the set holds it; else found by projected gradient on sets that have a projection."""
        return self.targets.copy() if self.lowest_is_minimum else minimise(self)

    @classmethod
    def from_entries(
        cls, rows: Sequence[int], columns: Sequence[int], values: Sequence[float], constraint: ConvexSet, *, mean: bool = False
    ) -> Self:
        """Completion from observed entries.

        Repeated entries add their weights, ``sum_j 1/2 (x - y_j)^2 = n/2 (x - mean y)^2 + const``; the constant is dropped.

        Args:
            rows: row of each observation.
            columns: its column.
            values: what was seen.
            constraint: K.
            mean: weigh each observation 1/n instead of 1.

        Returns:
            The problem.
        """
        counts, sums = np.zeros(constraint.shape), np.zeros(constraint.shape)
        np.add.at(counts, (rows, columns), 1.0)
        np.add.at(sums, (rows, columns), values)
        targets = np.divide(sums, counts, out=np.zeros_like(sums), where=counts > 0)
        return cls(targets, counts / len(values) if mean else counts, constraint)

    @classmethod
    def draw(cls, seed: int = 0, shape: tuple[int, int] | None = None) -> Self:
        """30 % of the entries of a matrix of rank 3, with the ball that just holds it."""
        rng = np.random.default_rng(seed)
        d, k = shape or (60, 50)
        Y = low_rank(rng, (d, k), rank=min(3, d, k))
        return cls(Y, observed(rng, (d, k)))


def low_rank(rng: np.random.Generator, shape: tuple[int, int], rank: int) -> Array:
    """A random matrix of a rank, with entries of variance 1."""
    return rng.standard_normal((shape[0], rank)) @ rng.standard_normal((rank, shape[1])) / np.sqrt(rank)


def observed(rng: np.random.Generator, shape: tuple[int, int], share: float = 0.3) -> Array:
    """Weights 1 on a random share of the entries and 0 elsewhere; never all 0."""
    seen = rng.random(shape) < share
    seen.flat[rng.integers(seen.size)] = True
    return seen.astype(float)
