"""The chain, Algorithm 1 of the paper (arXiv 2401.04151): what COLA runs.

Line by line::

    paper                                     here
    1  for t = 1, ..., T                      for t in range(1, T + 1)
    2    B, A = argmin L(W_t + B A)           Delta = link.link(L, W, G, rng)
    3    W_{t+1} = W_t + B A                  W = W + Delta

No set, no shrink: it is not Algorithm 2, and its guarantee is :prf:ref:`Theorem F <chain>` (`theory.bounds.ChainBound`).
"""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter

import numpy as np

from theory.errors import ArgumentError, count
from theory.links import LinkSolver
from theory.points import Array, dense
from theory.problems.problem import Problem
from theory.sets.support_ball import truncated_norm
from theory.trajectory import Iteration, Trajectory


def chain(
    problem: Problem,
    link: LinkSolver,
    steps: int,
    *,
    start: Array | None = None,
    seed: int = 0,
    on_iteration: Callable[[Iteration], object] | None = None,
) -> Trajectory:
    """Runs the chain and records ``|G_t|_{F,r}`` and each link's shortfall against one truncated gradient step.

    Args:
        problem: a loss on matrices whose constants hold on the whole space; its set is not used.
        link: who finds the next link.
        steps: T, the number of links.
        start: W_1, any matrix; None takes the problem's own.
        seed: of all draws.
        on_iteration: told each record as it is made.

    Returns:
        The run, with `gap` nan.

    Raises:
        ArgumentError: T is not positive, the start is no matrix of its shape, or the problem is of another kind.

    Example:
        >>> from theory.links import TruncatedStep
        >>> from theory.problems import Completion
        >>> run = chain(Completion(np.diag([3.0, 2.0, 1.0])), TruncatedStep(rank=1), steps=3)
        >>> run.column("gradient_norm").round(12).tolist(), round(run.final_loss, 12)
        ([3.0, 2.0, 1.0], 0.0)

    Source: Algorithm 1 of arXiv 2401.04151.
    """
    T, rng, r = count("steps", steps), np.random.default_rng(seed), link.rank
    if len(problem.constraint.shape) != 2 or not problem.everywhere or problem.drifts:
        raise ArgumentError(
            f"`chain(problem=...)` needs a loss on matrices that stands still and whose constants hold on the whole space, and "
            f"{problem!r} is none: use `frank_wolfe`."
        )
    W = dense(problem.point(start))
    run = Trajectory("chain", problem, link, problem.constants(W), start_rank=problem.rank(W))
    loss = problem.loss(W)

    for t in range(1, T + 1):
        began = perf_counter()
        G = dense(problem.gradient(W))
        norm = truncated_norm(G, r)
        rank = problem.rank(W)

        Delta = link.link(problem, W, G, rng)
        W = W + Delta

        after = problem.loss(W)
        # eps_t = [ |G_t|_{F,r}^2/(2 beta) - (L(W_t) - L(W_{t+1})) ]^+
        eps = max(0.0, norm**2 / (2 * problem.beta) - (loss - after))
        record = Iteration(
            t, loss, float("nan"), eps, 1.0, float(np.linalg.norm(Delta)), perf_counter() - began, 1, rank, gradient_norm=norm
        )
        run.iterations.append(record)
        loss = after
        if on_iteration is not None:
            on_iteration(record)

    run.final, run.final_loss = W, loss
    return run
