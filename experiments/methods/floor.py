"""What no adapter can go below: the frozen model forward, and backward to the output of its embeddings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from experiments.errors import UsageError
from experiments.methods.method import Plain
from experiments.train import Setup


@dataclass(frozen=True)
class FrozenFloor(Plain):
    """Nothing is trained; the gradient goes as far as an adapter in the first layer would ask for it.

    Attributes:
        label: the name in tables and figures.
        lr: of nothing.
    """

    label: str
    lr: float = 0.0

    def prepare(self, model: nn.Module, targets: Sequence[str], *, steps: int, seed: int, trained: Sequence[str] = ()) -> Setup:
        """The frozen model, and an optimizer that has nothing to step."""
        return Setup(self.inject(model, targets, trained=trained), Idle(), [])

    def inject(self, model: nn.Module, targets: Sequence[str], *, trained: Sequence[str] = ()) -> nn.Module:
        """The model itself, whose embeddings' output asks for a gradient; none of `targets` and `trained` has a say."""
        embeddings = getattr(model, "get_input_embeddings", lambda: None)()
        if embeddings is None:
            raise UsageError(f"{self.label}: a {type(model).__name__} has no input embeddings; give a transformers model.")
        model.requires_grad_(False)
        embeddings.register_forward_hook(_ask_for_gradient)
        return model


class Idle(torch.optim.Optimizer):
    """An optimizer without parameters, which torch's own do not allow."""

    def __init__(self) -> None:
        super().__init__([torch.zeros(0)], {"lr": 0.0})

    def step(self, closure: Callable[[], Any] | None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Nothing."""


def _ask_for_gradient(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
    return output.requires_grad_()
