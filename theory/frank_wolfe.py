"""Frank-Wolfe, Algorithm 2 of the paper (arXiv 2401.04151), to be read beside it.

Line by line::

    paper                                                     here
    1  for t = 1, ..., T                                      for t in range(1, T + 1)
    2    V_t: <V_t, grad L_t> <= min_K <V, grad L_t> + eps    answer = ask(G, W)
    3    W_{t+1} = (1 - eta_t) W_t + eta_t V_t                W = toward(W, V, eta)

The paper prints the oracle with a maximum; a descent method needs the minimum. What COLA runs, ``W <- W + B A`` without the
shrink and without a set, is Algorithm 1: `theory.chain`.
"""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter
from typing import Any

import numpy as np

from theory.corrections import Correction
from theory.errors import ArgumentError, count
from theory.gradients import Full, Gradient
from theory.oracles import Exact, Oracle, shortfall
from theory.points import distance, inner, toward
from theory.problems.problem import Problem, Segment
from theory.step_sizes import Step, StepSize
from theory.trajectory import Drift, Iteration, Trajectory

EXACT, FULL = Exact(), Full()


def frank_wolfe(
    problem: Problem,
    step_size: StepSize,
    steps: int,
    *,
    start: Any = None,
    oracle: Oracle = EXACT,
    gradient: Gradient = FULL,
    correction: Correction | None = None,
    seed: int = 0,
    on_iteration: Callable[[Iteration], object] | None = None,
) -> Trajectory:
    """Runs Algorithm 2 and records every quantity of the theorems: ``g_t``, ``eps_t``, ``eta_t``, ``|V_t - W_t|``, ...

    Args:
        problem: the loss and its set.
        step_size: eta_t.
        steps: T.
        start: W_1, a point of the set; None takes the problem's own.
        oracle: who finds the vertex.
        gradient: what the oracle is asked with.
        correction: lowers the loss further after a step, within the set.
        seed: of all draws.
        on_iteration: told each record as it is made.

    Returns:
        The run. Its gap is exact where the oracle's eps is; `Lanczos` gives upper bounds of both, each with its probability.

    Raises:
        ArgumentError: T is not positive, the start lies outside, or a rule gave eta outside [0, 1].

    Example:
        >>> from theory.problems import WorstCase
        >>> from theory.step_sizes import Fixed
        >>> run = frank_wolfe(WorstCase(), Fixed(), steps=1)
        >>> bool(run.column("gap")[0] == run.problem.constraint.diameter * run.problem.slope)
        True

    Source: Frank and Wolfe 1956; Jaggi 2013; Algorithm 2 of arXiv 2401.04151.
    """
    T, rng, K = count("steps", steps), np.random.default_rng(seed), problem.constraint
    W = problem.admit(start)
    run = Trajectory("Frank-Wolfe", problem, step_size, problem.constants(W), corrected=correction is not None)
    ask = oracle.open(K, rng)
    run.start_rank = problem.rank(W)
    loss = problem.at(1).loss(W)

    for t in range(1, T + 1):
        began = perf_counter()
        L = problem.at(t)
        G = L.gradient(W)
        estimate = gradient.at(L, W, G, rng)
        answer = ask(estimate, W)
        V = answer.vertex
        # (A2)  <V_t, G_t> <= min_K <V, G_t> + eps_t with the true gradient, whatever the oracle was asked with.
        eps = answer.eps if estimate is G else shortfall(K, G, V)
        ghat, length = inner(G, W) - inner(G, V), distance(V, W)
        eta = checked_eta(step_size, Step(t, T, ghat, length, run.constants, Segment(L, W, V)))
        rank = problem.rank(W)

        W = toward(W, V, eta)  # (A3)
        after, following = L.loss(W), problem.at(t + 1)
        if correction is not None:
            W, after = corrected(correction, L, W, after, t)

        drift = Drift(*problem.drift(t), here=following.loss(W) - after) if following is not L and t < T else Drift()
        # g_t = <G, W - V> + (<G, V> - min_K <G, .>) = ghat_t + eps_t
        record = Iteration(t, loss, ghat + eps, eps, eta, length, perf_counter() - began, answer.calls, rank, drift=drift)
        run.iterations.append(record)
        loss = after + drift.here
        if on_iteration is not None:
            on_iteration(record)

    run.final, run.final_loss = W, loss
    return run


def corrected(correction: Correction, L: Problem, W: Any, loss: float, t: int) -> tuple[Any, float]:
    """The correction's point and its loss.

    Args:
        correction: what follows the step.
        L: the loss.
        W: the point after the step.
        loss: at W.
        t: the iteration.

    Returns:
        A point of the set with a loss at most `loss`, and its loss.

    Raises:
        ArgumentError: the correction broke its promise: the loss rose, or the point lies outside.
    """
    better = correction.apply(L, W, t)
    if better is W:
        return W, loss
    after = L.loss(better)
    if not after <= loss:
        raise ArgumentError(
            f"{correction!r} raised the loss from {loss!r} to {after!r} at t = {t}: return W where nothing is better."
        )
    if not L.contains(better, tolerance=1e-8):
        raise ArgumentError(f"{correction!r} left {L.constraint!r} at t = {t}: scale its point back into the set.")
    return better, after


def checked_eta(step_size: StepSize, step: Step) -> float:
    """The rule's eta.

    Args:
        step_size: the rule.
        step: what it may know.

    Returns:
        A number in [0, 1].

    Raises:
        ArgumentError: it lies outside, or is no number.
    """
    eta = step_size.eta(step)
    if not 0 <= eta <= 1:
        raise ArgumentError(
            f"{step_size!r} gave eta = {eta!r} at t = {step.t}, and must give a number from 0 to 1, so that W + eta (V - W) "
            "stays in the set."
        )
    return eta
