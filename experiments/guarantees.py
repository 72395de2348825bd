"""What theorems would guarantee a tracked run, were the largest curvature that was found the largest there is.

A run of the library becomes a trajectory of the theory's, and the theory's own theorems say the rest. Their beta must hold on
the whole set, which nobody has certified for a language model: with an estimate these are no guarantees but yardsticks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Any

import numpy as np

from theory.bounds import ChainBound, CircumradiusBound, FixedStepBound
from theory.links import TrainedLink
from theory.step_sizes import Fixed
from theory.trajectory import Constants, Iteration, Trajectory

Run = Mapping[str, Any]
LOWER, POINT, UPPER = range(3)


@dataclass(frozen=True)
class Yardstick:
    """A theorem beside a run, after t = 1..T links.

    Attributes:
        theorem: its name.
        measured: its left-hand side from the run's intervals, (T, 3).
        guaranteed: its right-hand side with the estimated beta and the points, (T,).
        spread: the same with the lower and with the upper ends of the measured shortfalls, (T, 2).
    """

    theorem: str
    measured: np.ndarray
    guaranteed: np.ndarray
    spread: np.ndarray

    @property
    def is_exceeded(self) -> bool:
        """Whether the measured lies above: not a theorem refuted, but a beta estimated too low."""
        return bool((self.measured[:, LOWER] > self.spread[:, 1] * (1 + 1e-9)).any())


def estimated_beta(curvatures: Sequence[float], runs: Sequence[Run]) -> float:
    """The largest curvature that was found at any knot of any run.

    Args:
        curvatures: found before the runs.
        runs: with those at their knots.

    Returns:
        An estimate of beta, from below.
    """
    return max(*curvatures, *(knot["curvature"] for run in runs for knot in run["knots"]))


def steepest_bend(run: Run) -> float:
    """The largest curvature along the run's own steps; where all bend down, 0, as for a concave loss."""
    return max(0.0, *(knot["bend"] for knot in run["knots"]))


def is_chain(run: Run) -> bool:
    """Whether a run is Algorithm 1, which has no step size."""
    return run["knots"][0]["eta"] is None


def yardsticks(run: Run, beta: float) -> list[Yardstick]:
    """The theorems about a run: F for Algorithm 1; A and C for Algorithm 2 with one step size.

    Args:
        run: as `tracking.track` leaves it.
        beta: an estimate.

    Returns:
        Each with the run's own decrease, the sharpest last.
    """
    theorems = [ChainBound()] if is_chain(run) else [FixedStepBound(), CircumradiusBound()]
    made = []
    for theorem in theorems:
        # An interval of the mean from the means of the ends: it fails only where one of its terms does.
        ends = [trajectory(run, beta, end) for end in (LOWER, POINT, UPPER)]
        measured = np.stack([theorem.measured(end) for end in ends], axis=1)
        lower, point, upper = (theorem.on_trajectory(end) for end in ends)
        made.append(Yardstick(theorem.name, measured, point, np.stack([lower, upper], axis=1)))
    return made


def trajectory(run: Run, beta: float, end: int = POINT) -> Trajectory:
    """A run of the library in the words of the theory.

    Args:
        run: as `tracking.track` leaves it.
        beta: an estimate.
        end: of the intervals that gap, norm and shortfall are taken at.

    Returns:
        A trajectory; of Algorithm 1 with Theorem F's shortfall ``[|G|_{F,r}^2/(2 beta) - (L(W_t) - L(W_{t+1}))]^+``.
    """
    knots, chain, R = run["knots"], is_chain(run), run["radius"] * sqrt(run["sites"])
    # The loss is a cross-entropy and never negative: its value bounds what it can fall by.
    constants = Constants(beta, 2 * R, R, initial_gap=knots[0]["loss"], oscillation=knots[0]["loss"], start_distance=0.0)
    iterations = []
    for t, knot in enumerate(knots, 1):
        total = knot["gap"]["total"]
        gap, eps, norm = (total[name][end] for name in ("gap", "eps", "truncated_norm"))
        if chain:
            eps = max(0.0, norm**2 / (2 * beta) - (knot["loss"] - knot["after"]))
        iterations.append(
            Iteration(t, knot["loss"], gap, eps, 1.0 if chain else knot["eta"], knot["distance"], 0.0, 0, 0, gradient_norm=norm)
        )
    rule = TrainedLink(run["rank"], knots[0]["step"]) if chain else Fixed(knots[0]["eta"])
    return Trajectory(run["label"], None, rule, constants, iterations, final_loss=run["last_loss"])
