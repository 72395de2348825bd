"""LoRA and its variants, by PEFT and with nothing of fwlora in them."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

import torch
from peft import LoraConfig
from peft.functional import cast_adapter_dtype, inject_adapter_in_model
from torch import nn

from experiments.errors import UsageError
from experiments.methods.method import Plain, unfreeze
from experiments.schedules import Linear, Schedule, scheduler
from experiments.train import Setup

ADAPTER = "default"


@dataclass(frozen=True)
class LoRA(Plain):
    """PEFT's LoRA under torch's AdamW: the baseline.

    Attributes:
        label: the name in tables and figures.
        lr: peak learning rate.
        rank: of the factors.
        schedule: over the whole run.
        alpha: the factors' product is scaled by alpha / rank; None for twice the rank.
        lora_bias: train a bias with each B.
    """

    label: str
    lr: float
    rank: int
    schedule: Schedule = field(default_factory=Linear)
    alpha: float | None = None
    lora_bias: bool = False

    def prepare(self, model: nn.Module, targets: Sequence[str], *, steps: int, seed: int, trained: Sequence[str] = ()) -> Setup:
        """PEFT draws A from torch's global generator, which is seeded for it and put back."""
        self._inject(model, targets, trained, seed)
        optimizer = self._optimizer(model, trained)
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        return Setup(model, optimizer, parameters, scheduler(optimizer, self.schedule, steps))

    def inject(self, model: nn.Module, targets: Sequence[str], *, trained: Sequence[str] = ()) -> nn.Module:
        """PEFT's layers, in the place of the targets."""
        return self._inject(model, targets, trained, seed=0)

    def _inject(self, model: nn.Module, targets: Sequence[str], trained: Sequence[str], seed: int) -> nn.Module:
        config = LoraConfig(
            r=self.rank,
            lora_alpha=cast(int, 2 * self.rank if self.alpha is None else self.alpha),  # PEFT takes any number
            target_modules=list(targets),
            lora_bias=self.lora_bias,
            **self._options(model),
        )
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            # A layer's orientation PEFT finds out by itself, and nothing is merged here.
            for message in ("fan_in_fan_out is set to", "`lora_bias=True` was passed", "LoRA adapter added to ConvNd"):
                warnings.filterwarnings("ignore", message=message)
            torch.manual_seed(seed)
            inject_adapter_in_model(config, model, adapter_name=ADAPTER)
        self._cast(model)
        unfreeze(model, trained)
        return model

    def _cast(self, model: nn.Module) -> None:
        # As PEFT does by default and a chain has them: small steps are lost on half-precision factors.
        cast_adapter_dtype(model, ADAPTER, True)

    def _options(self, model: nn.Module) -> dict[str, Any]:
        return {}

    def _optimizer(self, model: nn.Module, trained: Sequence[str]) -> torch.optim.Optimizer:
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        return torch.optim.AdamW(parameters, lr=self.lr, weight_decay=0.0)


@dataclass(frozen=True)
class FusedLoRA(LoRA):
    """LoRA under torch's fused AdamW."""

    def _optimizer(self, model: nn.Module, trained: Sequence[str]) -> torch.optim.Optimizer:
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        return torch.optim.AdamW(parameters, lr=self.lr, weight_decay=0.0, fused=True)


@dataclass(frozen=True)
class HalfLoRA(LoRA):
    """LoRA with factors and moments in the base's dtype, as PEFT's `autocast_adapter_dtype=False` leaves them."""

    def _cast(self, model: nn.Module) -> None:
        pass


@dataclass(frozen=True)
class LoRAPlus(LoRA):
    """LoRA whose B learns faster than its A (arXiv 2402.12354), with PEFT's parameter groups.

    Attributes:
        ratio: B's rate over A's; `lr` is A's, and that of modules trained in full.
    """

    ratio: float = 16.0

    def _optimizer(self, model: nn.Module, trained: Sequence[str]) -> torch.optim.Optimizer:
        from peft.optimizers import create_loraplus_optimizer

        # PEFT gives every vector B's rate, and a head's bias is not one of the factors.
        beside = [parameter.requires_grad_(False) for parameter in unfreeze(model, trained)]
        optimizer = create_loraplus_optimizer(
            cast(Any, model), torch.optim.AdamW, lr=self.lr, loraplus_lr_ratio=self.ratio, loraplus_lr_embedding=self.lr
        )
        if beside:
            optimizer.add_param_group({"params": unfreeze(model, trained), "lr": self.lr, "weight_decay": 0.0})
        return optimizer


@dataclass(frozen=True)
class LoRAFA(LoRA):
    """LoRA with A frozen as drawn (arXiv 2308.03303), under PEFT's optimizer, which corrects B's gradient for A."""

    def _inject(self, model: nn.Module, targets: Sequence[str], trained: Sequence[str], seed: int) -> nn.Module:
        if self.lora_bias:
            raise UsageError(f"{self.label}: LoRA-FA's optimizer takes pairs of A and B; leave out lora_bias=True.")
        super()._inject(model, targets, trained, seed)
        for name, parameter in model.named_parameters():
            if "lora_A" in name:
                parameter.requires_grad_(False)
        return model

    def _optimizer(self, model: nn.Module, trained: Sequence[str]) -> torch.optim.Optimizer:
        from peft.optimizers import create_lorafa_optimizer

        # It asks for a PeftModel's names of adapters, and a plain model with injected layers has none.
        dressed = SimpleNamespace(
            active_adapters=[ADAPTER],
            peft_config=cast(Any, model).peft_config,
            named_parameters=model.named_parameters,
            get_submodule=model.get_submodule,
        )
        alpha = cast(int, 2 * self.rank if self.alpha is None else self.alpha)
        return create_lorafa_optimizer(cast(Any, dressed), r=self.rank, lora_alpha=alpha, lr=self.lr)


@dataclass(frozen=True)
class RsLoRA(LoRA):
    """LoRA scaled by alpha over the root of the rank (arXiv 2312.03732)."""

    def _options(self, model: nn.Module) -> dict[str, Any]:
        return {"use_rslora": True}


@dataclass(frozen=True)
class DoRA(LoRA):
    """LoRA on the directions of a weight's rows, and their lengths trained beside (arXiv 2402.09353)."""

    def _options(self, model: nn.Module) -> dict[str, Any]:
        return {"use_dora": True}


@dataclass(frozen=True)
class PiSSA(LoRA):
    """LoRA that starts from a weight's leading singular vectors, which are taken out of the frozen weight (arXiv 2404.02948).

    Base and factors together are the original weight, to rounding. Nothing is drawn: the seed orders the data alone.
    """

    def _options(self, model: nn.Module) -> dict[str, Any]:
        # There are no singular vectors on the meta device; shapes are the same.
        is_meta = any(parameter.is_meta for parameter in model.parameters())
        return {"init_lora_weights": True if is_meta else "pissa"}
