"""Runs on a target that moves, at a speed that falls with the horizon."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from theory.bounds import DriftBound
from theory.frank_wolfe import frank_wolfe
from theory.invariants import violations
from theory.problems import DriftingCompletion
from theory.problems.completion import low_rank
from theory.sets import NuclearBall
from theory.step_sizes import Fixed, ShortStep

RULES = ("fixed, tuned to M", "fixed, tuned to M and the drift", "short step")
SPEED = 0.5
"""Radians per iteration at T = 1."""


@dataclass(frozen=True)
class Work:
    """One run.

    Attributes:
        exponent: a; the target turns by ``SPEED T^-a`` at each iteration, so that the drift of the whole run grows as ``T^(1 -
            a)``.
        rule: one of `RULES`.
        horizon: T.
        seed: of the target.
    """

    exponent: float
    rule: str
    horizon: int
    seed: int


def target(exponent: float, T: int, seed: int) -> DriftingCompletion:
    """Two matrices of rank one and of one nuclear norm, between which the target turns; every entry is seen.

    Args:
        exponent: a.
        T: the horizon.
        seed: of the matrices.

    Returns:
        The problem.
    """
    rng, shape = np.random.default_rng(seed), (12, 10)
    Y, Z = (low_rank(rng, shape, rank=1) for _ in range(2))
    Y, Z = Y / np.linalg.norm(Y), Z / np.linalg.norm(Z)
    return DriftingCompletion(Y, Z, np.ones(shape), NuclearBall(shape, 1.5), speed=SPEED * T**-exponent, power=0.0)


def execute(work: Work) -> dict[str, Any]:
    """Runs and holds the run against Theorem E.

    Args:
        work: what to run.

    Returns:
        Plain data: the mean gap, the guarantee from the suprema of the drift, the one from the trace, and whether both hold.
    """
    problem, T = target(work.exponent, work.horizon, work.seed), work.horizon
    up, down = problem.total_drift(T)
    rule = {RULES[0]: Fixed(), RULES[1]: Fixed(drift=up + down), RULES[2]: ShortStep()}[work.rule]
    run, bound = frank_wolfe(problem, rule, T), DriftBound(up, down)
    verdict = bound.check(run)
    return {
        "exponent": work.exponent,
        "rule": work.rule,
        "T": T,
        "drift": up + down,
        "eta": float(run.column("eta").mean()),
        "mean gap": verdict.measured,
        "a priori": verdict.guaranteed,
        "on trajectory": float(bound.on_trajectory(run)[-1]),
        "violations": [] if verdict.holds else [f"Theorem E at t = {verdict.first_violation}"],
        "invariants": violations(run),
    }
