"""Fixtures of all tests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fwlora import ChainLoRAOptimizer, Every, Flat
from tests.tables import CASES, QUANTISED, Case, loss_of


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def make_chain(case: Case, model: nn.Module, **options: Any) -> ChainLoRAOptimizer:
    """A small chain on a case's model; options override."""
    defaults = {"lr": 0.02, "rank": 2, "knots": Every(3), "link_lr": Flat(warmup=0), "target_modules": case.targets}
    return ChainLoRAOptimizer(model, **{**defaults, **case.options, **options})


def train(optimizer: ChainLoRAOptimizer, model: nn.Module, batch: dict[str, Tensor], steps: int) -> list[float]:
    """Steps of a plain loop, and their losses; batches differ from step to step and depend on the count alone."""
    losses = []
    for _ in range(steps):
        shift = optimizer.progress.step
        batch_now = {k: v * (1 + 0.1 * shift) if v.is_floating_point() else v.roll(shift, 1) for k, v in batch.items()}
        optimizer.zero_grad()
        loss = loss_of(model, batch_now)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def step(model: nn.Module, optimizer: ChainLoRAOptimizer, batch: dict[str, Tensor]) -> None:
    """One step of a plain loop, always on the same batch."""
    optimizer.zero_grad()
    loss_of(model, batch).backward()
    optimizer.step()


def assert_same(model: nn.Module, optimizer: ChainLoRAOptimizer, other_model: nn.Module, other: ChainLoRAOptimizer) -> None:
    """Ledger, counters, every parameter and every total update, bit for bit."""
    assert optimizer.ledger == other.ledger.replayed(None)
    assert optimizer.progress == other.progress
    for (name, mine), theirs in zip(model.named_parameters(), other_model.parameters(), strict=True):
        assert torch.equal(mine, theirs), name
    for name in optimizer.sites:
        assert torch.equal(optimizer.delta(name), other.delta(name))


@pytest.fixture
def chained() -> Callable[..., tuple[nn.Module, ChainLoRAOptimizer, dict[str, Tensor]]]:
    """`chained(kind, steps=..., dtype=..., **options)`: a model of that kind after some steps, its chain and a batch."""

    def build(
        kind: str = "linear", steps: int = 0, dtype: torch.dtype = torch.float32, **options: Any
    ) -> tuple[nn.Module, ChainLoRAOptimizer, dict[str, Tensor]]:
        case = (CASES | QUANTISED)[kind]
        model = case.model(dtype)
        optimizer = make_chain(case, model, **options)
        batch = case.batch()
        train(optimizer, model, batch, steps)
        return model, optimizer, batch

    return build
