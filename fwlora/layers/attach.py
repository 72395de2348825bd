"""Making a model's layers the sites of a chain: injection through PEFT, adoption of what is there, and the way back."""

from __future__ import annotations

import copy
import gc
import math
import re
import warnings
import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from peft import LoraConfig, PeftModel
from peft.functional import cast_adapter_dtype, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import ModulesToSaveWrapper
from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as PEFT_TARGETS
from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from fwlora.errors import ArgumentError, OwnershipError, SkippedLayersWarning, UnsupportedModelError, warn
from fwlora.layers import quantised, refusals
from fwlora.layers.close_names import suggestion, unmatched
from fwlora.layers.fused import FusedLinear, unfuse
from fwlora.layers.sites import Site
from fwlora.layers.stack import StackedSite, stack_of
from fwlora.layers.trained import collect
from fwlora.sharding import is_sharded, unwrapped_class

# LoraLayer is a mixin that PEFT does not type as the nn.Module that every layer is: hence most `type: ignore`s below.
ADAPTER = "default"
_WRAPPERS = (DistributedDataParallel, DataParallel)
# Which chain owns a layer; neither side is kept alive by it.
_owners: weakref.WeakKeyDictionary[nn.Module, weakref.ref[object]] = weakref.WeakKeyDictionary()


class Attachment(NamedTuple):
    """What a chain holds on to of its model.

    Attributes:
        model: the base model inside every wrapper.
        outermost: the PeftModel around it, which FSDP2 may have sharded as one, or the base model itself.
        sites: its sites by name.
        config: the configuration of the live adapter.
        trained: names of the parameters trained in full beside the factors; frameworks swap the Parameters, so they are looked
            up.
        buffers: names of the persistent buffers of those modules.
        adopted: whether the LoRA layers were there before.
    """

    model: nn.Module
    outermost: nn.Module
    sites: dict[str, Site]
    config: LoraConfig
    trained: list[str]
    buffers: list[str]
    adopted: bool

    def parameters(self) -> dict[str, nn.Parameter]:
        """What is trained in full, by name."""
        return {name: self.model.get_parameter(name) for name in self.trained}


def attach(
    model: nn.Module,
    *,
    rank: int | None,
    alpha: float | None,
    target_modules: str | Sequence[str] | None,
    lora_config: LoraConfig | None,
    lora_bias: bool,
    train_modules: Sequence[str],
) -> Attachment:
    """Inject LoRA layers into a plain model, or adopt those that a model has; a refused model is left as it was."""
    refusals.refuse_non_model(model)
    base = unwrap_model(model)
    layers = lora_layers(base)
    others = {type(m).__name__ for m in base.modules() if isinstance(m, BaseTunerLayer) and not isinstance(m, LoraLayer)}
    if others:
        raise UnsupportedModelError(
            f"`ChainLoRAOptimizer(model)` got a model with adapters of another kind ({', '.join(sorted(others))}); give the "
            "plain model, or one with LoRA layers alone."
        )
    if layers:
        if (rank, alpha, target_modules, lora_config) != (None, None, None, None) or lora_bias:
            raise ArgumentError(
                "`rank=` (an int), `alpha=`, `target_modules=`, `lora_bias=` and `lora_config=` shape the layers that are "
                "injected, and this model brings its own LoRA layers. Leave them out (a RankSchedule is fine)."
            )
        return _adopt(base, layers, train_modules)._replace(outermost=_unwrapped(model))
    if any(is_sharded(parameter) for parameter in base.parameters()):
        raise UnsupportedModelError(
            "`ChainLoRAOptimizer(model)` got a model that FSDP2 has sharded, without LoRA layers: factors injected now would "
            "belong to no shard. Give it the LoRA layers first (`get_peft_model`), then `fully_shard`, then make the optimizer."
        )
    if isinstance(getattr(model, "_orig_mod", model), _WRAPPERS):
        raise UnsupportedModelError(
            f"`ChainLoRAOptimizer(model)` got a {type(model).__name__} without LoRA layers: factors injected after wrapping "
            "are never reduced across ranks. Make the optimizer first, then wrap the model."
        )
    if isinstance(model, PeftModel):
        raise UnsupportedModelError("`ChainLoRAOptimizer(model)` got a PeftModel that holds no LoRA layer; give a plain model.")
    if lora_config is not None and (rank, alpha, target_modules) != (None, None, None):
        raise ArgumentError(
            "`lora_config=` says the rank, alpha and target modules; leave out `rank=`, `alpha=` and `target_modules=`."
        )
    if lora_config is None:
        if rank is not None and (isinstance(rank, bool) or not isinstance(rank, int) or rank < 1):
            raise ArgumentError(
                f"`rank={rank!r}`: give a whole number of at least 1, or a RankSchedule such as StepDown([8, 4])."
            )
        is_number = isinstance(alpha, int | float) and not isinstance(alpha, bool)
        if alpha is not None and not (is_number and math.isfinite(alpha) and alpha != 0):
            raise ArgumentError(f"`alpha={alpha!r}`: give a finite number other than 0; the scale is alpha / rank.")
        names = [target_modules] if isinstance(target_modules, str) else target_modules
        if names is not None and not (isinstance(names, Iterable) and all(isinstance(name, str) for name in names)):
            raise ArgumentError(f"`target_modules={target_modules!r}`: give names of modules in a list, or one pattern.")
        rank = 8 if rank is None else rank
        lora_config = LoraConfig(
            r=rank,
            # PEFT types an int and takes any number.
            lora_alpha=2 * rank if alpha is None else alpha,  # type: ignore[arg-type]
            target_modules=default_targets(base) if target_modules is None else target_modules,  # type: ignore[arg-type]
            lora_bias=lora_bias,
        )
    elif lora_bias and not lora_config.lora_bias:
        raise ArgumentError("`lora_bias=True` contradicts `lora_config=` with lora_bias=False; set it in the config.")
    refusals.refuse_config(lora_config, "lora_config=")
    missing = unmatched(target_modules, [name for name, _ in base.named_modules()])
    close = suggestion(missing, base)
    attachment = _inject(base, lora_config, train_modules)
    if missing:
        warn(f"`target_modules=` names {', '.join(missing)}, which no module has{close}", SkippedLayersWarning)
    return attachment


def unwrap_model(model: nn.Module) -> nn.Module:
    """The base model inside DDP, torch.compile and PeftModel."""
    while isinstance(model := _unwrapped(model), PeftModel):
        model = model.get_base_model()
    return model


def _unwrapped(model: nn.Module) -> nn.Module:
    """The model inside DDP and torch.compile, with its PeftModel."""
    while True:
        if isinstance(model, _WRAPPERS):
            model = model.module
        elif hasattr(model, "_orig_mod"):
            model = model._orig_mod  # type: ignore[assignment]
        elif type(model).__name__ == "FullyShardedDataParallel":
            raise UnsupportedModelError("`ChainLoRAOptimizer(model)` does not serve FSDP1; use FSDP2 (`fully_shard`) or DDP.")
        else:
            return model


def lora_layers(model: nn.Module) -> dict[str, LoraLayer]:
    """The model's LoRA layers by their names in the base model."""
    return {name.replace("_orig_mod.", ""): module for name, module in model.named_modules() if isinstance(module, LoraLayer)}


def default_targets(model: nn.Module) -> str | list[str]:
    """PEFT's own choice for the architecture, else every Linear and Conv but tied, grouped and output-head layers."""
    if not list(model.children()):
        raise UnsupportedModelError(
            f"The model is itself one layer ({type(model).__name__}), and a layer is adapted by replacing it in its parent; "
            "wrap it, e.g. in nn.Sequential."
        )
    known = PEFT_TARGETS.get(getattr(getattr(model, "config", None), "model_type", ""))
    if known:
        return known
    shared = {name for names in refusals.shared_names(model).values() for name in names}
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None  # type: ignore[operator]
    # Models of transformers read attributes of their convolutions (stride) that PEFT's layers do not have.
    kinds = (nn.Linear,) if hasattr(model, "config") else (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
    chosen, skipped = [], []
    for name, module in model.named_modules():
        if not isinstance(module, kinds) and type(module).__name__ != "Conv1D":
            continue
        parent = model.get_submodule(name.rpartition(".")[0])
        why = "tied" if name in shared else "output head" if module is head else refusals.unmergeable(module, parent)
        skipped.append(f"{name} ({why})") if why else chosen.append(name)
    if not chosen:
        raise UnsupportedModelError(
            "`target_modules=None` looks for Linear and Conv layers and this model has none that can be adapted; name the "
            "modules in `target_modules=`."
        )
    if skipped:
        warn(
            f"`target_modules=None` leaves these layers frozen: {', '.join(skipped)}. Name layers in `target_modules=` to "
            "choose yourself.",
            SkippedLayersWarning,
        )
    # A list would also match every longer name with that ending.
    return "|".join(re.escape(name) for name in chosen)


def _inject(base: nn.Module, config: LoraConfig, train_modules: Sequence[str]) -> Attachment:
    # PEFT writes its choices into the config, and draws from the global stream: the user's config and numbers stay his.
    config = copy.deepcopy(config)
    try:
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings(), quantised.marked(base):
            # Each layer's orientation PEFT finds out by itself; of the others `refusals` makes errors.
            for message in ("fan_in_fan_out is set to", "`lora_bias=True` was passed", "LoRA adapter added to ConvNd"):
                warnings.filterwarnings("ignore", message=message)
            inject_adapter_in_model(config, base, adapter_name=ADAPTER)
    except (ValueError, re.error) as error:
        reason = str(error).rstrip(".") + suggestion(config.target_modules, base)
        raise ArgumentError(f"PEFT refused the injection, choose other layers in `target_modules=`: {reason}") from error
    cast_adapter_dtype(base, ADAPTER, True)
    return _attachment(base, lora_layers(base), ADAPTER, config, train_modules, adopted=False)


@contextmanager
def undone_on_error(model: nn.Module) -> Iterator[None]:
    """Leave a plain model plain, and every `requires_grad` and layer's class as it was, where what follows raises."""
    if not isinstance(model, nn.Module):
        yield
        return
    base = unwrap_model(model)
    trainable = {name: parameter.requires_grad for name, parameter in base.named_parameters()}
    config = vars(base).get("peft_config")
    kinds = {layer: type(layer) for layer in lora_layers(base).values()}
    was_plain = not any(isinstance(module, LoraLayer | ModulesToSaveWrapper) for module in base.modules())
    try:
        yield
    except BaseException:
        if was_plain:
            detach(base)
            if config is not None:
                base.peft_config = config
        for layer, kind in kinds.items():
            if kind is not FusedLinear:
                unfuse(layer)
        # By name: PEFT makes attention's parameters anew.
        for name, parameter in base.named_parameters():
            parameter.requires_grad_(trainable.get(name, parameter.requires_grad))
        raise


def _adopt(base: nn.Module, layers: dict[str, LoraLayer], train_modules: Sequence[str]) -> Attachment:
    # With several adapters present, the active one need not be on every layer.
    layers = {name: layer for name, layer in layers.items() if set(layer.active_adapters) & set(layer.r)} or layers
    for name, layer in layers.items():
        refusals.refuse_adapter_state(name, layer)
        if is_owned(layer):
            raise OwnershipError(
                f"`ChainLoRAOptimizer(model)`: {name!r} belongs to another chain. Go on with that optimizer, end it with "
                "`merge_and_unload()`, or drop every reference to it first."
            )
    adapters = {layer.active_adapters[0] for layer in layers.values()}
    if len(adapters) != 1:
        raise UnsupportedModelError(
            f"The layers have different active adapters {sorted(adapters)}; a chain trains exactly one."
        )
    adapter = adapters.pop()
    configs = getattr(base, "peft_config", None) or {}
    config = configs.get(adapter) or LoraConfig()
    refusals.refuse_config(config, f"peft_config[{adapter!r}]")
    return _attachment(base, layers, adapter, config, train_modules, adopted=True)


def _attachment(
    base: nn.Module,
    layers: dict[str, LoraLayer],
    adapter: str,
    config: LoraConfig,
    train_modules: Sequence[str],
    *,
    adopted: bool,
) -> Attachment:
    shared = refusals.shared_names(base)
    clean = {name: name.removesuffix(".base_layer") for name, _ in base.named_modules(remove_duplicate=False)}
    sites = {}
    for name, layer in layers.items():
        refusals.refuse_layer(name, layer, adapter, base.get_submodule(name.rpartition(".")[0]))
        refusals.refuse_tied(name, layer.get_base_layer().weight, shared, clean)  # type: ignore[arg-type]
        kind = StackedSite if unwrapped_class(layer) in quantised.adapter_kinds() else Site
        sites[name] = kind(name, layer, adapter)
    factors = [parameter for site in sites.values() for parameter in site.parameters()]
    refusals.refuse_frozen(adapter, factors)
    trained, buffers = collect(base, adapter, sites, train_modules, shared)
    refusals.refuse_strays(base, [*factors, *trained.values()])
    quantised.keep_trainable(base)
    return Attachment(base, base, sites, config, [*trained], buffers, adopted)


def own(sites: dict[str, Site], owner: object) -> None:
    """Enter the owner of these sites' layers."""
    for site in sites.values():
        _owners[site.layer] = weakref.ref(owner)  # type: ignore[index]


def is_owned(layer: LoraLayer) -> bool:
    """Whether a living chain owns the layer."""
    owner = _owners.get(layer)  # type: ignore[call-overload]
    if owner is None or owner() is None:
        return False
    # Schedulers and optimizers refer to each other; a chain that only such a cycle keeps alive is gone.
    gc.collect()
    return owner() is not None


def detach(model: nn.Module) -> nn.Module:
    """Put the base layers back in the place of their LoRA layers, and trained copies in that of their originals."""
    # The inner ones first: attention holds a LoRA layer inside its LoRA layer.
    for name, layer in reversed([*lora_layers(model).items()]):
        _owners.pop(layer, None)  # type: ignore[call-overload]
        _replace(model, name, layer.get_base_layer())
    for name, module in [*model.named_modules()]:
        if isinstance(module, ModulesToSaveWrapper):
            _replace(model, name, module.modules_to_save[module.active_adapters[0]])
    for attribute in ("peft_config", "_hf_peft_config_loaded"):
        if attribute in vars(model):
            delattr(model, attribute)
    return model


def dequantise(model: nn.Module) -> nn.Module:
    """Make every layer of bitsandbytes' an ordinary Linear, with the links that stand beside it folded in, one at a time.

    Args:
        model: without LoRA layers.

    Returns:
        The same model, with nothing that calls it quantised; one that has no such layer is left as it is.
    """
    places: dict[nn.Module, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, quantised.kinds()):
            places.setdefault(module, []).append(name)
    if not places:
        return model
    dtype = quantised.plain_dtype(model)
    for module, names in places.items():
        stack = stack_of(module)
        layer = quantised.plain(module, None if stack is None else stack.sides, dtype)
        for name in names:
            _replace(model, name, layer)
    quantised.unmark(model)
    return model


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, module)
