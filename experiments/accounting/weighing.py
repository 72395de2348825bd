"""What a method holds in memory: its tensors by kind, and the peak of a process that does nothing else."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn

from experiments.accounting.bench import Bench, short_links, sweep
from experiments.accounting.cases import ASKED_FOR, HALF_ONLY, Case
from experiments.accounting.contenders import FLOOR, chosen
from experiments.accounting.gauge import Gauge
from experiments.accounting.memory import Saved
from experiments.accounting.refusals import Refusals, told
from experiments.accounting.timing import Runner, Watched
from experiments.compare import one_thread
from experiments.methods import Compiled, Method
from experiments.tasks.random_tokens import RandomTokens, next_token_loss
from experiments.train import Setup, backward, train
from fwlora import ChainLoRAOptimizer

# In every case where no methods are named; the first has all but those that no chain is measured against.
FEW = ("chain", "chain, B only", "chain, one block a link")
# Where they are named: their compiler takes a minute, and its memory is a CPU's peak.
COMPILED = ("LoRA, compiled", "chain, compiled")


def weighed(case: Case, labels: Sequence[str], *, first: bool) -> list[Method]:
    """The frozen floor, LoRA, and what else takes part in a case.

    Args:
        case: where.
        labels: of the methods; none for the usual ones.
        first: whether this is the grid's first case.

    Returns:
        The methods, each once.

    Raises:
        UsageError: there is no method of that name.
    """
    every = case.bench.variants()
    known = {method.label for method in every}.difference(COMPILED)
    few = known.intersection(FEW)
    usual = few if not first else known.difference(ASKED_FOR)
    there = [label for label in labels if case.bench.dtype != "fp32" or label not in HALF_ONLY]
    found = chosen(every, (FLOOR, *(there if labels else usual)))
    return sorted(found, key=lambda method: method.label != FLOOR)


def isolated(bench: Bench, method: Method) -> dict[str, Any]:
    """`weigh` in a new process, whose peak of memory nobody else has raised."""
    on_cpu = torch.device(bench.device).type == "cpu"
    # Not forked from this process, whose memory the child would begin with. Forked from a server that has imported what is
    # needed, which saves seconds a method; but what an import may have asked CUDA bars a forked child from using it.
    kinds = multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("forkserver" if on_cpu and "forkserver" in kinds else "spawn")
    if context.get_start_method() == "forkserver":
        context.set_forkserver_preload([__name__])
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        try:
            return pool.submit(weigh, bench, method).result()
        except BrokenProcessPool:
            return _nothing(method, "its process was killed, as for want of memory")


def weigh(bench: Bench, method: Method) -> dict[str, Any]:
    """Trains for some steps, knots among them, and weighs what is there.

    Args:
        bench: the model and the batches.
        method: how it is adapted.

    Returns:
        Plain data, in bytes: the trained parameters, their gradients, the optimizer's state, what a step saves for its backward
        pass (`saved` at most, `mean` over the parts of the model that learn by turns, `blocks` in number, None if one had no
        turn; `kept` and `kept_mean` are what of it autograd itself keeps, the logits apart where the loss does not need them;
        `body` and `body_mean` are what of it is there before the head is called, None for a compiled model), and what a chain
        keeps on the host; beside the estimate from shapes. `peak` is what torch allocated on CUDA at most beyond the base's
        weights (`peak_body` before the head was called), or else the process's peak above what it had before the model and
        the base's weights, which tells of the method only in a process of its own, and None where nobody tells. `reason` says
        why there is nothing.
    """
    row = _nothing(method, bench.obstacle(method))
    if row["reason"] is not None:
        return row
    sweep()  # what the last one left
    row["estimate"] = asdict(bench.bytes(method))
    gauge = Gauge(bench.device)
    try:
        with short_links(), one_thread():
            model = bench.model()
            weights = sum(value.nbytes for value in (*model.parameters(), *model.buffers()))
            setup = method.prepare(model, bench.targets, steps=bench.steps, seed=0)
            runner = Runner(method, setup, Watched(bench.task(), bench.device), bench.steps)
            scales, states = Scales(bench.task(), gauge, runner.part, runner.blocks), [0]
            train(setup, scales, steps=bench.steps, on_step=lambda record: states.append(_bytes(_state(setup))))
            for name, peak in (("peak", gauge.most()), ("peak_body", gauge.most_of_body)):
                row[name] = None if peak is None else peak - weights
            row |= {"optimizer": max(states)} | scales.facts() | _held(setup, bench)
            return row | _untold(bench) if isinstance(method, Compiled) else row
    except Refusals as error:
        return _nothing(method, told(error))


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
    """A task that weighs what its losses save for the backward pass, once for each part of the model that learns by turns.

    Attributes:
        task: the task.
        gauge: of the memory in use.
        part: which part learns now.
        blocks: how many parts there are.
        seen: bytes of each part, those that autograd alone keeps, and those of its body before the head is called.
    """

    task: RandomTokens
    gauge: Gauge
    part: Callable[[], int]
    blocks: int = 1
    seen: dict[int, tuple[int, int, int]] = field(default_factory=dict)

    def batches(self, step: int) -> Sequence[Tensor]:
        """The task's."""
        return self.task.batches(step)

    def loss(self, model: nn.Module, batch: Tensor) -> Tensor:
        """The task's."""
        with self.gauge.before_head(model):
            if (part := self.part()) in self.seen:
                return self.task.loss(model, batch)
            saved = Saved()
            with saved, saved.before_head(model):
                logits = self.task.logits(model, batch)
                loss = next_token_loss(logits, batch)
        held = [*model.parameters(), *model.buffers()]
        kept, body = saved.bytes(held), saved.body_bytes(held)
        saved.keep(logits)  # whoever calls the model holds them, autograd or not
        self.seen[part] = saved.bytes(held), kept, body
        saved.forget()
        return loss

    def targets(self, batch: Tensor) -> int:
        """The task's."""
        return self.task.targets(batch)

    def facts(self) -> dict[str, int | None]:
        """What was weighed, as `weigh` calls it."""
        found: dict[str, int | None] = {"blocks": self.blocks}
        names = {"saved": "mean", "kept": "kept_mean", "body": "body_mean"}
        for (most, mean), sizes in zip(names.items(), zip(*self.seen.values(), strict=True), strict=True):
            found |= {most: max(sizes), mean: sum(sizes) // len(sizes) if len(sizes) == self.blocks else None}
        return found


def _nothing(method: Method, reason: str | None) -> dict[str, Any]:
    return {"method": method.label, "reason": reason, "peak": None, "peak_body": None}


def _held(setup: Setup, bench: Bench) -> dict[str, Any]:
    """Parameters, the gradients of one more step, which is not taken, and what lies on the host."""
    task = bench.task()
    backward(setup.model, task, task.batches(0))
    parameters, optimizer, host = list(setup.model.parameters()), setup.optimizer, 0
    if isinstance(optimizer, ChainLoRAOptimizer):
        document = optimizer.state_dict()["fwlora"]
        host = _bytes(tensors([document["links"], document["residuals"]]))
    return {
        "trained": _bytes(parameter for parameter in parameters if parameter.requires_grad),
        "gradients": _bytes(parameter.grad for parameter in parameters if parameter.grad is not None),
        "host": host,
    }


def _untold(bench: Bench) -> dict[str, None]:
    """What cannot be told of a compiled model: it calls its head while it is traced alone, by a compiler in this process."""
    fields = ("body", "body_mean", "peak_body") + (() if torch.device(bench.device).type == "cuda" else ("peak",))
    return dict.fromkeys(fields)


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
