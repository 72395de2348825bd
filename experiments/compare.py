"""Methods on problems over seeds: many independent runs.

A run's result is a function of its problem, method and seed: each worker computes on one thread, and nothing is shared.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from experiments.methods import Method, effective_weights
from experiments.tasks.metric import Metric
from experiments.train import Setup, Task, train
from fwlora import ChainLoRAOptimizer


class Problem(Protocol):
    """A base model, data to adapt it to, and a measure of success."""

    @property
    def name(self) -> str:
        """The problem's key in the records."""
        ...

    @property
    def steps(self) -> int:
        """Optimizer steps of a run."""
        ...

    @property
    def metric(self) -> Metric:
        """What `evaluate` returns."""
        ...

    @property
    def targets(self) -> tuple[str, ...]:
        """The layers to adapt."""
        ...

    @property
    def watched(self) -> str:
        """The layer whose total update is analysed."""
        ...

    def model(self) -> nn.Module:
        """A fresh copy of the base model."""
        ...

    def task(self, seed: int) -> Task:
        """The data in the order of `seed`."""
        ...

    def evaluate(self, model: nn.Module) -> float:
        """The metric's value."""
        ...

    def outputs(self, model: nn.Module) -> Tensor:
        """The model's outputs on fixed inputs."""
        ...


@dataclass(frozen=True)
class Run:
    """One training run.

    Attributes:
        problem: what to adapt to.
        method: how.
        seed: of data order and draws.
        export_to: where to export the chain's adapter, to be reloaded and compared; None for no such check.
    """

    problem: Problem
    method: Method
    seed: int
    export_to: str | None = None


def execute(run: Run) -> dict[str, Any]:
    """Trains and measures.

    Args:
        run: what to do.

    Returns:
        One row of plain data; all of it but `seconds` is determined by the run.
    """
    began = perf_counter()
    problem = run.problem
    with one_thread():
        base = problem.model()
        before = effective_weights(base)[problem.watched]
        setup = run.method.prepare(base, problem.targets, steps=problem.steps, seed=run.seed)
        losses = train(setup, problem.task(run.seed), steps=problem.steps)
        update = effective_weights(setup.model)[problem.watched] - before
        value = problem.evaluate(setup.model)
        export = None if run.export_to is None else check_export(problem, setup, Path(run.export_to))
    optimizer = setup.optimizer
    return {
        "problem": problem.name,
        "method": run.method.label,
        "seed": run.seed,
        "value": value,
        "metric": problem.metric,
        "steps": problem.steps,
        "trainable": sum(parameter.numel() for parameter in setup.parameters),
        "losses": [round(loss, 6) for loss in losses],
        "knots": [record.step for record in optimizer.ledger] if isinstance(optimizer, ChainLoRAOptimizer) else [],
        "watched": problem.watched,
        "spectrum": torch.linalg.svdvals(update).tolist(),
        "export": export,
        "seconds": perf_counter() - began,
    }


def check_export(problem: Problem, setup: Setup, folder: Path) -> dict[str, Any]:
    """Exports the chain as one PEFT adapter, loads it onto an untouched base and compares the outputs.

    Args:
        problem: gives the base and the inputs.
        setup: the trained model with its chain.
        folder: where the adapter goes.

    Returns:
        The largest difference, the outputs' largest magnitude, and the adapter's rank and knots.
    """
    from peft import PeftModel

    assert isinstance(setup.optimizer, ChainLoRAOptimizer)
    expected = problem.outputs(setup.model)
    report = setup.optimizer.export_adapter(folder)
    reloaded = PeftModel.from_pretrained(problem.model(), str(folder))  # pyright: ignore[reportArgumentType]
    difference = problem.outputs(reloaded) - expected
    untouched = problem.outputs(problem.model()) - expected
    return {
        "largest_difference": float(difference.abs().max()),
        "largest_output": float(expected.abs().max()),
        "base_difference": float(untouched.abs().max()),
        "rank": max(report.ranks.values()),
        "knots": len(setup.optimizer.chain),
        "sites": len(report.ranks),
    }


@contextmanager
def one_thread() -> Iterator[None]:
    """One torch thread inside: sums are then taken in one order, whoever else computes."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
