"""What theorems ask of a problem and of a run, each in one place; a run is judged by its record, not by its rule's name."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from theory.problems import Problem
from theory.step_sizes import Anytime, OpenLoop, Step
from theory.trajectory import Trajectory

SAME = 1e-9
"""Relative difference at which two step sizes are one."""


class Assumption:
    """Says in words what is not met; None where all is well."""

    def of_problem(self, problem: Problem) -> str | None:
        """What the problem lacks."""
        return None

    def of_run(self, run: Trajectory) -> str | None:
        """What the run lacks."""
        return None


@dataclass(frozen=True)
class Static(Assumption):
    """The loss does not change with the iteration."""

    def of_problem(self, problem: Problem) -> str | None:
        """A drifting loss."""
        return f"{problem!r} drifts, and the theorem is about one loss" if problem.drifts else None


@dataclass(frozen=True)
class Convex(Assumption):
    """The loss is convex on the set."""

    def of_problem(self, problem: Problem) -> str | None:
        """A nonconvex loss."""
        return None if problem.convex else f"{problem!r} is not convex"


@dataclass(frozen=True)
class KnownMinimum(Assumption):
    """``min L`` is known, not only a lower bound of it."""

    def of_problem(self, problem: Problem) -> str | None:
        """No minimum."""
        return f"the minimum of {problem!r} is not known" if np.isnan(problem.at(1).minimum) else None


@dataclass(frozen=True)
class HoldsEverywhere(Assumption):
    """beta and the lower bound of the loss hold on the whole space."""

    def of_problem(self, problem: Problem) -> str | None:
        """Constants for the set only."""
        return (
            None
            if problem.everywhere
            else f"beta or the least loss of {problem!r} holds on its set only, and a chain leaves it"
        )


@dataclass(frozen=True)
class FrankWolfeStep(Assumption):
    """(A3) ``W_{t+1} = W_t + eta_t (V_t - W_t)`` with eta_t in [0, 1].

    Args:
        or_lower: admit a correction that lowered the loss further, which keeps the one-step inequality.
    """

    or_lower: bool = True

    def of_run(self, run: Trajectory) -> str | None:
        """Another algorithm, or a corrected iterate where that is not admitted."""
        if run.method != "Frank-Wolfe":
            return f"it was made by {run.method}, and the theorem is about the Frank-Wolfe step"
        if run.corrected and not self.or_lower:
            return "a correction moved its iterates, whose distance from the centre the proof follows"
        eta = run.column("eta")
        return None if ((eta >= 0) & (eta <= 1)).all() else "a step size lies outside [0, 1]"


@dataclass(frozen=True)
class ConstantStep(Assumption):
    """One eta > 0 for all iterations.

    Args:
        below_one: 1 itself is excluded, unless beta = 0.
    """

    below_one: bool = False

    def of_run(self, run: Trajectory) -> str | None:
        """A varying eta, or one at the border."""
        eta = run.column("eta")
        if np.ptp(eta) > SAME * eta.max():
            return "its step size is not constant"
        if eta[0] <= 0:
            return "its step size is 0"
        return (
            "its step size is 1, and the theorem needs eta < 1"
            if self.below_one and eta[0] >= 1 and run.constants.beta > 0
            else None
        )


@dataclass(frozen=True)
class AnytimeStep(Assumption):
    """``eta_t = min(1, sqrt(M_o/(C t)))``."""

    def of_run(self, run: Trajectory) -> str | None:
        """Another sequence."""
        return _differs(run, Anytime(), "min(1, sqrt(M_o/(beta D^2 t)))")


@dataclass(frozen=True)
class OpenLoopStep(Assumption):
    """``eta_t = 2/(t + 1)``."""

    def of_run(self, run: Trajectory) -> str | None:
        """Another sequence."""
        return _differs(run, OpenLoop(), "2/(t + 1)")


@dataclass(frozen=True)
class ShortStepOrBetter(Assumption):
    """``eta_t = clip(ghat_t/(beta |V_t - W_t|^2), 0, 1)``, or a step that lowers the loss as far as that one is sure to."""

    def of_run(self, run: Trajectory) -> str | None:
        """Another sequence that falls more slowly."""
        ghat = np.maximum(run.column("gap") - run.column("eps"), 0.0)
        bend, eta = run.constants.beta * np.square(run.column("distance")), run.column("eta")
        # eta = min(1, ghat/bend), as eta bend = min(bend, ghat); without bend, the whole step.
        clipped = np.minimum(bend, ghat)
        short = np.abs(eta * bend - clipped) <= SAME * (ghat + run.column("eps"))
        short &= (bend > 0) | (ghat == 0) | (eta == 1)
        # max_eta (eta ghat - eta^2 bend/2), what the short step is sure to take off
        share = np.divide(ghat, bend, out=np.ones_like(ghat), where=bend > ghat)
        sure = share * ghat - share**2 * bend / 2
        falls, grain = run.column("loss") - run.losses_after(), 8 * np.finfo(float).eps * np.abs(run.column("loss"))
        wrong = ~(short | (falls >= sure * (1 - SAME) - grain))
        if not wrong.any():
            return None
        t = int(wrong.argmax())
        return (
            f"its step size at t = {t + 1} is {eta[t]:.6g}, not clip(ghat/(beta |V - W|^2), 0, 1) = {share[t]:.6g}, and the "
            f"loss falls by {falls[t]:.6g}, less than the {sure[t]:.6g} of that one"
        )


@dataclass(frozen=True)
class FixedOrShortStep(Assumption):
    """A constant eta, the short step, or a line search."""

    def of_run(self, run: Trajectory) -> str | None:
        """Another sequence."""
        other = ShortStepOrBetter().of_run(run)
        return other if other and ConstantStep().of_run(run) else None


@dataclass(frozen=True)
class ChainStep(Assumption):
    """``W_{t+1} = W_t + Delta_t`` with ``rank Delta_t <= r``."""

    def of_run(self, run: Trajectory) -> str | None:
        """Another algorithm, or a link of a larger rank."""
        if run.method != "chain":
            return f"it was made by {run.method}, and the theorem is about the chain"
        grown = np.diff(run.column("rank"))
        return "its rank grows by more than r at a link" if (grown > run.step_size.rank).any() else None


def _differs(run: Trajectory, rule, formula: str) -> str | None:
    """Holds the recorded step sizes against a rule, whatever the run calls its own."""
    for i in run:
        step = Step(i.t, len(run), i.gap - i.eps, i.distance, run.constants, along=None)  # pyright: ignore[reportArgumentType]
        if not abs(rule.eta(step) - i.eta) <= SAME * rule.eta(step):
            return f"its step size at t = {i.t} is {i.eta:.6g}, and the theorem's is {formula} = {rule.eta(step):.6g}"
    return None
