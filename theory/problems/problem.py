"""What a testbed can say of itself: a loss on a set, and constants that it can be held to."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from math import inf, nan
from typing import Any, Self

import numpy as np

from theory.errors import ArgumentError
from theory.points import Array, Indices, Iterate, LowRank, dense, inner, toward
from theory.sets import ConvexSet
from theory.trajectory import Constants


class Problem(ABC):
    """A differentiable loss L on a compact convex set K.

    Attributes:
        constraint: K.
        beta: certified upper smoothness of L on K: no second derivative along a unit direction exceeds it.
        lowest: certified lower bound of L on K.
        lowest_is_minimum: whether some point of K attains `lowest`.
        highest: certified upper bound of L on K, inf where there is no better one than smoothness gives.
        convex: whether L is convex on K.
        everywhere: whether `beta` and `lowest` hold on the whole space, as a chain, which has no set, needs.
        drifts: whether the loss changes with the iteration.
    """

    constraint: ConvexSet
    beta: float
    lowest: float
    lowest_is_minimum: bool = False
    highest: float = inf
    convex: bool = False
    everywhere: bool = False
    drifts: bool = False

    @abstractmethod
    def loss(self, W: Any) -> float:
        """``L(W)``."""

    @abstractmethod
    def gradient(self, W: Any) -> Any:
        """``grad L(W)``."""

    @classmethod
    @abstractmethod
    def draw(cls, seed: int = 0, shape: tuple[int, int] | None = None) -> Self:
        """A random instance; without a shape, of the size that the studies use."""

    @property
    def start(self) -> Any:
        """W_1: the circumcentre unless a testbed has its own."""
        return self.constraint.centre

    @property
    def centre(self) -> Any:
        """The circumcentre, as a point of this problem."""
        return self.constraint.centre

    def reach(self, W: Any) -> float:
        """``|W - c|_F`` from the circumcentre."""
        return float(np.linalg.norm(dense(W) - self.constraint.centre))

    def solution(self) -> Array | None:
        """A minimiser over K, where one can be had to rounding."""
        return None

    def line_curvature(self, direction: Array) -> float | None:
        """``d^2/d eta^2 L(W + eta direction)`` where it does not depend on W and eta (a quadratic), else None."""
        return None

    def segment_curvature(self, W: Any, V: Any) -> float | None:
        """`line_curvature` along V - W; a problem whose points are no arrays says how it has it."""
        return None if isinstance(W, Iterate) else self.line_curvature(dense(V) - W)

    def at(self, t: int) -> Problem:
        """The loss of iteration t: always the same unless the problem drifts."""
        return self

    def drift(self, t: int) -> tuple[float, float]:
        """``sup_K (L_{t+1} - L_t)^+`` and ``sup_K (L_t - L_{t+1})^+``."""
        return 0.0, 0.0

    def total_drift(self, T: int) -> tuple[float, float]:
        """The sums of `drift` over t < T: Delta+ and Delta-."""
        ups, downs = zip(*[(0.0, 0.0), *(self.drift(t) for t in range(1, T))], strict=True)
        return sum(ups), sum(downs)

    def contains(self, W: Any, tolerance: float = 1e-9) -> bool:
        """Whether a point of this problem lies in K, up to a relative `tolerance`."""
        return self.constraint.contains(W, tolerance)

    def rank(self, W: Any) -> int:
        """Fewest atoms of W."""
        return W.rank() if isinstance(W, Iterate) else self.constraint.rank(W)

    def point(self, start: Any) -> Any:
        """A point of this problem, in K or not.

        Args:
            start: an array or a matrix in factors; None takes the problem's own start.

        Returns:
            The point; arrays in float64, and never the caller's own memory.

        Raises:
            ArgumentError: it has another shape, or entries that are not finite.
        """
        if start is None:
            return self.start
        if isinstance(start, Iterate):
            raise ArgumentError(f"`start` must be an array or a LowRank, and is {start!r}: give `start.dense()`.")
        return self.constraint.array("`start`", dense(start) if isinstance(start, LowRank) else start).copy()

    def admit(self, start: Any) -> Any:
        """`point`, for a run that stays in K.

        Args:
            start: a point of K, or None for the problem's own start.

        Returns:
            The point.

        Raises:
            ArgumentError: it lies outside K, or is no point.
        """
        W = self.point(start)
        if not self.contains(W):
            raise ArgumentError(f"`start` lies outside {self.constraint!r}: give a point of the set, such as `problem.start`.")
        return W

    def constants(self, start: Any = None) -> Constants:
        """The numbers of the theorems for a run from `start`.

        M is ``L(W_1) - lowest``. The oscillation is ``highest - lowest``, or less where upper smoothness at the circumcentre c
        says so: ``max_K L <= L(c) + max_K <grad L(c), V - c> + beta R^2/2``.

        Args:
            start: W_1, in K or, for a chain, anywhere; None takes the problem's own.

        Returns:
            The constants.
        """
        L, W, K = self.at(1), self.point(start), self.constraint
        c = self.centre
        G = L.gradient(c)
        highest = min(L.highest, L.loss(c) + K.support(G) - inner(G, c) + self.beta * K.radius**2 / 2)
        return Constants(
            beta=self.beta, diameter=K.diameter, radius=K.radius, initial_gap=max(0.0, L.loss(W) - L.lowest),
            oscillation=max(0.0, highest - L.lowest), start_distance=self.reach(W), lowest=L.minimum,
        )  # fmt: skip

    @cached_property
    def minimum(self) -> float:
        """The minimum of L over K where it is known, else nan."""
        if self.lowest_is_minimum:
            return self.lowest
        W = self.solution()
        return nan if W is None else self.loss(W)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(on {self.constraint!r})"


class FiniteSum(Problem):
    """A loss that is a mean over terms.

    Attributes:
        terms: their number.
    """

    terms: int

    @abstractmethod
    def batch_gradient(self, W: Array, rows: Indices) -> Array:
        """The mean gradient of the terms in `rows`; over all of them it is `gradient(W)`."""

    def gradient(self, W: Array) -> Array:
        """``grad L(W)``."""
        return self.batch_gradient(W, np.arange(self.terms))


@dataclass(frozen=True)
class Segment:
    """The loss between W and V."""

    problem: Problem
    W: Any
    V: Any

    def __call__(self, eta: float) -> float:
        """``L(W + eta (V - W))``."""
        return self.problem.loss(toward(self.W, self.V, eta))

    @property
    def curvature(self) -> float | None:
        """``d^2/d eta^2`` where it is constant, else None."""
        return self.problem.segment_curvature(self.W, self.V)
