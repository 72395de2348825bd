"""bitsandbytes' 4-bit and 8-bit Linears: which layers they are, what identifies their weight, and plain layers made of them.

A packed weight is read and never written: rounding it anew at every knot would lose most of every update. bitsandbytes is not
imported where PEFT has not done so.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from fwlora.sharding import is_sharded

_MARKS = {"Linear4bit": "is_loaded_in_4bit", "Linear8bitLt": "is_loaded_in_8bit"}
"""What PEFT looks for on a model before it looks at the kind of a layer."""
# Set by transformers on a model that it has quantised, beside those.
_TRACES = (*_MARKS.values(), "is_quantized", "quantization_method", "hf_quantizer", "quantization_config")


def kinds() -> tuple[type[nn.Module], ...]:
    """The layers that bitsandbytes quantises; none where nobody has imported it."""
    return _classes("bitsandbytes.nn")


def adapter_kinds() -> tuple[type[nn.Module], ...]:
    """PEFT's LoRA layers over those."""
    return _classes("peft.tuners.lora.bnb")


def unserved_base(base: Any) -> str | None:
    """Why retired links cannot be kept beside this layer of bitsandbytes'; None where they can."""
    weight, statistics = base.weight, _statistics(base)
    if is_sharded(weight):
        return "sharded, and the statistics of a packed weight belong to no row; use DDP, or load the base in bf16"
    if weight.is_meta:
        return "on the meta device and holds no values; load the base model's weights first"
    if statistics is None or (isinstance(statistics, Tensor) and weight.dtype != torch.int8):
        return (
            "not quantised: bitsandbytes does that when the model is moved to its device (`model.to(device)`), and never with "
            "`has_fp16_weights=True`"
        )
    if getattr(statistics, "packing_format_for_cpu", False):
        return (
            "repacked by bitsandbytes for inference on this CPU, in which it has rounded the weight's statistics and cannot "
            "train: load the base afresh, and make the optimizer before the model is evaluated"
        )
    return None


def keep_trainable(model: nn.Module) -> None:
    """Have 4-bit layers keep their weights as they are when the model is evaluated.

    On a CPU with bfloat16 instructions bitsandbytes repacks a weight in place at the first evaluation: it rounds the weight's
    statistics, and no gradient passes the layer from then on. A chain evaluates between steps.
    """
    for module in model.modules():
        if isinstance(module, kinds()) and "support_avx512bf16_for_cpu" in vars(module):
            vars(module)["support_avx512bf16_for_cpu"] = False


@contextmanager
def marked(model: nn.Module) -> Iterator[None]:
    """Let PEFT see that a model holds layers of bitsandbytes': it asks the model, and one made by hand does not tell."""
    present = {type(module).__name__ for module in model.modules() if isinstance(module, kinds())}
    missing = [mark for name, mark in _MARKS.items() if name in present and not getattr(model, mark, False)]
    try:
        for mark in missing:
            setattr(model, mark, True)
        yield
    finally:
        for mark in missing:
            delattr(model, mark)


def packed(base: Any) -> Tensor:
    """All that makes up the weight, codes and statistics, as a vector of bytes; two layers with the same compute the same."""
    weight, statistics = base.weight.data, _statistics(base)
    parts = [statistics] if isinstance(statistics, Tensor) else statistics.as_dict(packed=True).values()
    return torch.cat([_bytes(part).to(weight.device) for part in (weight, *parts)])


def dequantised(base: Any, dtype: torch.dtype | None = None) -> Tensor:
    """The (out, in) matrix that the layer multiplies by.

    Args:
        base: a layer of bitsandbytes'.
        dtype: of the result; None takes what costs least.

    Returns:
        The matrix, on the layer's device.
    """
    import bitsandbytes.functional as F

    weight, statistics = base.weight.data, _statistics(base)
    if isinstance(statistics, Tensor):
        return F.int8_vectorwise_dequant(weight, statistics.to(weight.device)).to(dtype or torch.float32)
    # In the precision that is asked for: codes times statistics would be rounded to that of the original weight.
    state: Any = copy.copy(statistics)
    state.dtype = dtype or state.dtype
    return F.dequantize_4bit(weight, state)


def plain_dtype(model: nn.Module) -> torch.dtype:
    """What the weights of ordinary layers in place of the quantised ones are to be in.

    A quantised layer casts what comes in to what it computes in, and back; an ordinary one casts nothing, so its weight has to
    be in what comes in.

    Returns:
        The dtype of most of the model's floating parameters outside its quantised layers; where there are none, what the first
        quantised layer computes in.
    """
    inside = {id(p) for module in model.modules() if isinstance(module, kinds()) for p in module.parameters()}
    sizes: dict[torch.dtype, int] = {}
    for parameter in model.parameters():
        if id(parameter) not in inside and parameter.is_floating_point():
            sizes[parameter.dtype] = sizes.get(parameter.dtype, 0) + parameter.numel()
    if sizes:
        return max(sizes, key=lambda dtype: sizes[dtype])
    first = next(module for module in model.modules() if isinstance(module, kinds()))
    return getattr(first, "compute_dtype", None) or getattr(_statistics(first), "dtype", torch.float32)


@torch.no_grad()
def plain(base: Any, links: tuple[Tensor, Tensor] | None, dtype: torch.dtype) -> nn.Linear:
    """An ordinary Linear that computes what the quantised one and its links do.

    Args:
        base: a layer of bitsandbytes'.
        links: A and B of the links beside it; None for none.
        dtype: of its weight and bias.

    Returns:
        The layer, frozen.
    """
    weight = dequantised(base, torch.float32)
    if links is not None:
        A, B = (side.to(weight.device, torch.float32) for side in links)
        weight.addmm_(B, A)
    bias: Tensor | None = base.bias
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta")
    layer.weight = nn.Parameter(weight.to(dtype), requires_grad=False)
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach().to(weight.device, dtype), requires_grad=False)
    return layer.train(base.training)


def unmark(model: nn.Module) -> None:
    """Take away what says that the model is quantised, so that it is saved, cast and moved as an ordinary one."""
    for holder in {id(m): m for module in model.modules() for m in (module, vars(module).get("config"))}.values():
        for name in _TRACES:
            if holder is not None and name in vars(holder):
                delattr(holder, name)


def _classes(module: str) -> tuple[type[nn.Module], ...]:
    found = sys.modules.get(module)
    return tuple(getattr(found, name) for name in _MARKS if hasattr(found, name))


def _statistics(base: Any) -> Any:
    """Of a 4-bit weight its quantisation state, of an 8-bit one the scale of each row; None before it is quantised."""
    # By attributes: an unpickled weight is an ordinary Parameter that has them.
    if hasattr(base, "state"):
        scales = base.state.SCB  # there since the first forward pass
        return scales if scales is not None else getattr(base.weight, "SCB", None)
    state = getattr(base.weight, "quant_state", None)
    return state if state is not None else base.quant_state


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.detach().as_subclass(Tensor).contiguous().view(-1).view(torch.uint8)
