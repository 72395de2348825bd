"""Any method with its model compiled."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from experiments.methods.method import Method, unavailable
from experiments.train import Setup


@dataclass(frozen=True)
class Compiled:
    """Another method, whose model goes through torch.compile at its first step.

    Attributes:
        label: the name in tables and figures.
        method: what is compiled.
        backend: of torch.compile.
    """

    label: str
    method: Method
    backend: str = "inductor"

    @property
    def lr(self) -> float:
        """The method's."""
        return self.method.lr

    def prepare(self, model: nn.Module, targets: Sequence[str], *, steps: int, seed: int, trained: Sequence[str] = ()) -> Setup:
        """The method's, compiled in place: names and parameters stay."""
        setup = self.method.prepare(model, targets, steps=steps, seed=seed, trained=trained)
        setup.model.compile(backend=self.backend, dynamic=False)
        return setup

    def inject(self, model: nn.Module, targets: Sequence[str], *, trained: Sequence[str] = ()) -> nn.Module:
        """The method's, not compiled."""
        return self.method.inject(model, targets, trained=trained)

    def state_size(self, shape: Sequence[int]) -> int:
        """The method's."""
        return self.method.state_size(shape)

    def state_numbers(self, model: nn.Module, targets: Sequence[str], *, trained: Sequence[str] = ()) -> int:
        """The method's."""
        return self.method.state_numbers(model, targets, trained=trained)

    def planned_knots(self, steps: int) -> list[int]:
        """The method's."""
        return self.method.planned_knots(steps)

    def missing(self) -> str | None:
        """What the method lacks, or a compiler for what inductor writes."""
        if (reason := unavailable(self.method)) is not None:
            return reason
        # With options behind it, perhaps.
        compiler = (os.environ.get("CXX", "").split() or ["g++"])[0]
        if self.backend == "inductor" and not any(map(shutil.which, (compiler, "clang++"))):
            return "inductor needs a C++ compiler, and there is neither g++ nor clang++"
        return None
