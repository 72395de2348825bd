"""Many methods in turns on one machine: what slows it for a while slows all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import perf_counter, process_time
from typing import Any

import torch
from torch import Tensor, nn

from experiments.accounting.bench import Bench, short_links, sweep
from experiments.accounting.contenders import FLOOR
from experiments.accounting.refusals import Refusals, told
from experiments.methods import BAdam, ChainOfLoRA, Compiled, Method
from experiments.train import Setup, Task, train
from fwlora import Blocks, ChainLoRAOptimizer

Lap = tuple[float, float]
"""Wall and processor seconds."""

# Steps before the first that counts: allocations, kernels' choices, compilation, the optimizer's first state.
WARM_UP = 2
# The second lap of the same runner in each round.
AGAIN = f"{FLOOR}, again"


def race(
    bench: Bench, methods: Sequence[Method], rounds: int, *, on_round: Callable[[], object] = lambda: None
) -> list[dict[str, Any]]:
    """Trains all side by side: in every round each takes one step, in an order that changes from round to round.

    The frozen floor takes two, in places of their own: their ratio shows what the machine does by itself.

    Args:
        bench: the model and the batches.
        methods: what is compared, in the order in which they are made.
        rounds: that count.
        on_round: called after each, those of the warm-up included.

    Returns:
        Plain data, a row for each method and one for the floor's second lap: its laps, the rounds in which it tied a knot, the
        part of the model that learnt in each round and how many parts there are, how many numbers it trains; or the reason why
        there are none.
    """
    torch.compiler.reset()
    sweep()  # what the last race left
    with short_links():
        entries = list(_entries(bench, methods))
        for number in range(WARM_UP + rounds):
            for place in order(len(entries), number):
                entries[place].step(counts=number >= WARM_UP)
            on_round()
        return [entry.row() for entry in entries]


def order(size: int, number: int) -> list[int]:
    """In which order things take turns in a round.

    Over as many rounds as there are things (twice as many where that is odd) each follows each other equally often.

    Args:
        size: how many.
        number: of the round.

    Returns:
        Their indices.

    Example:
        >>> [order(4, number) for number in range(4)]
        [[0, 3, 1, 2], [1, 0, 2, 3], [2, 1, 3, 0], [3, 2, 0, 1]]
    """
    zigzag = [place // 2 if place % 2 == 0 else -(place + 1) // 2 for place in range(size)]
    turned = [(place + number) % size for place in zigzag]
    return turned[::-1] if size % 2 and number // size % 2 else turned


@dataclass
class Runner:
    """A run that is advanced a step at a time.

    Attributes:
        method: whose it is.
        setup: model and optimizer.
        task: batches, watched.
        steps: of the whole run.
        done: steps.
    """

    method: Method
    setup: Setup
    task: Watched
    steps: int
    done: int = 0

    @classmethod
    def ready(cls, bench: Bench, method: Method) -> Runner:
        """A fresh model under a method."""
        setup = method.prepare(bench.model(), bench.targets, steps=bench.steps, seed=0)
        return cls(method, setup, Watched(bench.task(), bench.device), bench.steps)

    def step(self) -> Lap:
        """One step of the training loop, from the batch in hand to the end of what follows the update."""
        laps: list[Lap] = []
        train(
            self.setup, self.task, steps=self.done + 1, start=self.done, on_step=lambda record: laps.append(self.task.lap())
        )  # fmt: skip
        self.done += 1
        return laps[0]

    def knots(self) -> Sequence[int]:
        """The steps after which knots were tied."""
        optimizer = self.setup.optimizer
        if isinstance(optimizer, ChainLoRAOptimizer):
            return [record.step for record in optimizer.ledger]
        return [step for step in self.method.planned_knots(self.steps) if step <= self.done]

    def part(self) -> int:
        """Which part of the model the next step trains; 0 where it is always the same."""
        optimizer: Any = self.setup.optimizer
        if isinstance(self._bare, BAdam):
            # Its index, which goes down, is already that of the block after this one.
            return (optimizer.current_block_idx + 1) % optimizer.block_num
        return 0 if self.blocks == 1 else len(optimizer.ledger) % self.blocks

    @property
    def blocks(self) -> int:
        """How many parts of the model learn by turns; 1 where it is always the same."""
        optimizer: Any = self.setup.optimizer
        if isinstance(self._bare, BAdam):
            return optimizer.block_num
        return self._bare.blocks.n if isinstance(self._bare, ChainOfLoRA) and isinstance(self._bare.blocks, Blocks) else 1

    @property
    def _bare(self) -> Method:
        return self.method.method if isinstance(self.method, Compiled) else self.method


@dataclass
class Entry:
    """A place in every round.

    Attributes:
        label: of the method, or of the floor's second lap.
        runner: who takes the step; None where it cannot.
        reason: why it cannot.
        laps: of the rounds that count.
        parts: what was trained in each of them.
    """

    label: str
    runner: Runner | None
    reason: str | None = None
    laps: list[Lap] = field(default_factory=list)
    parts: list[int] = field(default_factory=list)

    def step(self, *, counts: bool) -> None:
        """The step of a round; a variant that fails in one takes part in no other."""
        if self.runner is None:
            return
        part = self.runner.part()
        with self.trying():
            lap = self.runner.step()
            if counts:
                self.laps.append(lap)
                self.parts.append(part)

    def row(self) -> dict[str, Any]:
        """What there is to tell."""
        if self.runner is None:
            nothing: dict[str, Any] = {"laps": [], "knots": [], "parts": [], "blocks": None, "parameters": None}
            return {"method": self.label, "reason": self.reason} | nothing
        # The floor's second lap of a round makes its steps run ahead; it ties no knots.
        return {
            "method": self.label,
            "reason": None,
            "laps": self.laps,
            "knots": [step - WARM_UP - 1 for step in self.runner.knots() if step > WARM_UP],
            "parts": self.parts,
            "blocks": self.runner.blocks,
            "parameters": sum(parameter.numel() for parameter in self.runner.setup.parameters),
        }

    @contextmanager
    def trying(self) -> Iterator[None]:
        """Ends the variant's part in the race where it is refused, with its reason."""
        try:
            yield
        except Refusals as error:
            self.runner, self.reason = None, told(error)
        if self.runner is None:
            sweep()  # what it held is the others'


def _entries(bench: Bench, methods: Sequence[Method]) -> Iterator[Entry]:
    """A place for each method, made one after the other; one that does not fit beside those before it has a reason."""
    held = largest = 0
    for method in methods:
        needed = bench.bytes(method)
        # One step at a time: of all activations only the largest are there at once with the others' states.
        beside = held + max(0, largest - needed.activations)
        entry = Entry(method.label, None, bench.obstacle(method, beside=beside))
        if entry.reason is None:
            with entry.trying():
                entry.runner = Runner.ready(bench, method)
                held, largest = held + needed.state, max(largest, needed.activations)
        yield entry
        if method.label == FLOOR:
            yield Entry(AGAIN, entry.runner, entry.reason)


@dataclass
class Watched:
    """A task that starts a clock when its batch is made.

    Attributes:
        task: the task.
        device: waited for, where it computes behind the caller's back.
    """

    task: Task
    device: str
    began: Lap = (0.0, 0.0)

    def batches(self, step: int) -> Sequence[Any]:
        """The task's, and the clock starts."""
        batches = self.task.batches(step)
        self.began = self.now()
        return batches

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """The task's."""
        return self.task.loss(model, batch)

    def targets(self, batch: Any) -> int:
        """The task's."""
        return self.task.targets(batch)

    def lap(self) -> Lap:
        """Since the batch was made."""
        now = self.now()
        return now[0] - self.began[0], now[1] - self.began[1]

    def now(self) -> Lap:
        """Wall and processor time, when the device has done what it was asked."""
        if torch.device(self.device).type == "cuda":
            torch.cuda.synchronize()
        return perf_counter(), process_time()
