"""Ground truth for convex testbeds: accelerated projected gradient, run until the Frank-Wolfe gap itself is at rounding."""

from __future__ import annotations

from math import sqrt
from typing import Protocol, runtime_checkable

import numpy as np

from theory.points import Array
from theory.problems.problem import Problem


@runtime_checkable
class Projectable(Protocol):
    """A set with a Euclidean projection."""

    def project(self, X: Array) -> Array:
        """The nearest point of the set."""
        ...


def minimise(problem: Problem, tolerance: float = 1e-10, most: int = 20_000) -> Array | None:
    """A minimiser of a convex problem: FISTA with restarts, step 1/beta.

    Args:
        problem: convex and smooth, on a set with a projection.
        tolerance: the gap, which bounds ``L(W) - min L``, relative to ``L(centre) - lowest``.
        most: iterations at the most.

    Returns:
        The point; None where the set has no projection, beta is 0, or the gap did not fall below the tolerance.

    Source: Beck and Teboulle 2009; restarts as in O'Donoghue and Candes 2015.
    """
    K = problem.constraint
    if not isinstance(K, Projectable) or problem.beta == 0:
        return None
    scale = max(problem.loss(K.centre) - problem.lowest, np.finfo(float).tiny)
    W = Y = K.centre
    momentum = 1.0
    for _ in range(most):
        following = K.project(Y - problem.gradient(Y) / problem.beta)
        if np.vdot(Y - following, following - W) > 0:  # the momentum points uphill
            Y, momentum = W, 1.0
            following = K.project(Y - problem.gradient(Y) / problem.beta)
        grown = (1 + sqrt(1 + 4 * momentum**2)) / 2
        Y, W, momentum = following + (momentum - 1) / grown * (following - W), following, grown
        G = problem.gradient(W)
        if np.vdot(G, W) + K.support(-G) <= tolerance * scale:
            return W
    return None
