"""What is not served, and the error that says what to do instead."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from peft.tuners.lora import layer as lora
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from fwlora.errors import ArgumentError, UnsupportedModelError
from fwlora.layers import quantised
from fwlora.layers.fused import FusedLinear
from fwlora.layers.rounding import EXACT, ROUNDED
from fwlora.layers.stack import stack_of
from fwlora.sharding import is_sharded, local, unserved, unwrapped_class

SERVED = (lora.Linear, FusedLinear, lora.Embedding, lora.Conv1d, lora.Conv2d, lora.Conv3d)


def refuse_non_model(model: object) -> None:
    """`ChainLoRAOptimizer(model.parameters())` and other things that are no model."""
    if not isinstance(model, nn.Module):
        raise ArgumentError(
            f"`ChainLoRAOptimizer(model)` takes the model itself, a torch.nn.Module, and got {type(model).__name__}: give "
            "the model, not its parameters. The chain owns low-rank factors inside it."
        )


def refuse_config(config: LoraConfig, argument: str) -> None:
    """Settings of a `LoraConfig` whose updates are no low-rank matrices beside the given base."""
    if not isinstance(config, LoraConfig):
        raise ArgumentError(f"`{argument}` takes a peft.LoraConfig and got {type(config).__name__}.")
    if config.use_dora:
        raise UnsupportedModelError(
            f"`{argument}` sets use_dora=True; DoRA rescales rows, so its update is not low-rank and no chain of links "
            "reproduces it. Use use_dora=False."
        )
    initial = config.init_lora_weights
    if isinstance(initial, str) and initial.lower().startswith(("pissa", "olora", "corda", "loftq", "lora_ga")):
        raise UnsupportedModelError(
            f"`{argument}` sets init_lora_weights={initial!r}, which changes the base weights, so that no adapter for the "
            "original base can be exported. Use init_lora_weights=True."
        )
    if config.bias != "none":
        raise UnsupportedModelError(
            f"`{argument}` sets bias={config.bias!r}, which trains biases of the base outside the chain. Use bias='none' "
            "with `lora_bias=True`, or name the modules in `train_modules=`."
        )
    for name in (
        "target_parameters",
        "layer_replication",
        "trainable_token_indices",
        "megatron_config",
        "arrow_config",
    ):
        if getattr(config, name, None):
            raise UnsupportedModelError(f"`{argument}` sets {name}=..., which a chain does not serve. Leave it out.")
    if getattr(config, "alora_invocation_tokens", None) or getattr(config, "use_bdlora", None):
        raise UnsupportedModelError(f"`{argument}` asks for a LoRA variant; a chain serves plain LoRA layers only.")


def unmergeable(layer: nn.Module, parent: nn.Module) -> str | None:
    """Why a Linear, Conv or Embedding computes something else than its LoRA twin would have merged; None where it does not."""
    if getattr(layer, "groups", 1) != 1:
        return f"grouped (groups={layer.groups})"  # a block-diagonal update is not low-rank
    if getattr(layer, "weight", None) is not None and layer.weight.numel() == 0:  # type: ignore[union-attr, operator]
        return f"empty (a weight of shape {tuple(layer.weight.shape)})"  # type: ignore[union-attr, arg-type]
    # PEFT makes its convolutions without these two.
    if any(step != 1 for step in getattr(layer, "dilation", ())):  # type: ignore[union-attr]
        return f"dilated (dilation={layer.dilation})"
    if getattr(layer, "padding_mode", "zeros") != "zeros":
        return f"padded by padding_mode={layer.padding_mode!r}"
    if getattr(layer, "max_norm", None) is not None:
        return f"renormalised in place (max_norm={layer.max_norm})"
    if isinstance(parent, nn.MultiheadAttention | nn.TransformerEncoderLayer):
        return f"read past its adapter by torch's {type(parent).__name__}"
    return None


def refuse_layer(name: str, layer: LoraLayer, adapter: str, parent: nn.Module) -> None:
    """A layer of a kind, a precision or a state that a chain cannot merge into, or keep its links beside."""
    base = layer.get_base_layer()
    if unwrapped_class(layer) in quantised.adapter_kinds():
        _refuse_quantised(name, layer, adapter)
    else:
        _refuse_unmergeable(name, layer)
    if getattr(base, "sparse", False):
        raise UnsupportedModelError(
            f"`target_modules` names {name!r}, an Embedding of sparse gradients, which PEFT's factors there do not have; use "
            "`sparse=False`, or leave it out."
        )
    reason = unmergeable(base, parent)
    if reason:
        raise UnsupportedModelError(
            f"`target_modules` names {name!r}, a layer that is {reason}: a merge would not be what the adapter computes "
            "there, and a knot would change the model. Leave it out."
        )
    if layer.lora_variant.get(adapter) is not None or layer.use_dora.get(adapter, False):
        raise UnsupportedModelError(f"{name!r} runs a LoRA variant (DoRA or the like); a chain serves plain LoRA only.")
    if not (math.isfinite(layer.scaling[adapter]) and layer.scaling[adapter]):
        raise UnsupportedModelError(
            f"{name!r} scales its adapter by {layer.scaling[adapter]} (alpha / rank), with which no link could be learned; "
            "give a finite `lora_alpha` other than 0."
        )
    if layer.lora_bias.get(adapter, False) and getattr(base, "bias", None) is None:
        raise UnsupportedModelError(
            f"`lora_bias=True` merges the factor's bias into the layer's own, and {name!r} has none. Leave the layer out of "
            "`target_modules`, or use `lora_bias=False`."
        )


def _refuse_unmergeable(name: str, layer: LoraLayer) -> None:
    base = layer.get_base_layer()
    weight = getattr(base, "weight", None)
    if isinstance(base, quantised.kinds()):
        raise UnsupportedModelError(
            f"{name!r} is a {type(base).__name__} under PEFT's layer for a plain Linear, whose factors cannot be kept beside a "
            "packed weight: the model did not say that it is quantised. Set `model.is_loaded_in_4bit = True` (or 8bit) before "
            "`get_peft_model`, or give the model without adapters."
        )
    is_plain = type(weight) is nn.Parameter or (isinstance(weight, nn.Parameter) and is_sharded(weight))
    if unwrapped_class(layer) not in SERVED or not is_plain:
        raise UnsupportedModelError(
            f"`target_modules` reaches {name!r}, a {type(base).__name__} under {type(layer).__name__}; links can be merged "
            "into plain Linear, Conv1d/2d/3d, Embedding and GPT-2 Conv1D weights, and kept beside 4-bit and 8-bit Linears of "
            "bitsandbytes. Other quantised bases (GPTQ, AWQ, HQQ) are not served: load it in bf16, or leave the layer out."
        )
    assert isinstance(weight, nn.Parameter)
    refuse_placement(name, weight)
    if weight.is_meta:
        raise UnsupportedModelError(f"{name!r} is on the meta device and holds no values; load the base model's weights first.")
    if any(step == 0 and size > 1 for step, size in zip(local(weight).stride(), local(weight).shape, strict=True)):
        raise UnsupportedModelError(
            f"{name!r} has a weight that repeats the same memory (`expand`), into which nothing can be merged; give it a copy."
        )
    if weight.dtype not in EXACT + ROUNDED:
        raise UnsupportedModelError(
            f"{name!r} stores its weight as {weight.dtype}; merging knows {', '.join(str(d) for d in EXACT + ROUNDED)}. "
            "Convert the base, or leave the layer out of `target_modules`."
        )


def _refuse_quantised(name: str, layer: LoraLayer, adapter: str) -> None:
    base = layer.get_base_layer()
    if reason := quantised.unserved_base(base):
        raise UnsupportedModelError(f"{name!r}, a {type(base).__name__}, is {reason}.")
    if layer.lora_bias.get(adapter, False):
        raise UnsupportedModelError(
            f"`lora_bias=True` merges the factor's bias into the layer's own, and {name!r} is quantised, where links are kept "
            "and not merged. Use `lora_bias=False`."
        )
    if stack_of(base) is not None:
        raise UnsupportedModelError(
            f"{name!r} holds the links of an earlier chain beside its quantised weight, which a new chain would not know. Go "
            "on with that optimizer; or load the base afresh, with the adapter that its `export_adapter()` wrote."
        )


def refuse_placement(name: str, weight: torch.Tensor) -> None:
    """A weight that is sharded otherwise than by FSDP2 over all ranks."""
    if placed := unserved(weight):
        raise UnsupportedModelError(
            f"{name!r} is {placed}; a chain serves FSDP2 over all ranks (`fully_shard` on a mesh of one axis), whose "
            "shards are rows, and neither tensor parallelism nor hybrid sharding."
        )


def refuse_adapter_state(name: str, layer: BaseTunerLayer) -> None:
    """Merged, disabled or several active adapters."""
    if layer.merged_adapters:
        raise UnsupportedModelError(
            f"{name!r} holds the merged adapter(s) {layer.merged_adapters}: PEFT's forward bypasses merged factors, so they "
            "would never train. Call `model.unmerge_adapter()` first, or give the plain model."
        )
    if len(layer.active_adapters) != 1 or layer.disable_adapters:
        raise UnsupportedModelError(
            f"{name!r} has the active adapters {list(layer.active_adapters)}"
            f"{' and they are disabled' if layer.disable_adapters else ''}; a chain trains exactly one. Choose it with "
            "`model.set_adapter(name)`."
        )


def refuse_frozen(adapter: str, factors: Iterable[nn.Parameter]) -> None:
    """An adapter that was loaded for inference."""
    if not any(parameter.requires_grad for parameter in factors):
        raise UnsupportedModelError(
            f"All factors of the adapter {adapter!r} are frozen, so nothing would train. Load it with "
            "`PeftModel.from_pretrained(..., is_trainable=True)`."
        )


def shared_names(model: nn.Module) -> dict[int, list[str]]:
    """For each address that several modules' parameters share, those modules."""
    owners: dict[int, list[str]] = {}
    # A module that stands in two places of the tree is tied with itself.
    for name, module in model.named_modules(remove_duplicate=False):
        for parameter in module.parameters(recurse=False):
            values = local(parameter)
            if values.device.type != "meta" and values.numel():
                owners.setdefault(values.data_ptr(), []).append(name)
    return {pointer: names for pointer, names in owners.items() if len(names) > 1}


def refuse_tied(name: str, weight: torch.Tensor, shared: dict[int, list[str]], clean: dict[str, str]) -> None:
    """A weight that another layer uses too: a knot would change both."""
    names = sorted({clean.get(other, other) for other in shared.get(local(weight).data_ptr(), [])})
    if len(names) > 1:
        raise UnsupportedModelError(
            f"`target_modules` names {name!r}, whose weight is tied ({' = '.join(names)}): a knot would change both layers. "
            "Leave it out, or untie first (e.g. `tie_word_embeddings=False` when loading)."
        )


def refuse_strays(model: nn.Module, known: Iterable[nn.Parameter]) -> None:
    """Parameters that would keep their gradients and never be stepped."""
    ids = {id(parameter) for parameter in known}
    strays = [name for name, parameter in model.named_parameters() if parameter.requires_grad and id(parameter) not in ids]
    if strays:
        raise UnsupportedModelError(
            f"{len(strays)} parameter(s) of the adapted model require grad and belong to no site ({', '.join(strays[:3])}"
            f"{', ...' if len(strays) > 3 else ''}); they would silently not be trained. Name their modules in "
            "`train_modules=`, or freeze them."
        )
