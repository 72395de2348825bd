"""Ways to adapt a model: each turns a model into a model and an optimizer.

They share the loop, the data order and the number of steps; what differs is what is trained and when knots are tied.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol, cast

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn

from experiments.schedules import Linear, Schedule, scheduler
from experiments.train import Setup
from fwlora import ChainLoRAOptimizer, Decay, Flat, Kaiming, Never, ResetRule
from fwlora.rules.knots import KnotSchedule
from fwlora.rules.link_lr import LinkLR


class Method(Protocol):
    """A way to adapt a model."""

    @property
    def label(self) -> str:
        """The name in tables and figures."""
        ...

    def prepare(self, model: nn.Module, targets: Sequence[str], *, steps: int, seed: int) -> Setup:
        """Makes `model` trainable, in place.

        Args:
            model: a base model that nothing has touched.
            targets: the layers to adapt, by name.
            steps: optimizer steps of the whole run.
            seed: of the factors' draws.

        Returns:
            The model with its optimizer.
        """
        ...


@dataclass(frozen=True)
class FullFineTuning:
    """Every parameter of the model, by AdamW."""

    label: str
    lr: float
    schedule: Schedule = field(default_factory=Linear)

    def prepare(self, model: nn.Module, targets: Sequence[str], *, steps: int, seed: int) -> Setup:
        """AdamW over all parameters; neither `targets` nor `seed` has a say."""
        parameters = list(model.parameters())
        optimizer = torch.optim.AdamW(parameters, lr=self.lr, weight_decay=0.0)
        return Setup(model, optimizer, parameters, scheduler(optimizer, self.schedule, steps))


@dataclass(frozen=True)
class LoRA:
    """PEFT's LoRA under torch's AdamW: the baseline, with nothing of fwlora in it."""

    label: str
    lr: float
    rank: int
    schedule: Schedule = field(default_factory=Linear)

    def prepare(self, model: nn.Module, targets: Sequence[str], *, steps: int, seed: int) -> Setup:
        """PEFT draws A from torch's global generator, which is seeded for it and put back."""
        config = LoraConfig(r=self.rank, lora_alpha=2 * self.rank, target_modules=list(targets))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            inject_adapter_in_model(config, model)
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(parameters, lr=self.lr, weight_decay=0.0)
        return Setup(model, optimizer, parameters, scheduler(optimizer, self.schedule, steps))


@dataclass(frozen=True)
class ChainOfLoRA:
    """A chain of LoRA, under any rules.

    Attributes:
        label: the name in tables and figures.
        lr: peak learning rate.
        rank: of every link.
        knots: when to tie.
        link_lr: the factor on the learning rate within a link.
        schedule: over the whole run; None leaves the rate to `link_lr`, as `Decay` wants it.
        reset: where a link starts from.
        freeze_A: train B only, with A as the reset left it.
    """

    label: str
    lr: float
    rank: int
    knots: KnotSchedule
    link_lr: LinkLR = field(default_factory=Flat)
    schedule: Schedule | None = field(default_factory=Linear)
    reset: ResetRule = field(default_factory=Kaiming)
    freeze_A: bool = False

    def prepare(self, model: nn.Module, targets: Sequence[str], *, steps: int, seed: int) -> Setup:
        """The chain's optimizer injects the factors itself."""
        optimizer = ChainLoRAOptimizer(
            model,
            lr=self.lr,
            rank=self.rank,
            target_modules=list(targets),
            knots=self.knots,
            link_lr=self.link_lr,
            reset=self.reset,
            freeze_A=self.freeze_A,
            seed=seed,
        )
        optimizer.total_steps = steps
        schedule = None if self.schedule is None else scheduler(optimizer, self.schedule, steps)
        return Setup(model, optimizer, optimizer.parameters(), schedule)


@dataclass(frozen=True)
class ChainKeepingAdam:
    """A control: a chain whose knots do not forget Adam's moments and step count.

    Knots are tied by hand at the steps of `Evenly(links)`, and the factors' optimizer state is put back after each.
    """

    label: str
    lr: float
    rank: int
    links: int
    schedule: Schedule = field(default_factory=Linear)

    def prepare(self, model: nn.Module, targets: Sequence[str], *, steps: int, seed: int) -> Setup:
        """A chain that never ties on its own, and a hook that does."""
        chain = ChainOfLoRA(self.label, self.lr, self.rank, Never(), schedule=self.schedule)
        setup = chain.prepare(model, targets, steps=steps, seed=seed)
        optimizer = setup.optimizer
        assert isinstance(optimizer, ChainLoRAOptimizer)
        due = {-(-k * steps // self.links) for k in range(1, self.links)}

        def tie_and_remember(step: int) -> None:
            if step not in due:
                return
            kept = {
                parameter: {name: _clone(value) for name, value in optimizer.state[parameter].items()}
                for parameter in setup.parameters
            }
            optimizer.tie_knot()
            for parameter, state in kept.items():
                optimizer.state[parameter].update(state)

        setup.after_step = tie_and_remember
        return setup


def chain_with_decay(label: str, lr: float, rank: int, knots: KnotSchedule, warmup: int) -> ChainOfLoRA:
    """A chain whose rate decays within each link, and that has no schedule beside it."""
    return ChainOfLoRA(label, lr, rank, knots, link_lr=Decay(warmup=warmup), schedule=None)


def effective_weights(model: nn.Module) -> dict[str, Tensor]:
    """The weight that each linear layer acts with, adapted or not: base plus live factors, in float64.

    Names are those of the base model, so that the total update of any method is a difference of two such tables.
    """
    weights = {}
    for name, module in model.named_modules():
        if isinstance(module, LoraLinear):
            weight = cast(nn.Linear, module.get_base_layer()).weight.detach().double()
            for adapter in module.active_adapters:
                weight = weight + module.get_delta_weight(adapter).detach().double()
            weights[name] = weight
        elif isinstance(module, nn.Linear) and not _inside_lora(name):
            weights[name] = module.weight.detach().double().clone()
    return weights


def _inside_lora(name: str) -> bool:
    return any(part in {"base_layer", "lora_A", "lora_B"} for part in name.split("."))


def _clone(value: object) -> object:
    return value.clone() if isinstance(value, Tensor) else value
