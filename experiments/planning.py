"""What a study under the paper's protocol will run and what it will cost, from the model's shapes and the data's lengths."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from experiments.accounting.architectures import config_of, skeleton
from experiments.accounting.flops import StepCost, cost_of, run_flops
from experiments.accounting.memory import Bytes, fits, training_bytes
from experiments.compare import Extent, Run
from experiments.errors import UsageError
from experiments.language import loading
from experiments.language.loading import DTYPES
from experiments.methods import Method, PrefixTuning, unavailable
from experiments.progress import progress
from experiments.protocol import ProtocolOptions, resolve
from experiments.tasks.language.source import Sampling, names
from experiments.tasks.pretrained import Pretrained
from experiments.tasks.prompted import problem as prompted
from fwlora import Evenly

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
class Reading:
    """What every method reads on a task.

    Attributes:
        task: its name.
        found: the task in the first seed's sample; None where the hub is out of reach.
        steps: optimizer steps of a run.
        examples: of the training, each as often as it is seen.
        extent: of all forward passes; an example has a row for each of its candidates.
        largest: most rows and longest padded length of a pass.
    """

    task: str
    found: Pretrained | None
    steps: int
    examples: int
    extent: Extent
    largest: tuple[int, int]


@dataclass(frozen=True)
class Cell:
    """A method on a task.

    Attributes:
        reading: what it reads.
        method: its rate is the multiple that it takes of the protocol's.
        parameters: trained numbers; 0 where its package is missing and nothing was counted.
        flops: of a run.
        memory: of the largest step.
        reason: why there are no runs; None where there are.
    """

    reading: Reading
    method: Method
    parameters: int = 0
    flops: float = 0.0
    memory: Bytes = field(default_factory=lambda: Bytes(0, 0, 0, 0))
    reason: str | None = None

    def runs(self, options: ProtocolOptions) -> list[Run]:
        """Every rate on every seed, none where there is a reason against it."""
        if self.reason is not None:
            return []
        return [
            Run(problem(options, self.reading.task, seed), replace(self.method, lr=lr * self.method.lr), seed)  # pyright: ignore[reportArgumentType]
            for lr in options.lrs
            for seed in range(options.seeds)
        ]

    def record(self) -> dict[str, Any]:
        """In plain data."""
        reading = self.reading
        return {
            "task": reading.task, "method": self.method.label, "steps": reading.steps, "examples": reading.examples,
            "measured": reading.found is not None, "parameters": self.parameters, "flops": self.flops,
            "memory": asdict(self.memory), "knots": self.method.planned_knots(reading.steps), "reason": self.reason,
        }  # fmt: skip


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
        sampling=Sampling(*_examples(options, task)),
        draw=seed,
        epochs=options.epochs,
        limit=options.max_steps,
        batch_size=options.batch_size,
        max_length=options.max_length,
        max_new_tokens=options.max_new_tokens,
        dtype=options.dtype,
        # A row made on a GPU is not one made on a CPU: the key says which.
        device=str(loading.device(options.device)),
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
            if found is not None and options.lora_bias:
                found.start.check_bias(options.target_modules)
            reading = _assumed(options, task) if found is None else _measured(task, found)
            cells += [_cell(options, reading, method, costs) for method in entries(options, reading.steps).values()]
            bar.update()
    return cells


def _cell(options: ProtocolOptions, reading: Reading, method: Method, costs: dict[Any, StepCost]) -> Cell:
    knots = getattr(method, "knots", None)
    if isinstance(knots, Evenly) and knots.links > reading.steps:
        raise UsageError(f"{method.label} on {reading.task}: a run has {reading.steps} steps; give more, or fewer links.")
    if max(method.planned_knots(reading.steps), default=0) >= reading.steps:
        raise UsageError(f"{method.label} on {reading.task}: no step of {reading.steps} follows the last knot; give more.")
    missing = unavailable(method) or _too_long(reading, method)
    if missing is not None:
        return Cell(reading, method, reason=missing)

    def fresh() -> nn.Module:
        if reading.found is None:
            return skeleton(config_of(resolve(options)), DTYPES[options.dtype])
        return reading.found.start.skeleton(options.dtype)

    trained = () if reading.found is None else reading.found.trained
    # What a token costs is the same on every task, but for an encoder's head.
    if (method, trained) not in costs:
        costs[method, trained] = cost_of(method, fresh(), options.target_modules, trained=trained)
    cost = costs[method, trained]
    memory = training_bytes(method, fresh(), options.target_modules, *reading.largest, trained=trained)
    capacity = _capacity(options)
    reason = None if capacity is None else fits(memory, capacity)
    return Cell(reading, method, cost.parameters, run_flops(method, cost, reading.extent, reading.steps), memory, reason)


def _too_long(reading: Reading, method: Method) -> str | None:
    """A prefix takes places that the model may not have."""
    prefix = method.virtual_tokens if isinstance(method, PrefixTuning) else 0
    longest = None if reading.found is None else reading.found.start.longest
    if longest is None or reading.largest[1] + prefix <= longest:
        return None
    rows = f"{prefix} tokens before rows of {reading.largest[1]}"
    return f"{rows} are more than the {longest} that the model reads; lower --max-length"


def _measured(task: str, found: Pretrained) -> Reading:
    order, steps = found.order(0), found.steps
    examples = sum(len(order.rows_of(step)) for step in range(steps))
    shapes = list(found.shapes(0))
    largest = max(rows for rows, _ in shapes), max(length for _, length in shapes)
    return Reading(task, found, steps, examples, found.extent(0), largest)


def _assumed(options: ProtocolOptions, task: str) -> Reading:
    """A task whose data cannot be read."""
    steps = options.max_steps or options.epochs * -(-_examples(options, task)[0] // options.batch_size)
    batch = ASSUMED_CANDIDATES * options.batch_size
    extent = Extent(steps * batch, steps * batch * ASSUMED_LENGTH, steps * batch * ASSUMED_LENGTH**2)
    return Reading(task, None, steps, steps * options.batch_size, extent, (batch, ASSUMED_LENGTH))


def _examples(options: ProtocolOptions, task: str) -> tuple[int, int, int]:
    return SMALL[task](options) if task in SMALL else options.examples


def _capacity(options: ProtocolOptions) -> float | None:
    """The device's memory in 10^9 bytes; None where nothing is known of it."""
    if options.memory_gb is not None:
        return options.memory_gb
    if options.device != "cpu" and torch.cuda.is_available():
        return torch.cuda.get_device_properties(0).total_memory / 1e9
    return None
