"""Schedulers of torch and of transformers drive the inner optimizer, and `link_lr` never shows outside a step."""

from __future__ import annotations

import copy
import inspect
import operator
import pickle
from functools import partial

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler, swa_utils
from transformers import SchedulerType, get_scheduler

from fwlora import ChainLoRAOptimizer, Every, Flat

LR, LR_RATIO, WARMUP, STEPS = 0.01, 4.0, 2, 11

SCHEDULERS = {
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, partial(operator.pow, 0.9)),
    "MultiplicativeLR": lambda o: lr_scheduler.MultiplicativeLR(o, partial(operator.truediv, 0.95)),
    "StepLR": lambda o: lr_scheduler.StepLR(o, 2, 0.5),
    "MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, [3, 4, 8], 0.5),
    "ConstantLR": lambda o: lr_scheduler.ConstantLR(o, 0.5, 4),
    "LinearLR": lambda o: lr_scheduler.LinearLR(o, 0.1, total_iters=7),
    "ExponentialLR": lambda o: lr_scheduler.ExponentialLR(o, 0.9),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, STEPS),
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 4),
    "PolynomialLR": lambda o: lr_scheduler.PolynomialLR(o, STEPS, 2.0),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, 1e-3, 1e-2, step_size_up=3),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, 1e-2, total_steps=STEPS + 1),
    "ReduceLROnPlateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, factor=0.5, patience=1),
    "SequentialLR": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.LinearLR(o, 0.1, total_iters=4), lr_scheduler.ExponentialLR(o, 0.8)], [4]
    ),
    "ChainedScheduler": lambda o: lr_scheduler.ChainedScheduler([
        lr_scheduler.ConstantLR(o, 0.1, 5),
        lr_scheduler.ExponentialLR(o, 0.9),
    ]),
    "SWALR": lambda o: swa_utils.SWALR(o, 1e-3, anneal_epochs=5),
}
# What transformers' own need beyond warm-up and length; every one that there is has its row below.
_MORE = {
    SchedulerType.REDUCE_ON_PLATEAU: {"factor": 0.5, "patience": 1},
    SchedulerType.GREEDY: {"patience": 1},
    SchedulerType.COSINE_WITH_MIN_LR: {"min_lr_rate": 0.1},
    SchedulerType.COSINE_WARMUP_WITH_MIN_LR: {"min_lr_rate": 0.1},
    SchedulerType.WARMUP_STABLE_DECAY: {"num_decay_steps": 4},
}


def _of_transformers(kind: SchedulerType, optimizer):
    return get_scheduler(kind, optimizer, 2, STEPS, _MORE.get(kind))


SCHEDULERS |= {f"transformers {kind.value}": partial(_of_transformers, kind) for kind in SchedulerType}


def _advance(scheduler, step: int) -> None:
    # A metric that never improves makes those that read one reduce.
    if "metrics" in inspect.signature(scheduler.step).parameters:
        scheduler.step(1.0)
    else:
        scheduler.step()


def _rates(optimizer) -> list[tuple]:
    return [(group["lr"], *group["betas"]) for group in optimizer.param_groups]


def _rates_alone(make) -> list[list[tuple]]:
    """What the scheduler gives an AdamW that has the same groups and no chain."""
    groups = [{"params": [nn.Parameter(torch.ones(1))], "lr": rate} for rate in (LR, LR * LR_RATIO)]
    adamw = torch.optim.AdamW(groups, lr=LR)
    scheduler = make(adamw)
    seen = [_rates(adamw)]
    for step in range(STEPS):
        adamw.step()
        _advance(scheduler, step)
        seen.append(_rates(adamw))
    return seen


def _begin(make):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    optimizer = ChainLoRAOptimizer(model, LR, rank=2, lr_ratio=LR_RATIO, knots=Every(3), link_lr=Flat(warmup=WARMUP))
    return model, optimizer, make(optimizer)


def _by_load(make, model, optimizer, scheduler):
    fresh = _begin(make)
    fresh[1].load_state_dict(optimizer.state_dict())
    fresh[2].load_state_dict(scheduler.state_dict())
    return fresh


CONTINUATIONS = {
    "uninterrupted": lambda make, *run: run,
    "state_load": _by_load,
    "own_state_load": lambda make, model, optimizer, scheduler: (
        optimizer.load_state_dict(optimizer.state_dict()),
        (model, optimizer, scheduler),
    )[1],
    "deepcopy": lambda make, *run: copy.deepcopy(run),
    "pickle": lambda make, *run: pickle.loads(pickle.dumps(run)),
}


def _factor(step: int) -> float:
    """`Flat(warmup)` at a step, counted from 0: 1 in the first link, then (j + 1) / warmup."""
    knot, j = divmod(step, 3)
    return 1.0 if knot == 0 else min(1.0, (j + 1) / WARMUP)


def test_every_scheduler_of_torch_is_tried():
    """{schedulers of torch.optim.lr_scheduler} + SWALR = those tried here; transformers' are found by walking."""
    classes = {
        name
        for name, found in vars(lr_scheduler).items()
        if inspect.isclass(found)
        and issubclass(found, lr_scheduler.LRScheduler)
        and found is not lr_scheduler.LRScheduler
        and not name.startswith("_")
    }
    assert classes | {"SWALR"} == {name for name in SCHEDULERS if not name.startswith("transformers ")}


@pytest.mark.parametrize("pause", [4, 6], ids=["pause in a link", "pause at a knot"])
@pytest.mark.parametrize("continuation", CONTINUATIONS)
@pytest.mark.parametrize("name", SCHEDULERS)
# A scheduler marks `optimizer.step` and looks for its mark at its first step; a copied optimizer has lost it (torch's own
# optimizers too: their `__getstate__` drops the patched method).
@pytest.mark.filterwarnings("ignore:Seems like `optimizer.step\\(\\)` has been overridden:UserWarning")
def test_scheduler_reaches_the_inner_optimizer_unharmed(name, continuation, pause):
    """lr_k outside = the scheduler's own; inside the inner step = lr_k * factor_k."""
    make = SCHEDULERS[name]
    expected = _rates_alone(make)
    run, seen = _begin(make), []
    for step in range(STEPS):
        if step == pause:
            run = CONTINUATIONS[continuation](make, *run)
        model, optimizer, scheduler = run
        assert _rates(optimizer) == expected[step]
        hook = optimizer.inner.register_step_pre_hook(lambda inner, *_: seen.append([g["lr"] for g in inner.param_groups]))
        model(torch.ones(2, 6)).square().mean().backward()
        optimizer.step()
        hook.remove()
        assert _rates(optimizer) == expected[step]
        _advance(scheduler, step)
        optimizer.zero_grad()
    assert _rates(run[1]) == expected[STEPS]
    assert seen == [[rate[0] * _factor(step) for rate in expected[step]] for step in range(STEPS)]
    assert len(run[1].chain) == STEPS // 3


@pytest.mark.parametrize("how", ["deepcopy", "pickle", "state_load"])
@pytest.mark.filterwarnings("ignore:Seems like `optimizer.step\\(\\)` has been overridden:UserWarning")  # as above
def test_scheduler_of_a_copy_leaves_the_original_alone(how):
    """Stepping the copy's scheduler changes the copy's lr only."""
    make = SCHEDULERS["ExponentialLR"]
    run = _begin(make)
    model, copied, scheduler = CONTINUATIONS[how](make, *run)
    assert scheduler.optimizer is copied
    assert copied is not run[1]
    before = _rates(run[1])
    copied.step(lambda: model(torch.ones(2, 6)).square().mean().backward())
    scheduler.step()
    assert _rates(run[1]) == before
    assert _rates(copied) != before


@pytest.mark.parametrize("name", ["CyclicLR", "OneCycleLR"])
def test_scheduler_cycles_the_momentum_of_an_inner_sgd(name):
    """momentum_k = the scheduler's own: it reads the inner optimizer's defaults and writes its groups."""
    make = SCHEDULERS[name]
    sgd = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=LR, momentum=0.9)
    alone = make(sgd)
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    optimizer = ChainLoRAOptimizer(model, LR, rank=2, knots=Every(3), inner=torch.optim.SGD, momentum=0.9)
    scheduler = make(optimizer)
    seen = set()
    for _ in range(STEPS):
        expected = (sgd.param_groups[0]["lr"], sgd.param_groups[0]["momentum"])
        assert {(group["lr"], group["momentum"]) for group in optimizer.inner.param_groups} == {expected}
        seen.add(expected[1])
        optimizer.step(lambda: model(torch.ones(2, 6)).square().mean().backward())
        sgd.step()
        scheduler.step()
        alone.step()
    assert len(seen) > 2


@pytest.mark.parametrize("name", ["ExponentialLR", "LinearLR", "OneCycleLR"])
def test_tensor_learning_rate_keeps_its_tensor(name):
    """A scheduler writes a tensor lr in place; the same tensor is there after every step, with the scheduler's value."""
    make = SCHEDULERS[name]
    parameter = nn.Parameter(torch.ones(1))
    adamw = torch.optim.AdamW([parameter], lr=torch.tensor(LR))
    alone = make(adamw)
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    optimizer = ChainLoRAOptimizer(model, torch.tensor(LR), rank=2, knots=Every(3), link_lr=Flat(warmup=WARMUP))
    scheduler = make(optimizer)
    tensors = [group["lr"] for group in optimizer.param_groups]
    assert all(isinstance(lr, torch.Tensor) for lr in tensors)
    for _ in range(STEPS):
        optimizer.step(lambda: model(torch.ones(2, 6)).square().mean().backward())
        adamw.step()
        scheduler.step()
        alone.step()
        assert all(group["lr"] is lr for group, lr in zip(optimizer.param_groups, tensors, strict=True))
        assert {float(lr) for lr in tensors} == {float(adamw.param_groups[0]["lr"])}


def test_link_factor_is_put_back_where_the_inner_step_raises():
    """The lr after a failed step = the lr before."""
    model, optimizer, _ = _begin(SCHEDULERS["StepLR"])
    optimizer.tie_knot()
    before = _rates(optimizer)
    assert optimizer.link_factor == 0.5

    def fail(*_):
        raise RuntimeError("inner step fails")

    optimizer.inner.register_step_pre_hook(fail)
    model(torch.ones(2, 6)).square().mean().backward()
    with pytest.raises(RuntimeError, match="inner step fails"):
        optimizer.step()
    assert _rates(optimizer) == before
    assert optimizer.progress.step == 0
