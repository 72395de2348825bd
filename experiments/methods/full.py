"""Full fine-tuning: the upper end of what can be trained."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from experiments.methods.method import Plain
from experiments.schedules import Linear, Schedule, scheduler
from experiments.train import Setup


@dataclass(frozen=True)
class FullFineTuning(Plain):
    """Every parameter of the model, by AdamW.

    Weights in half precision are trained as float32 and computed with in half precision: a step much smaller than a weight's
    last digit would be lost. With a float16 base there is no loss scaling.
    """

    label: str
    lr: float
    schedule: Schedule = field(default_factory=Linear)

    def prepare(self, model: nn.Module, targets: Sequence[str], *, steps: int, seed: int, trained: Sequence[str] = ()) -> Setup:
        """AdamW over all parameters; none of `targets`, `seed` and `trained` has a say."""
        parameters = list(self.inject(model, targets).parameters())
        optimizer = torch.optim.AdamW(parameters, lr=self.lr, weight_decay=0.0)
        return Setup(model, optimizer, parameters, scheduler(optimizer, self.schedule, steps))

    def inject(self, model: nn.Module, targets: Sequence[str], *, trained: Sequence[str] = ()) -> nn.Module:
        """The model itself, with float32 weights."""
        return full_precision(model.requires_grad_(True))


def full_precision(model: nn.Module) -> nn.Module:
    """Gives a half-precision model float32 weights and has it compute as before, by autocasting.

    Args:
        model: changed in place; one without half-precision weights is left as it is.

    Returns:
        The model.
    """
    halves = {p.dtype for p in model.parameters()} & {torch.bfloat16, torch.float16}
    if not halves:
        return model
    dtype = halves.pop()
    original = type(model)

    @functools.wraps(original.forward)
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        device = next(self.parameters()).device.type
        with torch.autocast(device, dtype, enabled=device != "meta"):
            return original.forward(self, *args, **kwargs)

    # In the class, as torch's parametrisations are: a forward on the instance would stay the original's in a copy.
    model.__class__ = type(original.__name__, (original,), {"forward": forward, "__module__": original.__module__})
    return model.float()
