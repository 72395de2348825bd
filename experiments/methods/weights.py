"""The weights that a model acts with, whatever was put beside them."""

from __future__ import annotations

from typing import cast

import torch
from peft import PeftModel
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn


def effective_weights(model: nn.Module, only: str | None = None) -> dict[str, Tensor]:
    """The weight that each linear layer acts with, adapted or not: base plus live factors, in float64, outputs first.

    Names are those of the base model, so that the total update of any method is a difference of two such tables. What acts
    on activations (a prefix, a bottleneck) changes no weight.

    Args:
        model: with whatever a method put into it.
        only: the one layer to look at, where copies of all would not fit beside the model; None for all.

    Returns:
        Weights by name.
    """
    if isinstance(model, PeftModel):
        model = model.get_base_model()
    weights = {}
    for name, module in model.named_modules():
        if only not in {None, name}:
            continue
        if isinstance(module, LoraLinear):
            base = module.get_base_layer()
            weights[name] = _outputs_first(base, _adapted(module, cast(Tensor, base.weight).detach().double()))
        elif _is_linear(module) and not _inside_adapter(name):
            weights[name] = _outputs_first(module, cast(Tensor, module.weight).detach().double().clone())
    return weights


def _adapted(layer: LoraLinear, weight: Tensor) -> Tensor:
    for adapter in layer.active_adapters:
        weight = weight + layer.get_delta_weight(adapter).detach().double()
        if adapter in layer.lora_magnitude_vector:  # DoRA's
            inputs = 0 if layer.fan_in_fan_out else 1
            lengths = cast(Tensor, layer.lora_magnitude_vector[adapter].weight).detach().double()
            weight = weight * (lengths / torch.linalg.norm(weight, dim=inputs)).unsqueeze(inputs)
    return weight


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"


def _outputs_first(layer: nn.Module, weight: Tensor) -> Tensor:
    return weight.T if type(layer).__name__ == "Conv1D" else weight


def _inside_adapter(name: str) -> bool:
    return any(part in {"base_layer", "lora_A", "lora_B", "bottleneck"} for part in name.split("."))
