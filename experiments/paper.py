"""A study under the paper's protocol: what is to be run, what cannot be, and the runs themselves."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from experiments.accounting.architectures import config_of, skeleton
from experiments.accounting.flops import StepCost, cost_of, run_flops
from experiments.accounting.memory import Bytes, fits, training_bytes
from experiments.compare import Extent, Run
from experiments.errors import UsageError
from experiments.language.loading import DTYPES
from experiments.methods import Method, unavailable
from experiments.pages import paper as page
from experiments.pages.paper_results import collect, forecast
from experiments.progress import progress
from experiments.protocol import ProtocolOptions, check, resolve
from experiments.starting import open_folder, prepare
from experiments.sweep import Sweep
from experiments.tasks.language.source import Sampling, names
from experiments.tasks.pretrained import Pretrained
from experiments.tasks.prompted import problem as prompted

# Where neither data nor tokenizer can be read, a plan has to assume how long a prompt is.
ASSUMED_LENGTH, ASSUMED_CANDIDATES = 256, 2
# Tasks with too few rows for what the others take.
SMALL: dict[str, Callable[[ProtocolOptions], tuple[int, int, int]]] = {
    "CB": lambda options: options.examples_cb,
    "WSC": lambda options: options.examples_wsc,
}

Entries = Callable[[ProtocolOptions, int], Mapping[str, Method]]
"""The methods by their names, from the options and the number of optimizer steps."""


@dataclass(frozen=True)
class Cell:
    """A method on a task.

    Attributes:
        task: its name.
        method: at the rate 1, or what stands for it.
        steps: optimizer steps of a run.
        parameters: trained numbers.
        flops: of a run.
        memory: of a step with the longest rows of a batch.
        measured: whether the rows' lengths were read from the data.
        reason: why there are no runs; None where there are.
    """

    task: str
    method: Method
    steps: int
    parameters: int
    flops: float
    memory: Bytes
    measured: bool
    reason: str | None

    def runs(self, options: ProtocolOptions) -> list[Run]:
        """Every rate on every seed."""
        if self.reason is not None:
            return []
        return [
            Run(problem(options, self.task, seed), replace(self.method, lr=lr * self.method.lr), seed)  # pyright: ignore[reportArgumentType]
            for lr in options.lrs
            for seed in range(options.seeds)
        ]


def problem(options: ProtocolOptions, task: str, seed: int) -> Pretrained:
    """A task in a seed's sample.

    Args:
        options: the protocol.
        task: its name.
        seed: of the sample.

    Returns:
        The problem.

    Raises:
        UsageError: its data cannot be read.
    """
    return prompted(
        task,
        base=resolve(options),
        data_dir=None if options.data_dir is None else str(options.data_dir),
        sampling=Sampling(*SMALL.get(task, lambda options: options.examples)(options)),
        draw=seed,
        epochs=options.epochs,
        limit=options.max_steps,
        batch_size=options.batch_size,
        max_length=options.max_length,
        max_new_tokens=options.max_new_tokens,
        dtype=options.dtype,
        device=options.device,
        targets=options.target_modules,
    )


def plan(options: ProtocolOptions, entries: Entries) -> list[Cell]:
    """Every cell of the study, with what it will cost.

    Args:
        options: the protocol.
        entries: the methods.

    Returns:
        The cells, task by task.

    Raises:
        UsageError: the data or the model cannot be read, and more than a plan is asked for.
    """
    cells: list[Cell] = []
    costs: dict[Any, StepCost] = {}
    # A hub that was out of reach once is not asked again: it takes its time to say so.
    reachable = True
    with progress(total=len(options.tasks), description="plan", unit="task") as bar:
        for task in options.tasks:
            found = None
            try:
                found = problem(options, task, seed=0) if reachable else None
            except UsageError:
                local = options.data_dir is not None and Path(resolve(options)).is_dir()
                if local or not options.dry_run or task not in names():
                    raise
                reachable = False
            steps, extent = _assumed(options, task) if found is None else (found.steps, found.extent(0))
            cells += [_cell(options, task, method, found, steps, extent, costs) for method in entries(options, steps).values()]
            bar.update()
    return cells


def carry_out(config: Any, entries: Entries, *, title: str, lead: str) -> None:
    """A whole study: its plan, its runs or those that are finished already, its report and what is printed.

    Args:
        config: with `protocol` and `out`.
        entries: the methods.
        title: of the page.
        lead: one sentence on it.

    Raises:
        UsageError: an option, a file or the model is not usable.
    """
    options: ProtocolOptions = config.protocol
    check(options)
    prepare(config, hub=True)
    if options.device == "cuda" and not torch.cuda.is_available() and not options.dry_run:
        raise UsageError("--device cuda: torch finds no CUDA device here; give --device cpu, or --dry-run for the plan alone.")
    entries(options, options.max_steps or 1)  # a wrong name is told before data and models are read
    cells = plan(options, entries)
    if options.dry_run:
        print(forecast([record(cell) for cell in cells], len(options.lrs) * options.seeds))
        return
    folder = open_folder(config)
    sweep = Sweep(folder.path / "runs.sqlite", options.workers, options.scheduler)
    rows = conduct(cells, options, sweep)
    folder.write_json("plan.json", [record(cell) for cell in cells])
    folder.replace_rows("runs.jsonl", rows)
    page.build(folder, title, lead)
    results = collect(folder)
    print(f"\n{results.overview().to_text()}\n", *page.findings(results), sep="\n  ")
    print(f"\nReport: {folder.path / 'report.html'}")


def conduct(cells: list[Cell], options: ProtocolOptions, sweep: Sweep) -> list[dict[str, Any]]:
    """Makes the runs, or finds them made.

    Args:
        cells: of the plan.
        options: the protocol.
        sweep: keeps and makes runs.

    Returns:
        A row a run, with its rate.
    """
    # The costliest first: no worker is left alone with one of them at the end.
    runs = [run for cell in sorted(cells, key=lambda cell: -cell.flops) for run in cell.runs(options)]
    rows = sweep.rows(runs, "fine-tuning")
    return [row | {"task": run.problem.name, "label": run.method.label, "lr": run.method.lr, "seed": run.seed}
            for row, run in zip(rows, runs, strict=True)]  # fmt: skip


def record(cell: Cell) -> dict[str, Any]:
    """A cell in plain data."""
    return {
        "task": cell.task, "method": cell.method.label, "steps": cell.steps, "parameters": cell.parameters, "flops": cell.flops,
        "memory": asdict(cell.memory), "measured": cell.measured, "reason": cell.reason,
        "knots": cell.method.planned_knots(cell.steps),
    }  # fmt: skip


def _cell(
    options: ProtocolOptions, task: str, method: Method, found: Pretrained | None, steps: int, extent: Extent,
    costs: dict[Any, StepCost],
) -> Cell:  # fmt: skip
    missing, trained = unavailable(method), () if found is None else found.trained
    if missing is not None:
        return Cell(task, method, steps, 0, math.nan, Bytes(0, 0, 0, 0), found is not None, missing)

    def fresh() -> nn.Module:
        if found is None:
            return skeleton(config_of(resolve(options)), DTYPES[options.dtype])
        return found.start.skeleton(options.dtype)

    # What a token costs is the same on every task, but for an encoder's head.
    if (method, trained) not in costs:
        costs[method, trained] = cost_of(method, fresh(), options.target_modules, trained=trained)
    cost = costs[method, trained]
    # A batch has a row for each candidate of its examples; their lengths are taken to be the mean.
    rows, length = max(1, round(extent.examples / steps)), max(1, round(extent.tokens / extent.examples))
    memory = training_bytes(method, fresh(), options.target_modules, rows, length, trained=trained)
    capacity = _capacity(options)
    reason = None if capacity is None else fits(memory, capacity)
    return Cell(task, method, steps, cost.parameters, run_flops(method, cost, extent, steps), memory, found is not None, reason)


def _assumed(options: ProtocolOptions, task: str) -> tuple[int, Extent]:
    """Steps and extent of a run whose data cannot be read."""
    train = SMALL.get(task, lambda options: options.examples)(options)[0]
    steps = options.max_steps or options.epochs * -(-train // options.batch_size)
    rows = ASSUMED_CANDIDATES * steps * options.batch_size
    return steps, Extent(rows, rows * ASSUMED_LENGTH, rows * ASSUMED_LENGTH**2)


def _capacity(options: ProtocolOptions) -> float | None:
    """The device's memory in 10^9 bytes; None where nothing is known of it."""
    if options.memory_gb is not None:
        return options.memory_gb
    if options.device != "cpu" and torch.cuda.is_available():
        return torch.cuda.get_device_properties(0).total_memory / 1e9
    return None
