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

    def rank(self, W: Any) -> int:
        """Fewest atoms of W."""
        return W.rank() if isinstance(W, Iterate) else self.constraint.rank(W)

    def admit(self, start: Any) -> Any:
        """A start for a run.

        Args:
            start: a point of K, or None for the problem's own.

        Returns:
            The point; arrays in float64, and never the caller's own memory.

        Raises:
            ArgumentError: it lies outside K, or has another shape.
        """
        if start is None:
            return self.start
        if isinstance(start, Iterate):
            return start
        W = self.constraint.gradient(dense(start) if isinstance(start, LowRank) else start).copy()
        if not self.constraint.contains(W):
            raise ArgumentError(
                f"`start` lies outside {self.constraint!r}: give a point of the set, such as `constraint.centre`."
            )
        return W

    def constants(self, start: Any = None) -> Constants:
        """The numbers of the theorems for a run from `start`.

        M is ``L(W_1) - lowest``. The oscillation is ``highest - lowest``, or less where upper smoothness at the circumcentre c
        says so: ``max_K L <= L(c) + max_K <grad L(c), V - c> + beta R^2/2``.

        Args:
            start: W_1; None takes the problem's own.

        Returns:
            The constants.
        """
        L, W, K = self.at(1), self.admit(start), self.constraint
        c = K.centre
        G = L.gradient(c)
        highest = min(L.highest, L.loss(c) + K.support(G) - inner(G, c) + self.beta * K.radius**2 / 2)
        return Constants(
            beta=self.beta, diameter=K.diameter, radius=K.radius, initial_gap=max(0.0, L.loss(W) - L.lowest),
            oscillation=max(0.0, highest - L.lowest), start_distance=float(np.linalg.norm(dense(W) - c)), lowest=L.minimum,
        )  # fmt: skip

    def audit(self, seed: int = 0, samples: int = 20) -> Audit:
        """Tries to refute the constants: on random pairs of points, and along the directions in which the loss bends most.

        Args:
            seed: of the draws.
            samples: pairs, and searches for a direction.

        Returns:
            What was seen.
        """
        rng, K = np.random.default_rng(seed), self.constraint
        curvature, lowest, far, wide, slope = -inf, inf, 0.0, 0.0, 0.0
        for _ in range(samples):
            X, Y = K.sample(rng), K.sample(rng)
            length = float(np.linalg.norm(Y - X))
            lowest, far = min(lowest, self.loss(X)), max(far, float(np.linalg.norm(X - K.centre)))
            if length <= 1e-9 * K.diameter:
                continue
            rise = self.loss(Y) - self.loss(X)
            # L(Y) <= L(X) + <grad L(X), Y - X> + beta/2 |Y - X|^2
            curvature = max(curvature, 2 * (rise - inner(self.gradient(X), Y - X)) / length**2, self._steepest(X, Y - X))
            wide = max(wide, length)
            # A central difference from the middle, of a step that rounding and the third derivative share evenly.
            middle, h = (X + Y) / 2, 1e-5
            difference = (self.loss(middle + h * (Y - X)) - self.loss(middle - h * (Y - X))) / (2 * h)
            exact = inner(self.gradient(middle), Y - X)
            scale = abs(self.loss(middle)) + abs(exact) + self.beta * length**2
            slope = max(slope, abs(difference - exact) / max(scale, np.finfo(float).tiny))
        return Audit(curvature, self.beta, lowest, self.lowest, wide, K.diameter, far, K.radius, slope)

    def _steepest(self, X: Array, direction: Array, searches: int = 30) -> float:
        """The largest eigenvalue of the Hessian near X, from below.

        Args:
            X: a point of K.
            direction: where the search begins.
            searches: power iterations on ``H + beta I``, by differences of gradients.

        Returns:
            The largest curvature met.
        """
        c, h, best = self.constraint.centre, 1e-4 * self.constraint.radius, -inf
        inside = c + 0.99 * (X - c)
        for _ in range(searches):
            direction = direction / np.linalg.norm(direction)
            bent = (self.gradient(inside + h * direction) - self.gradient(inside - h * direction)) / (2 * h)
            best = max(best, float(np.vdot(direction, bent)))
            direction = bent + self.beta * direction
            if not direction.any():
                break
        return best

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


@dataclass(frozen=True)
class Audit:
    """What random pairs of points showed, each beside the constant that bounds it.

    Attributes:
        curvature: largest ``2 (L(Y) - L(X) - <grad L(X), Y - X>)/|Y - X|^2``.
        beta: its certified bound.
        loss: smallest loss.
        lowest: its certified bound.
        distance: largest distance of a pair.
        diameter: its bound.
        reach: largest distance from the centre.
        radius: its bound.
        gradient_error: largest relative difference of a directional derivative from a central difference.
    """

    curvature: float
    beta: float
    loss: float
    lowest: float
    distance: float
    diameter: float
    reach: float
    radius: float
    gradient_error: float

    @property
    def holds(self) -> bool:
        """Whether nothing contradicts the constants, up to rounding."""
        slack = 1 + 1e-9
        return (  # curvature from differences of gradients, good to about 1e-7
            self.curvature <= self.beta * (1 + 1e-6) + 1e-6
            and self.loss >= self.lowest - 1e-9 * max(1.0, abs(self.lowest))
            and self.distance <= self.diameter * slack
            and self.reach <= self.radius * slack
            and self.gradient_error <= 1e-6
        )
