"""Layers as bitsandbytes quantises them, and the ordinary models that they stand for."""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor, nn

KINDS: dict[str, dict[str, Any]] = {
    "nf4": {"quant_type": "nf4"},  # with statistics that are quantised themselves
    "fp4": {"quant_type": "fp4", "compress_statistics": False},
    "int8": {"has_fp16_weights": False},
}


def quantised(linear: nn.Linear, kind: str) -> nn.Linear:
    """The layer in 4 or 8 bits, on the CPU."""
    import bitsandbytes as bnb

    cls: Any = bnb.nn.Linear8bitLt if kind == "int8" else bnb.nn.Linear4bit
    layer = cls(linear.in_features, linear.out_features, bias=linear.bias is not None, **KINDS[kind])
    layer.load_state_dict(linear.state_dict())
    return layer.to("cpu")


def dequantised(layer: Any) -> Tensor:
    """The matrix that a quantised layer multiplies by, from the definitions."""
    import bitsandbytes as bnb

    if isinstance(layer, bnb.nn.Linear4bit):
        return bnb.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    scales = layer.state.SCB if layer.weight.SCB is None else layer.weight.SCB
    return layer.weight.data.float() * scales[:, None] / 127


def stood_for(model: nn.Module) -> nn.Module:
    """A copy of the model with an ordinary Linear for each quantised one."""
    import bitsandbytes as bnb

    twin = copy.deepcopy(model)
    for name, module in [*twin.named_modules()]:
        if isinstance(module, bnb.nn.Linear4bit | bnb.nn.Linear8bitLt):
            linear = nn.Linear(module.in_features, module.out_features, bias=module.bias is not None)
            linear.weight.data.copy_(dequantised(module))
            if module.bias is not None:
                linear.bias.data.copy_(module.bias)
            twin.set_submodule(name, linear)
    return twin


def base_bytes(model: nn.Module) -> dict[str, Tensor]:
    """Every tensor of the quantised layers, statistics included, as saved, by its name in the base model."""
    kept = {name: value for name, value in model.state_dict().items() if "lora_" not in name}
    return {name.replace(".base_layer", ""): value.clone() for name, value in kept.items()}
