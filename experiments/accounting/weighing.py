"""What a method holds in memory: its tensors by kind, and the peak of a process that does nothing else."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from experiments.accounting.bench import Bench, short_links
from experiments.accounting.memory import Saved
from experiments.compare import one_thread
from experiments.methods import Method
from experiments.tasks.random_tokens import RandomTokens, next_token_loss
from experiments.train import Setup, backward, train
from fwlora import ChainLoRAOptimizer


def isolated(bench: Bench, method: Method) -> dict[str, Any]:
    """`weigh` in a new process, whose peak of memory nobody else has raised."""
    # Spawned: a forked child would begin with this process's memory, and cannot use CUDA.
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(weigh, bench, method).result()


def weigh(bench: Bench, method: Method) -> dict[str, Any]:
    """Trains for some steps, knots among them, and weighs what is there.

    Args:
        bench: the model and the batches.
        method: how it is adapted.

    Returns:
        Plain data: bytes of the trained parameters, their gradients, the optimizer's state, what a step saves for its backward
        pass, and what a chain keeps on the host; beside the estimate from shapes. `peak` is what torch allocated on CUDA, or
        else the process's peak above what it had before the model, which tells of the method only in a process of its own, and
        None where nobody tells. `reason` says why there is nothing.
    """
    row: dict[str, Any] = {"method": method.label, "reason": bench.obstacle(method), "peak": None}
    if row["reason"] is not None:
        return row
    row["estimate"] = asdict(bench.bytes(method))
    before = resident("VmRSS")
    cuda = torch.device(bench.device).type == "cuda"
    if cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    try:
        with short_links(), one_thread():
            setup = method.prepare(bench.model(), bench.targets, steps=bench.steps, seed=0)
            train(setup, bench.task(), steps=bench.steps)
        row["peak"] = torch.cuda.max_memory_allocated() if cuda else _above(before)
        return row | _held(setup, bench)
    except torch.OutOfMemoryError as error:
        return row | {"reason": f"out of memory: {str(error).split('.')[0]}"}


def tensors(value: Any, seen: set[int] | None = None) -> Iterator[Tensor]:
    """The tensors in nested containers, and in objects such as GaLore's projectors.

    Args:
        value: where to look.
        seen: what was visited.

    Yields:
        Each tensor once.
    """
    seen = set() if seen is None else seen
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, Tensor):
        yield value
        return
    inside = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    for item in (*inside, *getattr(value, "__dict__", {}).values()):
        yield from tensors(item, seen)


@dataclass
class Scales:
    """A task that notes the most that any of its losses saves for the backward pass.

    Attributes:
        task: the task.
        most: bytes.
    """

    task: RandomTokens
    most: int = 0

    def batches(self, step: int) -> Sequence[Tensor]:
        """The task's."""
        return self.task.batches(step)

    def loss(self, model: nn.Module, batch: Tensor) -> Tensor:
        """The task's."""
        saved = Saved()
        with saved:
            logits = self.task.logits(model, batch)
            saved.keep(logits)
            loss = next_token_loss(logits, batch)
        self.most = max(self.most, saved.bytes([*model.parameters(), *model.buffers()]))
        return loss

    def targets(self, batch: Tensor) -> int:
        """The task's."""
        return self.task.targets(batch)


def _held(setup: Setup, bench: Bench) -> dict[str, Any]:
    """Goes on for as many steps, noting the most that is held; the gradients are those of one more, which is not taken."""
    states: list[int] = []
    scales = Scales(bench.task())
    train(
        setup, scales, steps=2 * bench.steps, start=bench.steps, on_step=lambda record: states.append(_bytes(_state(setup)))
    )  # fmt: skip
    backward(setup.model, scales, scales.batches(0))
    parameters, optimizer, host = list(setup.model.parameters()), setup.optimizer, 0
    if isinstance(optimizer, ChainLoRAOptimizer):
        document = optimizer.state_dict()["fwlora"]
        host = _bytes(tensors([document["links"], document["residuals"]]))
    return {
        "trained": _bytes(parameter for parameter in parameters if parameter.requires_grad),
        "gradients": _bytes(parameter.grad for parameter in parameters if parameter.grad is not None),
        "optimizer": max(states),
        "saved": scales.most,
        "host": host,
    }


def _state(setup: Setup) -> Iterator[Tensor]:
    """What the optimizer keeps; BAdam's has it in the optimizer that it wraps, and float32 copies beside."""
    optimizer = cast(Any, setup.optimizer)
    wrapped = getattr(optimizer, "base_optimizer", optimizer)
    mine = {parameter.data_ptr() for parameter in setup.model.parameters()}
    kept = tensors([dict(wrapped.state), getattr(optimizer, "param_idx2hp", {})])
    return (tensor for tensor in kept if tensor.data_ptr() not in mine)


def _bytes(found: Iterable[Tensor]) -> int:
    """Counters of steps, which are no larger for a larger model, are left out."""
    return sum(tensor.nbytes for tensor in found if tensor.ndim)


def _above(before: int | None) -> int | None:
    peak = resident("VmHWM")
    return None if before is None or peak is None else peak - before


def resident(line: str) -> int | None:
    """A line of /proc/self/status in bytes, None where there is none. Not `getrusage`, whose peak a child inherits."""
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    return next(int(text.split()[1]) * 1024 for text in status.read_text().splitlines() if text.startswith(line))
