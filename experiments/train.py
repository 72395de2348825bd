"""The one training loop: every study and every method goes through it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from fwlora import ChainLoRAOptimizer

Batch = Any
"""Whatever a task's loss takes; the loop only passes it on."""


class Task(Protocol):
    """What the loop asks of a task."""

    def batches(self, step: int) -> Sequence[Batch]:
        """The micro-batches of optimizer step `step` (counted from 0).

        A function of the step alone, so that the position in the data is one number and a resumed run reads what the
        uninterrupted one would have read.
        """
        ...

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The mean loss over the batch's targets."""
        ...

    def targets(self, batch: Batch) -> int:
        """How many targets that mean is taken over."""
        ...


class Scheduler(Protocol):
    """The part of a torch scheduler that the loop uses."""

    def step(self) -> None:
        """Sets the next step's learning rate."""
        ...


@dataclass
class Setup:
    """A model made trainable by a method.

    Attributes:
        model: the model to call.
        optimizer: steps the parameters.
        parameters: what is trained, for gradient clipping.
        scheduler: stepped after the optimizer, when there is one.
        after_step: called with the number of steps done, after each of them.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    parameters: Sequence[Tensor]
    scheduler: Scheduler | None = None
    after_step: Callable[[int], None] = field(default=lambda step: None)


@dataclass(frozen=True)
class StepRecord:
    """What one optimizer step leaves.

    Attributes:
        step: its number, from 1.
        loss: before the update.
        gradient_norm: before clipping; None without clipping.
        lr: the first group's learning rate, as the schedule set it.
        link_factor: what a chain multiplied it with; 1 for other optimizers.
    """

    step: int
    loss: float
    gradient_norm: float | None
    lr: float
    link_factor: float


def train(
    setup: Setup,
    task: Task,
    *,
    steps: int,
    start: int = 0,
    max_grad_norm: float | None = None,
    on_step: Callable[[StepRecord], None] = lambda record: None,
) -> list[float]:
    """Runs optimizer steps `start` + 1 to `steps`.

    Args:
        setup: model, optimizer and scheduler.
        task: batches and loss.
        steps: optimizer steps of the whole run.
        start: steps that were done before, when resuming.
        max_grad_norm: clips the gradient's norm over all trained parameters; None for no clipping.
        on_step: called after each step.

    Returns:
        The loss of each step, before its update.
    """
    losses = []
    setup.model.train()
    for step in range(start, steps):
        loss = backward(setup.model, task, task.batches(step))
        norm = None
        if max_grad_norm is not None:
            norm = float(torch.nn.utils.clip_grad_norm_(setup.parameters, max_grad_norm))
        lr, factor = setup.optimizer.param_groups[0]["lr"], getattr(setup.optimizer, "link_factor", 1.0)
        if isinstance(setup.optimizer, ChainLoRAOptimizer):
            setup.optimizer.observe(loss)  # which a knot schedule may read
        setup.optimizer.step()
        setup.optimizer.zero_grad(set_to_none=True)
        if setup.scheduler is not None:
            setup.scheduler.step()
        setup.after_step(step + 1)
        losses.append(loss)
        on_step(StepRecord(step + 1, loss, norm, lr, factor))
    return losses


def backward(model: nn.Module, task: Task, batches: Sequence[Batch]) -> float:
    """Accumulates the gradient of the mean loss over all targets of `batches`.

    Each micro-batch is weighted by its share of the targets, so that the step does not depend on how rows of unequal
    length were split: ``loss = sum_i (n_i / n) loss_i``.

    Args:
        model: the model.
        task: its loss.
        batches: the micro-batches of one optimizer step.

    Returns:
        That mean loss.
    """
    counts = [task.targets(batch) for batch in batches]
    total = max(sum(counts), 1)
    value = 0.0
    for batch, count in zip(batches, counts, strict=True):
        loss = task.loss(model, batch) * (count / total)
        loss.backward()
        value += float(loss.detach())
    return value
