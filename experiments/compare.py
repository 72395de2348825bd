"""Methods on problems over seeds: many independent runs.

A run's result is a function of its problem, method and seed: each worker computes on one thread, and nothing is shared.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any, Protocol, runtime_checkable

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
class Extent:
    """How much a run's training reads, from which its FLOPs follow.

    Attributes:
        examples: rows of all forward passes; a question counts once for each of its candidates.
        tokens: of those rows as they are padded, ``sum(rows * length)``.
        squares: ``sum(rows * length^2)``, to which attention is proportional.
    """

    examples: int
    tokens: int
    squares: int


@runtime_checkable
class LanguageProblem(Problem, Protocol):
    """A problem that also measures what rates are chosen by, beside the test, and says how much it reads."""

    @property
    def trained(self) -> tuple[str, ...]:
        """Modules that are trained in full beside any adapter, such as a new head."""
        ...

    @property
    def max_grad_norm(self) -> float | None:
        """Where the gradient's norm is clipped."""
        ...

    def validate(self, model: nn.Module) -> float:
        """The metric's value on the validation data."""
        ...

    def details(self, model: nn.Module) -> dict[str, float]:
        """Further measures, by their names."""
        ...

    def extent(self, seed: int) -> Extent:
        """What training in the order of `seed` reads."""
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
        One row of plain data; on a CPU all of it but `seconds` is determined by the run.
    """
    began = perf_counter()
    problem = run.problem
    language = problem if isinstance(problem, LanguageProblem) else None
    with one_thread(), torch.random.fork_rng():
        torch.manual_seed(run.seed)  # for a model's own dropout
        base = problem.model()
        before = effective_weights(base, only=problem.watched)[problem.watched]
        trained = () if language is None else language.trained
        setup = run.method.prepare(base, problem.targets, steps=problem.steps, seed=run.seed, trained=trained)
        limit = None if language is None else language.max_grad_norm
        losses = train(setup, problem.task(run.seed), steps=problem.steps, max_grad_norm=limit)
        update = effective_weights(setup.model, only=problem.watched)[problem.watched] - before
        value = problem.evaluate(setup.model)
        beside = {} if language is None else {
            "validation": language.validate(setup.model),
            "details": language.details(setup.model),
            "extent": asdict(language.extent(run.seed)),
        }  # fmt: skip
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
        # A run that came to nothing has none.
        "spectrum": torch.linalg.svdvals(update).tolist() if bool(update.isfinite().all()) else [],
        "export": export,
        **beside,
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
