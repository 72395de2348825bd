"""Held to its word: what random points and the steepest directions of a testbed say of its constants."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

import numpy as np

from theory.points import Array, inner
from theory.problems.problem import Problem


@dataclass(frozen=True)
class Audit:
    """What random pairs of points showed, each beside the constant that bounds it.

    Attributes:
        curvature: largest ``2 (L(Y) - L(X) - <grad L(X), Y - X>)/|Y - X|^2``.
        beta: its certified bound.
        steepest: largest ``|H direction|`` over unit directions, the size of what was differentiated.
        loss: smallest loss.
        lowest: its certified bound.
        spread: between the largest and the smallest loss.
        distance: largest distance of a pair.
        diameter: its bound.
        reach: largest distance from the centre.
        radius: its bound.
        gradient_error: largest relative difference of a directional derivative from a central difference.
    """

    curvature: float
    beta: float
    steepest: float
    loss: float
    lowest: float
    spread: float
    distance: float
    diameter: float
    reach: float
    radius: float
    gradient_error: float

    @property
    def holds(self) -> bool:
        """Whether nothing contradicts the constants, up to rounding and, for the curvature, differences of gradients."""
        slack = 1 + 1e-9
        return (
            self.curvature <= self.beta + 1e-6 * self.steepest
            and self.loss >= self.lowest - 1e-9 * self.spread - 1e-14 * abs(self.lowest)
            and self.distance <= self.diameter * slack
            and self.reach <= self.radius * slack
            and self.gradient_error <= 1e-6
        )


def audit(problem: Problem, seed: int = 0, samples: int = 20) -> Audit:
    """Tries to refute a testbed's constants: on random pairs of points, and along the directions in which the loss bends most.

    Args:
        problem: a testbed; of one that drifts, its first loss is tried.
        seed: of the draws.
        samples: pairs, and searches for a direction.

    Returns:
        What was seen.
    """
    rng, K = np.random.default_rng(seed), problem.constraint
    curvature, steepest, far, wide, slope = -inf, 0.0, 0.0, 0.0, 0.0
    losses = [problem.loss(K.centre)]
    for _ in range(samples):
        X, Y = K.sample(rng), K.sample(rng)
        length = float(np.linalg.norm(Y - X))
        far = max(far, float(np.linalg.norm(X - K.centre)))
        losses += [problem.loss(X), problem.loss(Y)]
        if length <= 1e-9 * K.diameter or K.diameter == 0:
            continue
        # L(Y) <= L(X) + <grad L(X), Y - X> + beta/2 |Y - X|^2, less what rounding can add.
        rise, ahead = losses[-1] - losses[-2], inner(problem.gradient(X), Y - X)
        rounding = 8 * np.finfo(float).eps * (abs(losses[-1]) + abs(losses[-2]) + abs(ahead))
        bend = 2 * (rise - ahead - rounding) / length**2
        top, largest = _steepest(problem, X, Y - X)
        curvature, steepest, wide = max(curvature, bend, top), max(steepest, largest), max(wide, length)
        # A central difference from the middle, of a step that rounding and the third derivative share evenly.
        middle, h = (X + Y) / 2, 1e-5
        difference = (problem.loss(middle + h * (Y - X)) - problem.loss(middle - h * (Y - X))) / (2 * h)
        exact = inner(problem.gradient(middle), Y - X)
        scale = abs(problem.loss(middle)) + abs(exact) + problem.beta * length**2
        slope = max(slope, abs(difference - exact) / max(scale, np.finfo(float).tiny))
    spread = max(losses) - min(losses)
    return Audit(
        curvature, problem.beta, steepest, min(losses), problem.lowest, spread, wide, K.diameter, far, K.radius, slope
    )  # fmt: skip


def _steepest(problem: Problem, X: Array, direction: Array, searches: int = 30) -> tuple[float, float]:
    """The largest eigenvalue of the Hessian near X, from below, and the largest ``|H direction|`` met on the way.

    Args:
        problem: the testbed.
        X: a point of K.
        direction: where the search begins.
        searches: power iterations on ``H + beta I``, by differences of gradients.

    Returns:
        The two.
    """
    c, h, best, largest = problem.constraint.centre, 1e-4 * problem.constraint.radius, -inf, 0.0
    inside = c + 0.99 * (X - c)
    for _ in range(searches):
        direction = direction / np.linalg.norm(direction)
        bent = (problem.gradient(inside + h * direction) - problem.gradient(inside - h * direction)) / (2 * h)
        best, largest = max(best, float(np.vdot(direction, bent))), max(largest, float(np.linalg.norm(bent)))
        direction = bent + problem.beta * direction
        if not direction.any():
            break
    return best, largest
