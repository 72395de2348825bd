"""Peers that train every weight at less than Adam's memory: GaLore and BAdam, by their authors' packages."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, cast

import torch
from torch import nn

from experiments.methods.full import full_precision
from experiments.methods.method import Plain, called, require, unfreeze
from experiments.schedules import Linear, Schedule, scheduler
from experiments.train import Setup


@dataclass(frozen=True)
class GaLore(Plain):
    """AdamW on every parameter, whose moments of the targets' matrices live in a subspace of the gradient (arXiv 2403.03507).

    Attributes:
        label: the name in tables and figures.
        lr: peak learning rate.
        rank: of the subspace.
        schedule: over the whole run.
        update_proj_gap: steps between two subspaces, each by an SVD of a gradient.
        scale: of the projected matrices' updates.
        projected: layers whose matrices are projected, by name; empty for the targets.
        full_precision: train half-precision weights as float32, as full fine-tuning does; False trains them as they are, which
            saves memory and loses steps smaller than a weight's last digit.
    """

    label: str
    lr: float
    rank: int
    schedule: Schedule = field(default_factory=Linear)
    update_proj_gap: int = 200
    scale: float = 0.25
    projected: tuple[str, ...] = ()
    full_precision: bool = True

    needs: ClassVar[dict[str, str]] = {"galore-torch": "galore_torch", "bitsandbytes": "bitsandbytes"}

    def prepare(self, model: nn.Module, targets: Sequence[str], *, steps: int, seed: int, trained: Sequence[str] = ()) -> Setup:
        """Nothing is drawn: the seed orders the data alone."""
        require(self)
        from galore_torch import GaLoreAdamW  # pyright: ignore[reportMissingImports]

        parameters = list(self.inject(model, targets).parameters())
        matrices = self._matrices(model, targets)
        others = [parameter for parameter in parameters if parameter not in set(matrices)]
        subspace = {"rank": self.rank, "update_proj_gap": self.update_proj_gap, "scale": self.scale, "proj_type": "std"}
        groups = [{"params": matrices, **subspace}, {"params": others}]
        optimizer = GaLoreAdamW([g for g in groups if g["params"]], lr=self.lr, no_deprecation_warning=True)
        return Setup(model, optimizer, parameters, scheduler(optimizer, self.schedule, steps))

    def inject(self, model: nn.Module, targets: Sequence[str], *, trained: Sequence[str] = ()) -> nn.Module:
        """The model itself, all of it trained."""
        model.requires_grad_(True)
        return full_precision(model) if self.full_precision else model

    def state_size(self, shape: Sequence[int]) -> int:
        """Of a projected matrix two moments of its projection, and the projector; two moments of anything else."""
        if len(shape) != 2:
            return 2 * math.prod(shape)
        rank = min(self.rank, *shape)
        return rank * (2 * max(shape) + min(shape))

    def state_numbers(self, model: nn.Module, targets: Sequence[str], *, trained: Sequence[str] = ()) -> int:
        """Projected for the targets' matrices, and all of it for the other parameters."""
        matrices = set(self._matrices(model, targets))
        return sum(self.state_size(p.shape) if p in matrices else 2 * p.numel() for p in model.parameters())

    def _matrices(self, model: nn.Module, targets: Sequence[str]) -> list[nn.Parameter]:
        layers = called(model, self.projected or tuple(targets))
        weights = (cast(nn.Parameter, layer.weight) for _, layer in layers if hasattr(layer, "weight"))
        return [weight for weight in weights if weight.ndim == 2]


@dataclass(frozen=True)
class BAdam(Plain):
    """AdamW on one block of the model at a time, in turn from the last to the first (arXiv 2404.02827).

    A block is one of the model's repeated layers, or each layer of a network without such. Embeddings and head of a
    transformers model stay frozen, as its authors leave them; `trained` modules learn with every block. The active block is
    stepped on a float32 copy. The package leaves a block one step early the first time.

    Attributes:
        label: the name in tables and figures.
        lr: peak learning rate.
        switch_every: steps of a block.
        schedule: over the whole run.
    """

    label: str
    lr: float
    switch_every: int = 50
    schedule: Schedule = field(default_factory=Linear)

    needs: ClassVar[dict[str, str]] = {"badam": "badam"}

    def prepare(self, model: nn.Module, targets: Sequence[str], *, steps: int, seed: int, trained: Sequence[str] = ()) -> Setup:
        """Nothing is drawn: the seed orders the data alone."""
        require(self)
        from badam import BlockOptimizer

        class Quiet(BlockOptimizer):
            def switch_trainable_params(self, verbose: int | None = None) -> None:
                super().switch_trainable_params(0)  # it prints every switch whatever it was told

        self.inject(model, targets, trained=trained)
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        names = {parameter: f"<{name}>" for name, parameter in model.named_parameters()}
        always = unfreeze(model, trained)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="BAdam expect model to be loaded in fp16")
            optimizer = Quiet(
                torch.optim.AdamW(parameters, lr=self.lr, weight_decay=0.0),
                # It looks for the names of a block inside the parameters' names: in brackets none is part of another.
                [(name, parameter) for parameter, name in names.items()],
                block_prefix_list=cast(Any, [[names[parameter] for parameter in block] for block in blocks(model, trained)]),
                switch_block_every=self.switch_every,
                active_modules=[names[parameter] for parameter in always],
                verbose=0,
            )
        return Setup(model, optimizer, parameters, scheduler(optimizer, self.schedule, steps))

    def inject(self, model: nn.Module, targets: Sequence[str], *, trained: Sequence[str] = ()) -> nn.Module:
        """The model itself, its blocks trained; `targets` has no say."""
        model.requires_grad_(False)
        for block in blocks(model, trained):
            for parameter in block:
                parameter.requires_grad_(True)
        unfreeze(model, trained)
        return model

    def state_size(self, shape: Sequence[int]) -> int:
        """Of a parameter of the active block: two moments and the float32 copy that is stepped."""
        return 3 * math.prod(shape)

    def state_numbers(self, model: nn.Module, targets: Sequence[str], *, trained: Sequence[str] = ()) -> int:
        """Of the largest block, and of what is trained with every block."""
        sizes = [sum(self.state_size(parameter.shape) for parameter in block) for block in blocks(model, trained)]
        return max(sizes) + sum(self.state_size(parameter.shape) for parameter in unfreeze(model, trained))


def blocks(model: nn.Module, trained: Sequence[str]) -> list[list[nn.Parameter]]:
    """The parts of a model that BAdam trains in turn.

    Args:
        model: a base model.
        trained: modules that belong to no block.

    Returns:
        Parameters of each block.
    """
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList) and len(module) > 1]
    apart = {parameter for _, module in called(model, trained) for parameter in module.parameters()}
    if lists:
        parts = [list(layer.parameters()) for layer in max(lists, key=len)]
    else:
        parts = [list(module.parameters(recurse=False)) for module in model.modules()]
    kept = [[parameter for parameter in part if parameter not in apart] for part in parts]
    return [part for part in kept if part]
