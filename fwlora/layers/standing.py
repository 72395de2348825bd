"""Whether the model is still what the chain was made for: layers in place, adapter in force, every tensor its own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from fwlora.errors import DisconnectedParametersError, UnsupportedModelError
from fwlora.layers import refusals
from fwlora.layers.sites import Site
from fwlora.sharding import local


class Standing:
    """What others may do to a model after `ChainLoRAOptimizer(model)`, and a chain must not work on in silence.

    Args:
        model: the base model.
        sites: its sites by name.
    """

    def __init__(self, model: nn.Module, sites: Mapping[str, Site]) -> None:
        self._model, self._sites = model, sites
        self._dtypes: dict[str, torch.dtype] | None = None

    def check(self) -> None:
        """Before what the model computes is saved, exported or trained on.

        Raises:
            DisconnectedParametersError: a layer, its weight or its adapter is gone, or another adapter was chosen.
            UnsupportedModelError: PEFT has merged the adapter, disabled it, or made several active.
        """
        present = {id(module) for module in self._model.modules()}
        for name, site in self._sites.items():
            if id(site.layer) not in present:
                raise DisconnectedParametersError(
                    f"The layer {name!r} that the chain trains is no longer in the model: it was removed, replaced or unloaded "
                    "after `ChainLoRAOptimizer(model)`. Put it back, or make a new optimizer (`merge_and_unload()` before such "
                    "a change keeps what was learned)."
                )
            if not isinstance(site.weight, nn.Parameter):
                raise DisconnectedParametersError(
                    f"The weight of {name!r} is computed anew at each use since something (pruning, weight norm) took hold of "
                    "it after `ChainLoRAOptimizer(model)`: what a knot adds to it would be lost. Take that off first."
                )
            if site.adapter not in site.layer.r:
                raise DisconnectedParametersError(
                    f"The adapter {site.adapter!r} that the chain trains was deleted from {name!r}, and the live link with it. "
                    "Load the last saved state into a new optimizer."
                )
            refusals.refuse_adapter_state(name, site.layer)
            if site.layer.active_adapters[0] != site.adapter:
                raise DisconnectedParametersError(
                    f"The chain trains the adapter {site.adapter!r} and {site.layer.active_adapters[0]!r} is active at "
                    f"{name!r}: call `model.set_adapter({site.adapter!r})`, or make a new optimizer for the other."
                )

    def check_link(self, stepped: Iterable[Tensor], *, merged: bool) -> None:
        """Before the first step of a link and before a knot: the same, and what a merge and a reset take for granted.

        Args:
            stepped: the parameters that the inner optimizer steps, and those lent for the time being.
            merged: whether the weights hold links already; until then they may be cast.

        Raises:
            DisconnectedParametersError: also for factors that nobody steps.
            UnsupportedModelError: also for shared tensors, and weights that were cast.
        """
        self.check()
        ids = {id(parameter) for parameter in stepped}
        owners: dict[int, str] = {}
        for name, site in self._sites.items():
            for factor in site.parameters():
                if owners.setdefault(id(factor), name) != name:
                    raise UnsupportedModelError(
                        f"{owners[id(factor)]!r} and {name!r} share a factor, which a knot would retire at the one and find "
                        "reset at the other. Give each layer its own."
                    )
                if factor.requires_grad and id(factor) not in ids:
                    raise DisconnectedParametersError(
                        f"The optimizer does not step the factors that {name!r} has now (was the model sharded, cast or "
                        "re-injected after `ChainLoRAOptimizer(model)`?); make the optimizer last."
                    )
        self.check_weights(merged=merged)
        self._refuse_ties()

    def check_weights(self, *, merged: bool) -> None:
        """Before a knot, a state and a rollback: a weight that links were merged into keeps its precision.

        Args:
            merged: whether the weights hold links already; else they are what they are to be.

        Raises:
            UnsupportedModelError: for a weight that was cast.
        """
        dtypes = {name: target.dtype for _, targets in self._merged() for name, target in targets.items()}
        if not merged or self._dtypes is None:
            self._dtypes = dtypes
        for name, dtype in dtypes.items():
            if dtype != self._dtypes[name]:
                raise UnsupportedModelError(
                    f"{name!r} was cast from {self._dtypes[name]} to {dtype} after links were merged into it, so that no state "
                    "could be replayed. `export_adapter()` still has every link; to train on, load the last state into a model "
                    "that was not cast."
                )

    def _refuse_ties(self) -> None:
        values = (local(p) for module in self._model.modules() for p in module.parameters(recurse=False))
        uses = Counter(value.data_ptr() for value in values if value.numel())
        if all(uses[local(target).data_ptr()] <= 1 for _, targets in self._merged() for target in targets.values()):
            return  # before any names are put together
        shared = refusals.shared_names(self._model)
        clean = {name: name.removesuffix(".base_layer") for name, _ in self._model.named_modules(remove_duplicate=False)}
        for name, targets in self._merged():
            for target in targets.values():
                refusals.refuse_tied(name, target, shared, clean)

    def _merged(self) -> list[tuple[str, dict[str, nn.Parameter]]]:
        """What merges change, site by site; beside a quantised weight links are kept, and it is not even read."""
        return [(name, site.targets()) for name, site in self._sites.items() if not site.keeps_links]
