"""Chains of LoRA, and the control that keeps Adam's moments over a knot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from experiments.methods.inner import numbers
from experiments.methods.lora import LoRA
from experiments.methods.method import Plain
from experiments.schedules import Linear, Schedule, scheduler
from experiments.train import Setup
from fwlora import Add, ChainLoRAOptimizer, Decay, Flat, Kaiming, Never, ResetRule
from fwlora.rules import AllSites, BlockRule, KnotSchedule, LinkLR, MergeRule, RankSchedule
from fwlora.rules.knots import CountedKnots


@dataclass(frozen=True)
class ChainOfLoRA(Plain):
    """A chain of LoRA, under any rules.

    Attributes:
        label: the name in tables and figures.
        lr: peak learning rate.
        rank: of every link, or a rank schedule.
        knots: when to tie.
        link_lr: the factor on the learning rate within a link.
        schedule: over the whole run; None leaves the rate to `link_lr`, as `Decay` wants it.
        reset: where a link starts from.
        freeze_A: train B only, with A as the reset left it.
        alpha: the factors' product is scaled by alpha / rank; None for twice the first rank.
        merge: how a retired link is folded in.
        lora_bias: train a bias with each B.
        inner: the class of the inner optimizer; `experiments.methods.inner` says what rates it needs.
        inner_options: its options, as pairs.
        blocks: which sites learn in a link.
        fast_layers: False leaves PEFT's forward in its place.
    """

    label: str
    lr: float
    rank: int | RankSchedule
    knots: KnotSchedule
    link_lr: LinkLR = field(default_factory=Flat)
    schedule: Schedule | None = field(default_factory=Linear)
    reset: ResetRule = field(default_factory=Kaiming)
    freeze_A: bool = False
    alpha: float | None = None
    merge: MergeRule = field(default_factory=Add)
    lora_bias: bool = False
    inner: type[torch.optim.Optimizer] = torch.optim.AdamW
    inner_options: tuple[tuple[str, Any], ...] = ()
    blocks: BlockRule = field(default_factory=AllSites)
    fast_layers: bool = True

    def prepare(self, model: nn.Module, targets: Sequence[str], *, steps: int, seed: int, trained: Sequence[str] = ()) -> Setup:
        """The chain's optimizer injects the factors itself."""
        optimizer = ChainLoRAOptimizer(
            model,
            lr=self.lr,
            rank=self.rank,
            alpha=self.alpha,
            target_modules=list(targets),
            knots=self.knots,
            link_lr=self.link_lr,
            reset=self.reset,
            merge=self.merge,
            freeze_A=self.freeze_A,
            lora_bias=self.lora_bias,
            train_modules=trained,
            inner=self.inner,
            blocks=self.blocks,
            fast_layers=self.fast_layers,
            seed=seed,
            **dict(self.inner_options),
        )
        optimizer.total_steps = steps
        schedule = None if self.schedule is None else scheduler(optimizer, self.schedule, steps)
        return Setup(model, optimizer, optimizer.parameters(), schedule)

    def inject(self, model: nn.Module, targets: Sequence[str], *, trained: Sequence[str] = ()) -> nn.Module:
        """The first link's LoRA layers."""
        rank = self.rank if isinstance(self.rank, int) else self.rank.rank(0)
        link = LoRA(self.label, self.lr, rank, alpha=self.alpha, lora_bias=self.lora_bias)
        link.inject(model, targets, trained=trained)
        for name, parameter in model.named_parameters():
            # An embedding's A is the factor that starts at zero.
            if self.freeze_A and (".lora_A." in name or ".lora_embedding_B." in name):
                parameter.requires_grad_(False)
        return model

    def state_size(self, shape: Sequence[int]) -> int:
        """The inner optimizer's."""
        return numbers(self.inner, self.inner_options, shape)

    def planned_knots(self, steps: int) -> list[int]:
        """The schedule's, where it counts steps."""
        if not isinstance(self.knots, CountedKnots):
            return []
        planned, step = [], self.knots.next_knot(0, steps)
        while step is not None and step <= steps:
            planned.append(step)
            step = self.knots.next_knot(step, steps)
        return planned


@dataclass(frozen=True)
class ChainKeepingAdam(Plain):
    """A control: a chain whose knots do not forget Adam's moments and step count.

    Knots are tied by hand at the steps of `Evenly(links)`, and the factors' optimizer state is put back after each.
    """

    label: str
    lr: float
    rank: int
    links: int
    schedule: Schedule = field(default_factory=Linear)

    def prepare(self, model: nn.Module, targets: Sequence[str], *, steps: int, seed: int, trained: Sequence[str] = ()) -> Setup:
        """A chain that never ties on its own, and a hook that does."""
        setup = self._chain().prepare(model, targets, steps=steps, seed=seed, trained=trained)
        optimizer = setup.optimizer
        assert isinstance(optimizer, ChainLoRAOptimizer)
        due = set(self.planned_knots(steps))

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

    def inject(self, model: nn.Module, targets: Sequence[str], *, trained: Sequence[str] = ()) -> nn.Module:
        """The chain's first link."""
        return self._chain().inject(model, targets, trained=trained)

    def planned_knots(self, steps: int) -> list[int]:
        """Those of `Evenly(links)`."""
        return [-(-k * steps // self.links) for k in range(1, self.links)]

    def _chain(self) -> ChainOfLoRA:
        return ChainOfLoRA(self.label, self.lr, self.rank, Never(), schedule=self.schedule)


def chain_with_decay(label: str, lr: float, rank: int, knots: KnotSchedule, warmup: int) -> ChainOfLoRA:
    """A chain whose rate decays within each link, and that has no schedule beside it."""
    return ChainOfLoRA(label, lr, rank, knots, link_lr=Decay(warmup=warmup), schedule=None)


def _clone(value: object) -> object:
    return value.clone() if isinstance(value, Tensor) else value
