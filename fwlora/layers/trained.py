"""Modules trained in full beside the factors: PEFT's modules to save, and those that `train_modules=` names."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from peft.utils import ModulesToSaveWrapper
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fwlora.errors import ArgumentError, RunningStatisticsWarning, UnsupportedModelError, warn
from fwlora.sharding import local, whole


def collect(
    base: nn.Module, adapter: str, sites: Iterable[str], train_modules: Sequence[str], shared: Mapping[int, list[str]]
) -> tuple[dict[str, nn.Parameter], list[str]]:
    """Parameters to train by name, and names of the buffers to keep with them; `train_modules` are unfrozen.

    Args:
        base: the base model.
        adapter: whose modules to save.
        sites: names of the chain's sites.
        train_modules: names or endings of names of modules.
        shared: modules whose parameters share memory.

    Returns:
        Parameters, and names of persistent buffers.

    Raises:
        ArgumentError: for a name that no module has, or one whose module holds a site.
        UnsupportedModelError: for a tied parameter.
    """
    if isinstance(train_modules, str) or not isinstance(train_modules, Iterable):
        raise ArgumentError(f"`train_modules=` takes a sequence of module names and got {train_modules!r}.")
    sites = list(sites)
    wrappers = {name: module for name, module in base.named_modules() if isinstance(module, ModulesToSaveWrapper)}
    modules = {
        f"{name}.modules_to_save.{adapter}": wrapper.modules_to_save[adapter]
        for name, wrapper in wrappers.items()
        if adapter in wrapper.modules_to_save
    }
    for wanted in train_modules:
        found = [name for name, _ in base.named_modules() if name == wanted or name.endswith(f".{wanted}")]
        if not found:
            raise ArgumentError(f"`train_modules=` names {wanted!r}, and the model has no module of that name or ending.")
        for name in found:
            if any(site == name or site.startswith(f"{name}.") for site in sites):
                raise ArgumentError(
                    f"`train_modules=` names {wanted!r}, which holds a site of the chain; choose one of the two."
                )
            # What PEFT has wrapped, PEFT trains already; its frozen original must stay frozen.
            if not any(name == wrapper or name.startswith(f"{wrapper}.") for wrapper in wrappers):
                modules[name] = base.get_submodule(name)

    parameters = {f"{name}.{leaf}": p for name, module in modules.items() for leaf, p in module.named_parameters()}
    for name, parameter in parameters.items():
        if local(parameter).data_ptr() in shared:
            raise UnsupportedModelError(
                f"`train_modules=` reaches {name!r}, a tied parameter, of which an adapter could hold one name only. Untie it "
                "first (e.g. `tie_word_embeddings=False` when loading), or leave it out."
            )
        parameter.requires_grad_(True)
    buffers = [
        f"{name}.{leaf}"
        for name, module in modules.items()
        for leaf, value in module.state_dict(keep_vars=True).items()
        if isinstance(value, Tensor) and not isinstance(value, nn.Parameter)
    ]
    _warn_of_running_statistics(base, modules)
    return parameters, buffers


def whole_modules(base: nn.Module, names: Iterable[str], sites: Iterable[str]) -> dict[str, dict[str, Tensor]]:
    """The outermost modules that hold the named tensors, with all that an adapter must hold of them.

    Args:
        base: the base model.
        names: of parameters trained in full and of buffers kept with them.
        sites: names of the chain's sites.

    Returns:
        For each module, by its name in the original model, its whole state.

    Raises:
        ArgumentError: where no adapter can hold such a module: it is the model itself, it holds a site, or its name is the end
            of a site's name.
    """
    parents = {name.rpartition(".")[0] for name in names}
    outermost = [p for p in parents if not any(p != other and p.startswith(f"{other}.") for other in parents)]
    sites = list(sites)
    for parent in outermost:
        if not parent or any(site == parent or site.startswith(f"{parent}.") for site in sites):
            raise ArgumentError(
                f"`export_adapter()` cannot hold what was trained in full of {parent or 'the model itself'!r}: PEFT saves "
                "whole modules, and this one holds sites of the chain. Use `merge_and_unload()` and save the model."
            )
        swallowed = [site for site in sites if site.endswith(original_name(parent))]
        if swallowed:
            raise ArgumentError(
                f"`export_adapter()` cannot hold {parent!r}: PEFT finds modules to save by the ends of names, and would take "
                f"the site {swallowed[0]!r} for it. Use `merge_and_unload()` and save the model."
            )
    return {
        original_name(parent): {
            k: whole(v) for k, v in base.get_submodule(parent).state_dict().items() if isinstance(v, Tensor)
        }
        for parent in sorted(outermost)
    }


def original_name(name: str) -> str:
    """A name in the original model, out of PEFT's wrapper for modules to save.

    Returns:
        The name that the module has without the wrapper.

    Example:
        >>> original_name("head.modules_to_save.default.weight")
        'head.weight'
    """
    return re.sub(r"\.modules_to_save\.[^.]+", "", name)


def _warn_of_running_statistics(base: nn.Module, modules: Mapping[str, nn.Module]) -> None:
    kept = {id(inner) for module in modules.values() for inner in module.modules()}
    moving = [
        name
        for name, module in base.named_modules()
        if isinstance(module, _BatchNorm)
        and module.track_running_stats
        and id(module) not in kept
        and ".original_module" not in name  # the dormant copy of a module to save
    ]
    if moving:
        warn(
            f"{', '.join(moving[:3])}{', ...' if len(moving) > 3 else ''}: running statistics change in train() mode and are "
            "part of neither the chain's state nor its adapter. Keep these layers in eval(), or name them in `train_modules=`.",
            RunningStatisticsWarning,
        )
