"""What is true of every Frank-Wolfe run, whatever the step sizes: each line is a small theorem, so a violation is a bug."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from theory.errors import AssumptionError
from theory.trajectory import Trajectory

ROUNDING = 1e-10


def violations(run: Trajectory) -> list[str]:
    """Holds a run of `frank_wolfe` against what is true of every one.

    - (*) ``L_t(W_{t+1}) <= L_t(W_t) - eta_t ghat_t + beta/2 eta_t^2 |V_t - W_t|^2`` with ``ghat_t = g_t - eps_t``,
    - ``0 <= eta_t <= 1``, ``g_t >= 0``, ``eps_t >= 0``, ``|V_t - W_t| <= D``,
    - ``g_t >= h_t = L(W_t) - min L`` where L is convex and its minimum known,
    - ``rank W_t <= rank W_1 + r (t - 1)`` for atoms of rank r, and ``W_{T+1}`` in K.

    Args:
        run: the run.

    Returns:
        A sentence for each line that is violated, naming the first iteration; none where all is well.

    Raises:
        AssumptionError: the run was made by another method, whose moves are others.
    """
    if run.method != "Frank-Wolfe":
        raise AssumptionError(f"`violations(run)` is about runs of `frank_wolfe`, and this one was made by {run.method}.")
    return [f"{words} at t = {t}" for words, t in _found(run)]


def _found(run: Trajectory) -> Iterator[tuple[str, int]]:
    loss, gap, eps, eta, far = (run.column(name) for name in ("loss", "gap", "eps", "eta", "distance"))
    constants, K = run.constants, run.problem.constraint
    promised = loss - eta * (gap - eps) + constants.beta / 2 * np.square(eta * far)
    size = np.abs(loss) + np.abs(gap) + constants.curvature
    checks = {
        "the one-step inequality fails": run.losses_after() - promised,
        "the gap is negative": -gap,
        "the shortfall is negative": -eps,
    }
    if run.problem.convex and not run.problem.drifts and not np.isnan(constants.lowest):
        checks["the gap is below the primal error"] = loss - constants.lowest - gap
    for words, excess in checks.items():
        yield from _first(words, ~(excess <= ROUNDING * size))
    yield from _first("the vertex lies farther than the diameter", ~(far <= constants.diameter * (1 + ROUNDING)))
    yield from _first("the step size lies outside [0, 1]", ~((eta >= 0) & (eta <= 1)))
    if not run.corrected:
        yield from _first("the rank grew too fast", run.column("rank") > run.start_rank + K.atom_rank * np.arange(len(run)))
    if not run.problem.contains(run.final, tolerance=1e-8):
        yield "the run left its set", len(run) + 1


def _first(words: str, wrong: np.ndarray) -> Iterator[tuple[str, int]]:
    if wrong.any():
        yield words, int(wrong.argmax()) + 1
