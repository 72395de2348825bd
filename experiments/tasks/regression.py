"""Linear regression on a matrix whose difference from the base has a known rank.

The target is ``W* = W0 + D`` with ``D`` of rank `true_rank`; inputs are white, so the population error of ``W`` relative to
the base's is ``|W - W*|² / |D|²``. With LoRA of rank 2, ``true_rank=2`` is the case in which rank is no bottleneck and knots
can only cost; ``true_rank=16`` is its twin, in which LoRA cannot fall below the Eckart-Young error of rank 2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn import functional

from experiments.methods import effective_weights
from experiments.tasks.metric import RELATIVE_ERROR, Metric

SIDE = 64


class Matrix(nn.Module):
    """One linear map."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.map = nn.Linear(SIDE, SIDE, bias=False)
        with torch.no_grad():
            self.map.weight.copy_(weight)

    def forward(self, x: Tensor) -> Tensor:
        """``W x``."""
        return self.map(x)


@dataclass(frozen=True)
class Regression:
    """Recover a matrix from fresh white inputs and noisy outputs.

    Attributes:
        true_rank: rank of what is to be learned.
        steps: optimizer steps.
        batch_size: fresh inputs a step.
        noise: standard deviation of the outputs' noise, relative to the outputs' own.
    """

    true_rank: int = 2
    steps: int = 600
    batch_size: int = 64
    noise: float = 0.5
    metric: Metric = RELATIVE_ERROR
    targets: tuple[str, ...] = ("map",)
    watched: str = "map"

    @property
    def name(self) -> str:
        """The problem's key in the records."""
        return f"regression-rank-{self.true_rank}"

    def model(self) -> nn.Module:
        """The base matrix, a fresh copy."""
        return Matrix(_problem(self.true_rank)[0])

    def task(self, seed: int) -> RegressionTask:
        """Fresh data drawn from `seed`."""
        return RegressionTask(self, seed)

    def evaluate(self, model: nn.Module) -> float:
        """Population error relative to the base's."""
        base, update = _problem(self.true_rank)
        error = effective_weights(model)["map"] - (base + update).double()
        return float(error.square().sum() / update.double().square().sum())

    def outputs(self, model: nn.Module) -> Tensor:
        """The map's image of the unit vectors."""
        with torch.no_grad():
            return model(torch.eye(SIDE))


@dataclass(frozen=True)
class RegressionTask:
    """Batches of one regression problem and their squared error."""

    problem: Regression
    seed: int

    def batches(self, step: int) -> list[tuple[Tensor, Tensor]]:
        """One fresh batch a step."""
        base, update = _problem(self.problem.true_rank)
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
        x = torch.randn(self.problem.batch_size, SIDE, generator=generator)
        noise = self.problem.noise * torch.randn(self.problem.batch_size, SIDE, generator=generator)
        return [(x, x @ (base + update).T + noise)]

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Mean squared error."""
        return functional.mse_loss(model(batch[0]), batch[1])

    def targets(self, batch: tuple[Tensor, Tensor]) -> int:
        """Number of inputs."""
        return len(batch[0])


@lru_cache(maxsize=4)
def _problem(true_rank: int) -> tuple[Tensor, Tensor]:
    """Base and update, both scaled so that white inputs give outputs of variance 1."""
    generator = torch.Generator().manual_seed(true_rank)
    base = torch.randn(SIDE, SIDE, generator=generator) / math.sqrt(SIDE)
    left = torch.randn(SIDE, true_rank, generator=generator) / math.sqrt(true_rank)
    right = torch.randn(true_rank, SIDE, generator=generator) / math.sqrt(SIDE)
    return base, left @ right
