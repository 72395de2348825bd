"""What a theorem can do as an object: say its assumptions and its value, check itself on a run, and show where it is tight."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, Literal

import numpy as np

from theory import problems
from theory.bounds.assumptions import Assumption
from theory.discovery import concrete_classes
from theory.errors import ArgumentError, AssumptionError, count
from theory.points import Array
from theory.problems import Problem
from theory.trajectory import Constants, Trajectory

ROUNDING = 1e-9
"""What float64 may add to a sum of a run's length, relative to the size of its terms."""


@dataclass(frozen=True)
class Certificate:
    """A bound's verdict on a run.

    Attributes:
        bound: its name.
        holds: whether ``measured <= guaranteed`` at every t, up to rounding.
        slack: the smallest ``on_trajectory - measured`` over all t; where the bound is violated, its proof's worst margin.
        first_violation: the first t at which it is violated, else None.
        measured: the left-hand side after the whole run.
        guaranteed: the right-hand side known before the run, at its length.
    """

    bound: str
    holds: bool
    slack: float
    first_violation: int | None
    measured: float
    guaranteed: float

    @property
    def ratio(self) -> float:
        """``measured/guaranteed``: 1 where nothing is given away."""
        if self.guaranteed == 0:
            return float("nan") if self.measured == 0 else float("inf")
        return self.measured / self.guaranteed


@dataclass(frozen=True)
class TightExample:
    """A run that attains a bound.

    Attributes:
        problem: the testbed.
        rule: the step size; for Theorem F, the link solver.
        steps: T.
    """

    problem: Problem
    rule: object
    steps: int


class Bound(ABC):
    """A theorem about a run.

    Attributes:
        name: as the documentation calls it.
        statement: the inequality.
        verdict: "tight" where some run attains it, "upper" where none is known, "refuted" where some run violates it.
        requires: what must be true of the problem and of the run.
    """

    name: ClassVar[str]
    statement: ClassVar[str]
    verdict: ClassVar[Literal["tight", "upper", "refuted"]]
    requires: ClassVar[Sequence[Assumption]]

    @abstractmethod
    def value(self, T: int, constants: Constants, eps: float = 0.0) -> float:
        """The guarantee after T iterations with the step size that the theorem prescribes.

        Args:
            T: iterations.
            constants: of the problem.
            eps: mean shortfall of the oracle.

        Returns:
            The right-hand side.
        """

    def measured(self, run: Trajectory) -> Array:
        """The left-hand side after t = 1..T iterations, ``(T,)``: the mean gap, unless the theorem is about something else."""
        return run.running_mean("gap")

    def between(self, run: Trajectory) -> Array:
        """A middle term of the proof, ``measured <= between <= on_trajectory``, ``(T,)``; `measured` where there is none."""
        return self.measured(run)

    @abstractmethod
    def guaranteed(self, run: Trajectory) -> Array:
        """The right-hand side from the constants, the step sizes and the measured eps, ``(T,)``."""

    @abstractmethod
    def on_trajectory(self, run: Trajectory) -> Array:
        """The right-hand side with the run's own decrease in place of M, ``(T,)``: at most `guaranteed`."""

    def tight_example(self) -> TightExample | None:
        """A run that attains the bound, where one is known."""
        return None

    def obstacle(self, run: Trajectory) -> str | None:
        """The first assumption that a run does not meet, in words; None where it meets all."""
        said = (assumption.of_problem(run.problem) or assumption.of_run(run) for assumption in self.requires)
        return next((words for words in said if words), None)

    def testbeds(self) -> list[type[Problem]]:
        """The testbeds that meet the assumptions on the problem."""
        return [
            kind for kind in concrete_classes(problems, Problem) if not any(a.of_problem(kind.draw()) for a in self.requires)
        ]

    def check(self, run: Trajectory) -> Certificate:
        """Holds the run against the bound at every t, first with the run's own decrease, then with M.

        Args:
            run: made by `frank_wolfe`, or by `chain` for Theorem F.

        Returns:
            The verdict.

        Raises:
            ArgumentError: the run is empty, or holds what is not finite.
            AssumptionError: the run does not meet an assumption: the theorem says nothing about it.
        """
        count(f"{self.name}.check(run): len(run)", len(run))
        obstacle = self.obstacle(run)
        if obstacle:
            raise AssumptionError(
                f"{self.name} says nothing about this run: {obstacle}. Of `theory.bounds.all_bounds()`, those whose "
                "`obstacle(run)` is None do."
            )
        chain = [self.measured(run), self.between(run), self.on_trajectory(run), self.guaranteed(run)]
        if not np.isfinite(chain).all():
            raise ArgumentError(f"{self.name}.check(run): the run holds numbers that are not finite.")
        measured, _, closer, known = chain
        # measured <= between <= on_trajectory <= guaranteed, each link to the rounding of its own terms
        margins = [high - low for low, high in pairwise(chain)]
        allowed = [ROUNDING * (np.abs(low) + np.abs(high)) + self.rounding(run) for low, high in pairwise(chain)]
        violated = np.flatnonzero(np.any([margin < -slack for margin, slack in zip(margins, allowed, strict=True)], axis=0))
        first = int(violated[0]) + 1 if len(violated) else None
        slack = float((closer - measured).min()) if first is None else float(np.min(margins))
        return Certificate(self.name, first is None, slack, first, float(measured[-1]), float(known[-1]))

    def rounding(self, run: Trajectory) -> Array:
        """What float64 can add, ``(T,)``: losses are known to ``u |L|``, and W to u D, which moves its gap by u beta D^2."""
        eta = run.column("eta")
        lost = np.abs(run.column("loss")) / eta[eta > 0].min(initial=1.0)
        return 8 * np.finfo(float).eps * (np.maximum.accumulate(lost) + run.constants.curvature)

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


class DecreaseBound(Bound):
    """A theorem whose right-hand side depends on how far the loss fell: by the run's own decrease, or by M at the most."""

    @abstractmethod
    def given(self, run: Trajectory, fall: Array) -> Array:
        """The right-hand side for decreases ``fall``, ``(T,)``."""

    def guaranteed(self, run: Trajectory) -> Array:
        """With M."""
        return self.given(run, np.full(len(run), run.constants.initial_gap))

    def on_trajectory(self, run: Trajectory) -> Array:
        """With h'."""
        return self.given(run, decrease(run))

    def rounding(self, run: Trajectory) -> Array:
        """What the rounding of the decrease can add to `on_trajectory`."""
        fall = np.maximum(decrease(run), 0.0)
        grain = 4 * np.finfo(float).eps * np.maximum.accumulate(np.abs(run.column("loss"))) * horizons(run)
        return super().rounding(run) + self.given(run, fall + grain) - self.given(run, fall)


def horizons(run: Trajectory) -> Array:
    """The horizons t = 1..T as numbers."""
    return np.arange(1, len(run) + 1, dtype=float)


def summed_steps(run: Trajectory, far: Array | float) -> Array:
    """(*) divided by eta_t and averaged: ``mean [fall_t/eta_t + beta/2 eta_t far_t^2 + eps_t]``.

    Args:
        run: its losses, step sizes and shortfalls.
        far: ``|V_t - W_t|``, or what bounds it.

    Returns:
        At least the mean gap, ``(T,)``.
    """
    eta, falls = run.column("eta"), run.column("loss") - run.losses_after()
    terms = falls / eta + run.constants.beta / 2 * eta * np.square(far)
    return terms.cumsum() / horizons(run) + run.running_mean("eps")


def decrease(run: Trajectory) -> Array:
    """``L_1(W_1) - L_t(W_{t+1})`` plus what drift put in between: ``sum_{s <= t} [L_s(W_s) - L_s(W_{s+1})]``, ``(T,)``."""
    return (run.column("loss") - run.losses_after()).cumsum()
