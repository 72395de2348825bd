"""What an aligned start costs in time: its probe steps against ordinary ones, and whole runs with it and without."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from statistics import median
from time import perf_counter
from typing import Any

from experiments.compare import Problem, one_thread
from experiments.methods import ChainOfLoRA
from experiments.train import train
from fwlora import ChainLoRAOptimizer, GradientAligned


def measure(problem: Problem, drawn: ChainOfLoRA, aligned: ChainOfLoRA, *, repeats: int) -> dict[str, Any]:
    """Trains both chains in turns in this process and takes medians.

    A step is all that the loop does for it: batch, forward, backward and update. Steps that tie a knot are counted in the
    whole runs only.

    Args:
        problem: what to adapt to.
        drawn: the chain whose links start from a draw.
        aligned: the same chain with `GradientAligned`.
        repeats: runs of each.

    Returns:
        Plain data: the median milliseconds of an ordinary step and of a probe step of the aligned chain with their ratio and
        the number of probe steps, and the ratio of the median seconds of the runs.
    """
    assert isinstance(aligned.reset, GradientAligned)
    seconds: dict[str, list[float]] = {drawn.label: [], aligned.label: []}
    ordinary: list[float] = []
    probes: list[float] = []
    with one_thread():
        _timed(problem, aligned, seed=0)  # what is done once only, such as a first allocation, is no step's own cost
        for seed in range(repeats):
            for method in (drawn, aligned):
                steps, knots = _timed(problem, method, seed=seed)
                seconds[method.label].append(sum(steps))
                if method is aligned:
                    first = {start + probe for start in (0, *knots) for probe in range(aligned.reset.steps)}
                    probes += [time for index, time in enumerate(steps) if index in first]
                    ordinary += [time for index, time in enumerate(steps) if index not in first and index + 1 not in knots]
    return {
        "repeats": repeats,
        "steps": problem.steps,
        "probes": len(probes),
        "ordinary_ms": 1e3 * median(ordinary),
        "probe_ms": 1e3 * median(probes),
        "step_ratio": median(probes) / median(ordinary),
        "run_ratio": median(seconds[aligned.label]) / median(seconds[drawn.label]),
        "seconds": seconds,
    }


def _timed(problem: Problem, method: ChainOfLoRA, *, seed: int) -> tuple[Sequence[float], Sequence[int]]:
    """The seconds of each step, and the steps done when knots were tied."""
    setup = method.prepare(problem.model(), problem.targets, steps=problem.steps, seed=seed)
    times = [perf_counter()]
    train(setup, problem.task(seed), steps=problem.steps, on_step=lambda record: times.append(perf_counter()))
    assert isinstance(setup.optimizer, ChainLoRAOptimizer)
    steps = [end - start for start, end in pairwise(times)]
    return steps, [record.step for record in setup.optimizer.ledger]
