"""Optimizers around optimizers that lost hold of their rates, their parameters or their scaler.

Each test puts one and the same check to a chain and to what the peer does; the peer must fail it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from peft import LoraConfig
from peft.functional import inject_adapter_in_model
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from fwlora import ChainLoRAOptimizer, Every, KnotSchedule, Never
from fwlora.errors import DisconnectedParametersError
from tests.conftest import make_chain
from tests.tables import CASES, loss_of, output

CASE = CASES["linear"]


class AttributesOfTheBase(torch.optim.Optimizer):
    """A wrapper that takes over the base's groups and state once, as attributes."""

    def __init__(self, base: torch.optim.Optimizer) -> None:
        self.base = base
        self.defaults, self.param_groups, self.state = base.defaults, base.param_groups, base.state
        self._optimizer_step_pre_hooks, self._optimizer_step_post_hooks = {}, {}  # type: ignore[assignment]

    def step(self, closure=None):
        return self.base.step(closure)

    def state_dict(self):
        return self.base.state_dict()

    def load_state_dict(self, state_dict):
        self.base.load_state_dict(state_dict)


def rate_after_a_schedule(optimizer: torch.optim.Optimizer, parameter: nn.Parameter) -> float:
    """How far a step of SGD goes under a gradient of ones once a scheduler has said 0.1, after a load as by `prepare`."""
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    scheduler = LambdaLR(optimizer, lambda epoch: 0.1 if epoch else 1.0)
    for _ in range(2):
        before = parameter.detach().clone()
        parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        scheduler.step()
    return (before - parameter.detach()).mean().item()


def test_17_scheduler_drives_the_inner_optimizer_after_a_load(chained):
    """NVIDIA/apex#766, BAdam: `load_state_dict` replaces the base's groups, and the scheduler goes on with the old ones."""
    _, optimizer, _ = chained(inner=torch.optim.SGD, lr=1.0, knots=Never())
    assert rate_after_a_schedule(optimizer, optimizer.sites["layers.0"].B) == pytest.approx(0.1)

    parameter = nn.Parameter(torch.zeros(3))
    peer = AttributesOfTheBase(torch.optim.SGD([parameter], 1.0))
    assert rate_after_a_schedule(peer, parameter) == pytest.approx(1.0), "ten times what the schedule says, and no error"


def trains_or_says_why(model: nn.Module, steps: Callable[[], object]) -> bool:
    """Whether steps change what the model computes, or raise the error that is made for it."""
    before = output(model, CASE.batch()).detach()
    try:
        steps()
    except DisconnectedParametersError:
        return True
    return not torch.equal(output(model, CASE.batch()), before)


def loop(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 2) -> None:
    for _ in range(steps):
        loss_of(model, CASE.batch()).backward()
        optimizer.step()
        optimizer.zero_grad()


def renewed(model: nn.Module) -> None:
    """What PEFT's `update_layer`, `cast_adapter_dtype` and `orthogonal_init` do: new Parameters in the old places."""
    for module in list(model.modules()):
        for name, parameter in list(module.named_parameters(recurse=False)):
            if parameter.requires_grad:
                setattr(module, name, nn.Parameter(parameter.detach().clone()))


def test_18_orphaned_parameters_are_told_of():
    """X-GenGroup/Flow-Factory#56, gke-labs/open-rl#80, radixark/miles#2572: the optimizer steps what the model has let go."""
    model = CASE.model()
    optimizer = make_chain(CASE, model)
    assert trains_or_says_why(model, lambda: loop(model, optimizer))
    model = CASE.model()
    optimizer = make_chain(CASE, model)
    renewed(model)
    assert trains_or_says_why(model, lambda: loop(model, optimizer))

    peer = inject_adapter_in_model(LoraConfig(r=2, target_modules=["layers.0"]), CASE.model())
    adamw = torch.optim.AdamW([p for p in peer.parameters() if p.requires_grad], 0.02)
    renewed(peer)
    assert not trains_or_says_why(peer, lambda: loop(peer, adamw)), "a flat loss, and no error"


def scaled_loop(
    model: nn.Module, optimizer: torch.optim.Optimizer, steps: int, callback: Callable[[int], object] | None = None
) -> None:
    """A loop under a GradScaler, whose third step has an inf gradient; the callback is told how many were called."""
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    for k in range(steps):
        scaler.scale(loss_of(model, CASE.batch())).backward()
        if k == 2:
            next(p for group in optimizer.param_groups for p in group["params"] if p.grad is not None).grad.mul_(torch.inf)
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        if callback is not None:
            callback(k + 1)


def test_19_scaler_finds_its_gradients_after_a_knot():
    """Guitaricet/relora#10: "No inf checks were recorded for this optimizer", once the factors had been made anew."""
    model = CASE.model()
    optimizer = make_chain(CASE, model, knots=Every(2))
    scaled_loop(model, optimizer, 7)
    assert (optimizer.progress.step, len(optimizer.chain)) == (6, 3), "the step with inf was not counted"

    peer = inject_adapter_in_model(LoraConfig(r=2, target_modules=["layers.0"]), CASE.model())
    adamw = torch.optim.AdamW([p for p in peer.parameters() if p.requires_grad], 0.02)
    with pytest.raises(AssertionError, match="No inf checks were recorded"):
        scaled_loop(peer, adamw, 7, lambda call: renewed(peer))


def test_19_skipped_steps_count_for_no_knot():
    """Guitaricet/relora and axolotl-ai-cloud/axolotl count the loop's calls: a link loses a step for each one skipped."""

    def lengths(knots: KnotSchedule, callback: Callable[[ChainLoRAOptimizer, int], object] = lambda *_: None) -> list[int]:
        model = CASE.model()
        optimizer = make_chain(CASE, model, knots=knots)
        scaled_loop(model, optimizer, 9, lambda call: callback(optimizer, call))
        return [record.link_steps for record in optimizer.ledger]

    assert lengths(Every(4)) == [4, 4]
    assert lengths(Never(), lambda peer, call: call % 4 == 0 and peer.tie_knot()) == [3, 4]
