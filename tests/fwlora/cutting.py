"""Knots that are cut off at a torch operation, and whether what follows is exact all the same."""

from __future__ import annotations

import copy
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from fwlora import At, Blocks, ChainLoRAOptimizer, FrankWolfe, GradientAligned, NuclearBall, OpenLoop, StepDown
from tests.conftest import make_chain, train
from tests.tables import CASES, QUANTISED, loss_of, output


def out_of_memory() -> None:
    raise torch.OutOfMemoryError


def no_memory() -> None:
    raise MemoryError


def ctrl_c() -> None:
    """A real one, which Python raises at once unless a handler of ours holds it back."""
    signal.raise_signal(signal.SIGINT)


CUTS: dict[str, Callable[[], None]] = {"out of memory": out_of_memory, "Ctrl-C": ctrl_c, "MemoryError": no_memory}
EXCEPTIONS = (torch.OutOfMemoryError, KeyboardInterrupt, MemoryError)


class Place:
    """Counts what it is told of once it is armed, and makes a cut before that of this number."""

    def __init__(self, place: int, cut: Callable[[], None], *, armed: bool) -> None:
        super().__init__()
        self.place, self.cut, self.armed, self.count = place, cut, armed, 0

    def reached(self) -> None:
        if self.armed:
            self.count += 1
            if self.count == self.place:
                self.cut()


class AtOperation(Place, TorchDispatchMode):
    """Of torch's own operations, those inside of others too."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace != "profiler":  # the end of what torch notes of an inner step
            self.reached()
        return func(*args, **(kwargs or {}))


class AtCall(Place, TorchFunctionMode):
    """Of Python's calls of torch; for `svdvals` takes another way, and rounds otherwise, where operations are watched."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func.__name__ != "__get__":  # of an attribute, as jaxtyping asks for them while tests run
            self.reached()
        return func(*args, **(kwargs or {}))


@dataclass(frozen=True)
class Variant:
    """A chain of which the second knot is cut off."""

    kind: str
    dtype: torch.dtype = torch.float32
    options: Mapping[str, Any] = field(default_factory=dict)
    on_disk: bool = False
    at: type[AtOperation | AtCall] = AtOperation


VARIANTS = {
    "float32": Variant("linear"),
    "four sites": Variant("llama", options={"train_modules": ["norm"]}),
    "bf16 with feedback": Variant("linear", torch.bfloat16),
    "Frank-Wolfe": Variant("linear", options={"merge": FrankWolfe(NuclearBall(2.0), OpenLoop())}, at=AtCall),
    "Blocks": Variant("linear", options={"blocks": Blocks(2)}),
    "chain_dir": Variant("linear", on_disk=True),
    "convolutions": Variant("conv2d"),
    "embedding in fp16": Variant("embedding", torch.float16),
    "biases": Variant("linear", options={"lora_bias": True, "target_modules": ["layers.0"]}),
    "ranks step down": Variant("linear", options={"rank": StepDown([3, 2, 1])}),
    "aligned": Variant("linear", options={"reset": GradientAligned()}),
    "moments dropped": Variant("linear", options={"inner": torch.optim.NAdam}),
    "4 bits": Variant("nf4"),
    "8 bits": Variant("int8"),
}
STEPS = 8  # before the knot that is cut off; the one before it is after step 4


class Run:
    """A chain just before its second knot, and the ways to go on.

    Args:
        name: of the variant.
        folder: for links on disk and for what is saved.
        scheduled: whether the knot is due after the next step, or is tied by hand.
    """

    def __init__(self, name: str, folder: Path, *, scheduled: bool) -> None:
        self.variant, self.folder, self.scheduled = VARIANTS[name], folder, scheduled
        self.batch = (CASES | QUANTISED)[self.variant.kind].batch()
        if self.variant.on_disk:
            self.model, self.optimizer = _begin(self.variant, scheduled, chain_dir=folder / "links")
        else:
            self.model, self.optimizer = copy.deepcopy(_begun(name, scheduled))

    def knot(self, place: int = 0, cut: Callable[[], None] = out_of_memory) -> Place:
        """The second knot, cut off at this place; 0 for not at all."""
        mode = self.variant.at(place, cut, armed=not self.scheduled)
        if not self.scheduled:
            with mode:
                self.optimizer.tie_knot()
            return mode
        # The knot begins where the inner step ends.
        handle = self.optimizer.inner.register_step_post_hook(lambda *_: setattr(mode, "armed", True))
        try:
            self._backward()
            with mode:
                self.optimizer.step()
        finally:
            handle.remove()
        return mode

    def go_on(self, way: str) -> list[float]:
        """What the user calls next, and the losses of the steps that follow."""
        calls: dict[str, Callable[[], object]] = {
            "step": lambda: self.optimizer.step(self._backward),
            "tie_knot": self.optimizer.tie_knot,
            "state_dict": self.optimizer.state_dict,
            "export_adapter": lambda: self.optimizer.export_adapter(self.folder / "adapter"),
            "save": lambda: self.optimizer.save(self.folder / "state"),
            "zero_grad": self.optimizer.zero_grad,
        }
        calls[way]()
        return train(self.optimizer, self.model, self.batch, 3)

    def everything(self) -> dict[str, Any]:
        """Weights, and the whole state: residuals, links, ledger without its seconds, moments, counters."""
        return {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}

    def function(self) -> torch.Tensor:
        """The model's output."""
        with torch.no_grad():
            return output(self.model, self.batch).double()

    def sites(self) -> list[tuple[torch.Tensor, ...]]:
        """What a knot changes, site by site."""
        return [tuple(tensor.detach().clone() for tensor in site.tensors()) for site in self.optimizer.sites.values()]

    def _backward(self) -> float:
        self.optimizer.zero_grad()
        loss = loss_of(self.model, self.batch)
        loss.backward()
        return loss.item()


def difference(mine: Any, theirs: Any, place: str = "") -> str | None:
    """Where two documents first differ by a bit, or None."""
    if isinstance(mine, torch.Tensor):
        return None if mine.dtype == theirs.dtype and torch.equal(mine, theirs) else place
    if isinstance(mine, Mapping):
        if list(mine) != list(theirs):
            return f"{place}: {list(mine)} and {list(theirs)}"
        pairs = ((f"{place}/{key}", mine[key], theirs[key]) for key in mine)
    elif isinstance(mine, list | tuple) and len(mine) == len(theirs):
        pairs = ((f"{place}/{number}", *pair) for number, pair in enumerate(zip(mine, theirs, strict=True)))
    else:
        return None if mine == theirs else f"{place}: {mine} and {theirs}"
    return next((found for name, a, b in pairs if (found := difference(a, b, name))), None)


@contextmanager
def interruptible() -> Iterator[None]:
    """A process that was started in the background ignores Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@cache
def _begun(name: str, scheduled: bool) -> tuple[nn.Module, ChainLoRAOptimizer]:
    return _begin(VARIANTS[name], scheduled)


def _begin(variant: Variant, scheduled: bool, **more: Any) -> tuple[nn.Module, ChainLoRAOptimizer]:
    case = (CASES | QUANTISED)[variant.kind]
    model = case.model(variant.dtype)
    knots = At([STEPS // 2, STEPS + 1] if scheduled else [STEPS // 2])
    optimizer = make_chain(case, model, knots=knots, **variant.options, **more)
    train(optimizer, model, case.batch(), STEPS)
    return model, optimizer
