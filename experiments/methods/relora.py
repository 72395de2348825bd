"""ReLoRA's loop as its users write it around PEFT, with nothing of fwlora in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from experiments.methods.lora import ADAPTER, LoRA
from experiments.train import Setup


@dataclass(frozen=True)
class ReLoRA(LoRA):
    """LoRA that is merged every so many steps, drawn anew, and whose AdamW starts from nothing then (arXiv 2307.05695).

    Attributes:
        every: steps between two merges; none is after the last step.
    """

    every: int = 500

    def prepare(self, model: nn.Module, targets: Sequence[str], *, steps: int, seed: int, trained: Sequence[str] = ()) -> Setup:
        """LoRA, and a hook that merges."""
        setup = super().prepare(model, targets, steps=steps, seed=seed, trained=trained)
        due = set(self.planned_knots(steps))

        def merge(step: int) -> None:
            if step in due:
                start_again(model, seed + step)
                setup.optimizer.state.clear()

        setup.after_step = merge
        return setup

    def planned_knots(self, steps: int) -> list[int]:
        """Multiples of `every`."""
        return list(range(self.every, steps, self.every))


def start_again(model: nn.Module, seed: int) -> None:
    """Merges every LoRA layer by PEFT and draws its factors anew, B at zero.

    Args:
        model: with PEFT's layers.
        seed: of the draws; the global generator is left as it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for layer in model.modules():
            if isinstance(layer, LoraLayer):
                tuner = cast(BaseTunerLayer, layer)
                tuner.merge()
                layer.reset_lora_parameters(ADAPTER, init_lora_weights=True)
                # Merged for good: what would be subtracted again is no longer there.
                tuner.merged_adapters.clear()
