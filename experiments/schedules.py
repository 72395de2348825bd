"""The user's own learning-rate schedule over a whole run, one small class each."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch.optim.lr_scheduler import LambdaLR


class Schedule(Protocol):
    """A factor on the learning rate as a function of the step."""

    def factor(self, step: int, steps: int) -> float:
        """The factor on step `step` + 1 of `steps`."""
        ...


@dataclass(frozen=True)
class Steady:
    """A constant rate after a linear warm-up.

    Args:
        warmup: steps of the warm-up; 0 for none.

    Example:
        >>> [Steady(warmup=2).factor(step, 4) for step in range(4)]
        [0.5, 1.0, 1.0, 1.0]
    """

    warmup: int = 0

    def factor(self, step: int, steps: int) -> float:
        """``min(1, (t + 1) / warmup)``."""
        return min(1.0, (step + 1) / self.warmup) if self.warmup else 1.0


@dataclass(frozen=True)
class Linear:
    """A linear decay to zero after a linear warm-up.

    Args:
        warmup: steps of the warm-up; 0 for none.

    Example:
        >>> [Linear().factor(step, 4) for step in range(4)]
        [1.0, 0.75, 0.5, 0.25]
    """

    warmup: int = 0

    def factor(self, step: int, steps: int) -> float:
        """``(T - t) / (T - warmup)`` once warm."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        return max(0.0, (steps - step) / max(1, steps - self.warmup))


@dataclass(frozen=True)
class Cosine:
    """Half a cosine down to zero after a linear warm-up.

    Args:
        warmup: steps of the warm-up; 0 for none.

    Example:
        >>> [round(Cosine().factor(step, 4), 2) for step in range(4)]
        [1.0, 0.85, 0.5, 0.15]
    """

    warmup: int = 0

    def factor(self, step: int, steps: int) -> float:
        """``(1 + cos(pi (t - warmup) / (T - warmup))) / 2`` once warm."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - self.warmup) / max(1, steps - self.warmup))))


def scheduler(optimizer: torch.optim.Optimizer, schedule: Schedule, steps: int) -> LambdaLR:
    """A torch scheduler that follows `schedule` over `steps` steps."""
    return LambdaLR(optimizer, lambda step: schedule.factor(step, steps))
