"""The one loop: what a step is does not depend on how it is cut up."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from experiments.schedules import Cosine, Linear, Steady, scheduler
from experiments.tasks.order import Order
from experiments.train import Setup, StepRecord, backward, train


@dataclass
class Rows:
    """Least squares on given micro-batches; remembers which steps were asked for."""

    cuts: list[list[Tensor]]
    asked: list[int] = field(default_factory=list)

    def batches(self, step: int) -> list[Tensor]:
        self.asked.append(step)
        return self.cuts[step % len(self.cuts)]

    def loss(self, model: nn.Module, batch: Tensor) -> Tensor:
        return (model(batch) - 1).square().mean()

    def targets(self, batch: Tensor) -> int:
        return len(batch)


def line() -> nn.Linear:
    torch.manual_seed(1)
    return nn.Linear(3, 1)


@given(st.lists(st.integers(1, 5), min_size=1, max_size=4))
def test_gradient_does_not_depend_on_how_rows_were_split(sizes: list[int]):
    rows = torch.randn(sum(sizes), 3, generator=torch.Generator().manual_seed(0))
    whole, parts = line(), line()
    loss = backward(whole, Rows([]), [rows])
    assert backward(parts, Rows([]), list(rows.split(sizes))) == pytest.approx(loss, rel=1e-5)
    assert torch.allclose(parts.weight.grad, whole.weight.grad, atol=1e-6)


def test_training_goes_on_where_it_stopped():
    batches = [[torch.randn(4, 3, generator=torch.Generator().manual_seed(step))] for step in range(6)]

    def setup(model: nn.Module) -> Setup:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        return Setup(model, optimizer, list(model.parameters()))

    through, halted = line(), line()
    losses = train(setup(through), Rows(batches), steps=6)
    task = Rows(batches)
    first = train(setup(halted), task, steps=4)
    assert first + train(setup(halted), task, steps=6, start=4) == losses
    assert task.asked == list(range(6))
    assert torch.equal(halted.weight, through.weight)


def test_step_record_tells_the_rate_that_the_step_was_taken_with():
    model, seen = line(), []
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    setup = Setup(model, optimizer, list(model.parameters()), scheduler(optimizer, Linear(), 4))
    train(setup, Rows([[torch.zeros(1, 3)]]), steps=4, on_step=seen.append)
    assert [record.lr for record in seen] == [1.0, 0.75, 0.5, 0.25]
    assert [record.step for record in seen] == [1, 2, 3, 4]


def test_clipping_bounds_the_step_and_reports_the_norm_before():
    model, seen = line(), list[StepRecord]()
    before = model.weight.detach().clone()
    setup = Setup(model, torch.optim.SGD(model.parameters(), lr=1.0), list(model.parameters()))
    train(setup, Rows([[100 * torch.ones(1, 3)]]), steps=1, max_grad_norm=0.5, on_step=seen.append)
    assert seen[0].gradient_norm is not None
    assert seen[0].gradient_norm > 100
    assert (model.weight - before).norm() <= 0.5 + 1e-6


@pytest.mark.parametrize("schedule", [Steady(3), Linear(3), Cosine(3)], ids=lambda rule: type(rule).__name__)
def test_schedule_warms_up_and_never_leaves_the_unit_interval(schedule):
    factors = [schedule.factor(step, 10) for step in range(10)]
    assert factors[:3] == pytest.approx([1 / 3, 2 / 3, 1.0])
    assert all(0 < factor <= 1 for factor in factors)
    assert factors[3:] == sorted(factors[3:], reverse=True)


@given(rows=st.integers(1, 20), batch_size=st.integers(1, 7), seed=st.integers(0, 9), epoch=st.integers(0, 3))
def test_every_epoch_visits_every_row_once(rows: int, batch_size: int, seed: int, epoch: int):
    order = Order(rows, batch_size, seed)
    steps = range(epoch * order.steps_per_epoch, (epoch + 1) * order.steps_per_epoch)
    assert sorted(row for step in steps for row in order.rows_of(step)) == list(range(rows))


def test_order_is_a_function_of_the_step_alone():
    order = Order(10, 3, seed=5)
    forwards = [order.rows_of(step) for step in range(12)]
    assert [order.rows_of(step) for step in reversed(range(12))] == forwards[::-1]
    assert forwards[:4] != forwards[4:8]
    assert forwards != [Order(10, 3, seed=6).rows_of(step) for step in range(12)]


def test_incomplete_batches_are_left_out_when_asked():
    order = Order(10, 3, seed=0, drop_last=True)
    assert order.steps_per_epoch == 3
    assert {len(order.rows_of(step)) for step in range(9)} == {3}
