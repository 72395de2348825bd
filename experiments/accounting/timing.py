"""Two methods in turns on one machine: what slows it for a while slows both."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter, process_time
from typing import Any

import torch
from torch import Tensor, nn

from experiments.accounting.bench import Bench, short_links
from experiments.methods import Method
from experiments.train import Setup, Task, train
from fwlora import ChainLoRAOptimizer

Lap = tuple[float, float]
"""Wall and processor seconds."""

# Steps before the first that counts: allocations, kernels' choices, the optimizer's first state.
WARM_UP = 2


def race(bench: Bench, baseline: Method, contender: Method, *, on_round: Callable[[], object] = lambda: None) -> dict[str, Any]:
    """Trains both side by side, a step of each in every round: baseline, contender, baseline again.

    The baseline's two steps of a round are of two runs, so that each step follows one of another model and finds the caches as
    the others do; their ratio shows what the machine does by itself.

    Args:
        bench: the model and the batches.
        baseline: what is compared with.
        contender: what is compared.
        on_round: called after each round.

    Returns:
        Plain data: for each round the laps of the three steps, and the rounds in which the contender tied a knot; or the reason
        why there are none.
    """
    row: dict[str, Any] = {"method": contender.label, "reason": None, "rounds": [], "knots": [], "parameters": None}
    gc.collect()  # what the last race left
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    row["reason"] = bench.obstacle(contender, beside=2 * bench.bytes(baseline).total)
    if row["reason"] is not None:
        return row
    try:
        with short_links():
            runners = [Runner.ready(bench, method) for method in (baseline, contender, baseline)]
            for number in range(WARM_UP + bench.steps):
                laps = [runner.step() for runner in runners]
                if number >= WARM_UP:
                    row["rounds"].append(laps)
                    on_round()
    except torch.OutOfMemoryError as error:
        return row | {"reason": f"out of memory beside {baseline.label}: {str(error).split('.')[0]}", "rounds": []}
    return row | {
        "knots": [step - WARM_UP - 1 for step in runners[1].knots()],
        "parameters": sum(parameter.numel() for parameter in runners[1].setup.parameters),
    }


@dataclass
class Runner:
    """A run that is advanced a step at a time.

    Attributes:
        setup: model and optimizer.
        task: batches, watched.
        done: steps.
    """

    setup: Setup
    task: Watched
    done: int = 0

    @classmethod
    def ready(cls, bench: Bench, method: Method) -> Runner:
        """A fresh model under a method, for as many steps as the race has."""
        setup = method.prepare(bench.model(), bench.targets, steps=bench.steps + WARM_UP, seed=0)
        return cls(setup, Watched(bench.task(), bench.device))

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
        return [record.step for record in optimizer.ledger] if isinstance(optimizer, ChainLoRAOptimizer) else []


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
