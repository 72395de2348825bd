"""Runs of the theory package, held against its theorems."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from experiments.errors import UsageError
from theory import bounds, problems
from theory.bounds import Bound
from theory.chain import chain
from theory.discovery import concrete_classes
from theory.frank_wolfe import frank_wolfe
from theory.invariants import violations
from theory.links import LinkSolver, TrainedLink, TruncatedStep
from theory.problems import Problem, audit
from theory.step_sizes import Anytime, Centred, Fixed, LineSearch, OpenLoop, ShortStep, StepSize
from theory.trajectory import Trajectory

RULES: tuple[StepSize, ...] = (Fixed(), Centred(), Anytime(), ShortStep(), LineSearch(), OpenLoop())
LINKS: tuple[LinkSolver, ...] = (
    TruncatedStep(rank=1), TruncatedStep(rank=4), TrainedLink(rank=4, inner_steps=2), TrainedLink(rank=4, inner_steps=20),
)  # fmt: skip
POINTS = 120
"""Points of a curve that are kept for its figure, evenly spaced on a logarithmic axis."""


@dataclass(frozen=True)
class Work:
    """One testbed under one rule, at all horizons.

    Attributes:
        testbed: its class.
        rule: a step size; a link solver runs the chain.
        horizons: lengths of the runs.
        seed: of the testbed.
    """

    testbed: type[Problem]
    rule: StepSize | LinkSolver
    horizons: tuple[int, ...]
    seed: int


def plan(horizons: Sequence[int], links: Sequence[int], seed: int, names: Sequence[str] = ()) -> list[Work]:
    """Every testbed under every rule; chains where the constants hold on the whole space.

    Args:
        horizons: lengths of Frank-Wolfe runs.
        links: lengths of chains.
        seed: of the testbeds.
        names: the testbeds; none takes all.

    Returns:
        What to do.

    Raises:
        UsageError: there is no testbed of such a name.
    """
    found = {testbed.__name__: testbed for testbed in concrete_classes(problems, Problem)}
    for name in names:
        if name not in found:
            raise UsageError(f"--testbeds {name}: there is none; choose from {', '.join(found)}.")
    testbeds = [testbed for name, testbed in found.items() if not names or name in names]
    works = [Work(testbed, rule, tuple(sorted(horizons)), seed) for testbed in testbeds for rule in RULES]
    chained = [testbed for testbed in bounds.ChainBound().testbeds() if testbed in testbeds]
    return works + [Work(testbed, link, tuple(sorted(links)), seed) for testbed in chained for link in LINKS]


def execute(work: Work) -> dict[str, Any]:
    """Runs and checks.

    A rule that does not know the horizon makes the same iterates for all: the longest run is made once, and the shorter ones
    are its beginnings.

    Args:
        work: a testbed, a rule, lengths.

    Returns:
        Plain data: for each theorem its ratio at each horizon and its verdict; the violated invariants; the audit; the curves
        of the longest run.
    """
    problem = work.testbed.draw(work.seed)
    seen = audit(problem)
    wants_each = isinstance(work.rule, StepSize) and work.rule.needs_horizon
    horizons = work.horizons if wants_each else work.horizons[-1:]
    runs = [
        chain(problem, work.rule, T) if isinstance(work.rule, LinkSolver) else frank_wolfe(problem, work.rule, T)
        for T in horizons
    ]
    theorems: dict[str, dict[str, Any]] = {}
    for run in runs:
        ends = [len(run)] if wants_each else list(work.horizons)
        for bound in applicable(run):
            verdict = bound.check(run)
            row = theorems.setdefault(bound.name, {"verdict": bound.verdict, "ratios": {}, "violations": []})
            measured, guaranteed = bound.measured(run), bound.guaranteed(run)
            row["ratios"] |= {str(T): ratio(measured[T - 1], guaranteed[T - 1]) for T in ends}
            if not verdict.holds:
                row["violations"].append(f"T = {len(run)}, t = {verdict.first_violation}")
    is_chain = isinstance(work.rule, LinkSolver)
    return {
        "testbed": work.testbed.__name__,
        "about": (work.testbed.__doc__ or "").split("\n")[0],
        "rule": type(work.rule).__name__ + (f" {work.rule.label}" if isinstance(work.rule, LinkSolver) else ""),
        "chain": is_chain,
        "horizons": list(work.horizons),
        "theorems": theorems,
        "invariants": [] if is_chain else [f"{words} (T = {len(run)})" for run in runs for words in violations(run)],
        "audit": {**vars(seen), "holds": seen.holds},
        "loss": [float(runs[-1].column("loss")[0]), float(runs[-1].final_loss)],
        "eps": float(runs[-1].column("eps").mean()) if is_chain else 0.0,
        "M": runs[-1].constants.initial_gap,
        "rank": int(runs[-1].column("rank")[-1]),
        "curves": curves(runs[-1]),
    }


def applicable(run: Trajectory) -> list[Bound]:
    """The theorems that speak of a run."""
    return [bound for bound in bounds.all_bounds() if bound.obstacle(run) is None]


def ratio(measured: float, guaranteed: float) -> float | None:
    """``measured/guaranteed``; None where nothing is claimed, or nothing is left to bound."""
    return float(measured / guaranteed) if guaranteed > 0 and measured > 0 else None


def curves(run: Trajectory) -> dict[str, list[float]]:
    """What a figure shows of a run: t, the gap, its running mean and every theorem's guarantee.

    Args:
        run: the run.

    Returns:
        A list for each name, all of one length.
    """
    at = np.unique(np.geomspace(1, len(run), POINTS).round().astype(int)) - 1
    shown = {"t": at + 1.0, "gap": run.column("gap")[at], "mean gap": run.running_mean("gap")[at]}
    if run.method == "chain":
        shown = {"t": at + 1.0}
    for bound in applicable(run):
        # Without drift, Theorem E is Theorem A or D once more.
        if bound.verdict != "refuted" and (run.problem.drifts or not isinstance(bound, bounds.DriftBound)):
            shown[bound.name] = bound.guaranteed(run)[at]
            if not bound.statement.startswith("mean g "):
                shown[f"{bound.name}: measured"] = bound.measured(run)[at]
    return {name: values.tolist() for name, values in shown.items()}
