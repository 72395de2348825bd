"""Methods: what each starts from, what it trains, and that nothing but problem, method and seed decides."""

from __future__ import annotations

import pickle

import pytest
import torch
from torch import nn

from experiments.compare import Run, execute
from experiments.methods import (
    BAdam,
    ChainKeepingAdam,
    ChainOfLoRA,
    DoRA,
    FullFineTuning,
    LoRA,
    LoRAPlus,
    PiSSA,
    RsLoRA,
    chain_with_decay,
    effective_weights,
)
from experiments.schedules import Steady
from experiments.tasks.regression import Regression
from experiments.train import train
from experiments.workers import spread
from fwlora import ChainLoRAOptimizer, Evenly, Never
from tests.experiments.small import ALL, INNER_CHAINS, TARGETS, Text, label, llama, logits

METHODS = [
    LoRA("LoRA", 1e-2, 2),
    ChainOfLoRA("chain", 1e-2, 2, Evenly(2)),
    chain_with_decay("decay", 1e-2, 2, Evenly(2), warmup=1),
    ChainKeepingAdam("kept", 1e-2, 2, 2),
    FullFineTuning("full", 1e-2),
]
SMALL = Regression(true_rank=2, steps=8, batch_size=16)
DRAWLESS = {"PiSSA", "full", "GaLore", "BAdam"}
ADAMS = [method for method in ALL if method not in INNER_CHAINS]


@pytest.mark.parametrize("method", METHODS, ids=label)
def test_method_starts_from_the_base_and_moves_it(method):
    model = SMALL.model()
    base = effective_weights(model)["map"]
    setup = method.prepare(model, SMALL.targets, steps=8, seed=0)
    assert torch.equal(effective_weights(setup.model)["map"], base)
    train(setup, SMALL.task(0), steps=8)
    update = effective_weights(setup.model)["map"] - base
    assert update.norm() > 0.01
    if isinstance(setup.optimizer, ChainLoRAOptimizer):
        assert torch.allclose(setup.optimizer.delta("map").double(), update, atol=1e-5)


@pytest.mark.parametrize("method", [method for method in ALL if method.label != "prefix"], ids=label)
def test_training_starts_from_the_base_function_and_leaves_it(method):
    model = llama()
    base = logits(model).detach()
    setup = method.prepare(model, TARGETS, steps=6, seed=0)
    assert torch.allclose(logits(setup.model), base, atol=1e-5)
    train(setup, Text(), steps=6)
    assert not torch.allclose(logits(setup.model), base, atol=1e-2)


@pytest.mark.parametrize("method", ALL, ids=label)
def test_method_is_determined_by_its_seed_and_leaves_the_global_generator_alone(method):
    trained = []
    for seed in (3, 3, 4):
        before = torch.get_rng_state()
        setup = method.prepare(llama(), TARGETS, steps=6, seed=seed)
        train(setup, Text(), steps=6)
        assert torch.equal(torch.get_rng_state(), before)
        trained.append(logits(setup.model))
    assert torch.equal(trained[0], trained[1])
    assert torch.equal(trained[0], trained[2]) == (method.label in DRAWLESS)


@pytest.mark.parametrize("method", ADAMS, ids=label)
def test_the_scheduled_rate_is_the_rate_of_the_step(method):
    """Under one and the same gradient Adam's steps are as long as the rate says: 1, 3/4, 1/2, 1/4 of the first."""
    if isinstance(method, ChainOfLoRA):
        method = ChainOfLoRA("never", 1e-2, 2, Never(), freeze_A=method.freeze_A)
    if isinstance(method, BAdam):
        method = BAdam("one block", 1e-2)
    setup = method.prepare(llama(), TARGETS, steps=4, seed=0)
    moving = [parameter for parameter in setup.parameters if parameter.requires_grad]
    gradients = [torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)).to(parameter) for parameter in moving]
    moves = []
    for _ in range(4):
        before = [parameter.detach().clone() for parameter in moving]
        for parameter, gradient in zip(moving, gradients, strict=True):
            parameter.grad = gradient.clone()
        setup.optimizer.step()
        assert setup.scheduler is not None
        setup.scheduler.step()
        moves.append(torch.stack([(p.detach() - old).norm() for p, old in zip(moving, before, strict=True)]))
    for move, factor in zip(moves, (1.0, 0.75, 0.5, 0.25), strict=True):
        assert torch.allclose(move, factor * moves[0], rtol=1e-3)


@pytest.mark.parametrize("method", ALL, ids=label)
def test_method_is_plain_data_by_which_a_run_is_known(method):
    again = pickle.loads(pickle.dumps(method))
    assert again == method
    assert hash(again) == hash(method)
    assert len({*ALL}) == len(ALL)


@pytest.mark.parametrize("method", METHODS, ids=label)
def test_run_is_determined_by_problem_method_and_seed(method):
    first, again, other = (execute(Run(SMALL, method, seed)) for seed in (3, 3, 4))
    del first["seconds"], again["seconds"]
    assert first == again
    assert first["losses"] != other["losses"]


def test_chain_trains_as_many_numbers_as_lora_and_adds_up_rank():
    lora, chain = (execute(Run(SMALL, method, 0)) for method in METHODS[:2])
    assert chain["trainable"] == lora["trainable"]
    ranks = [sum(value > 1e-4 * run["spectrum"][0] for value in run["spectrum"]) for run in (lora, chain)]
    assert ranks == [2, 4]
    assert chain["knots"] == [4]


def test_control_keeps_the_moments_that_a_chain_forgets():
    """Right after the knot's step: Adam's count goes on for the control, and is back at nothing for the chain."""
    counts = {}
    for method in (METHODS[1], METHODS[3]):
        setup = method.prepare(SMALL.model(), SMALL.targets, steps=8, seed=0)
        train(setup, SMALL.task(0), steps=8)
        state = [setup.optimizer.state[parameter] for parameter in setup.parameters]
        counts[method.label] = {int(entry["step"]) for entry in state}
        assert isinstance(setup.optimizer, ChainLoRAOptimizer)
        assert [record.step for record in setup.optimizer.ledger] == [4]
    assert counts == {"chain": {4}, "kept": {8}}


def test_chain_that_never_knots_trains_like_the_lora_baseline():
    """Different draws of A, same distribution and optimizer: over seeds the mean errors agree closely."""
    problem = Regression(true_rank=2, steps=300)
    never = ChainOfLoRA("never", 1e-2, 2, Never())
    errors = [sum(execute(Run(problem, method, seed))["value"] for seed in range(2)) / 2 for method in (METHODS[0], never)]
    assert errors[1] == pytest.approx(errors[0], rel=0.2)


def test_results_do_not_depend_on_the_number_of_workers():
    runs = [Run(SMALL, method, seed) for seed in range(2) for method in METHODS[:2]]
    done: list[dict] = []
    together = spread(execute, runs, workers=2, on_done=done.append)
    alone = spread(execute, runs, workers=1, on_done=done.append)
    for row in done:
        row.pop("seconds", None)
    assert len(done) == 8
    assert together == alone


@pytest.mark.parametrize(
    ("method", "scale"),
    [
        (LoRA("LoRA", 1e-2, 4), 2),
        (LoRA("LoRA", 1e-2, 4, alpha=6), 1.5),
        (RsLoRA("rsLoRA", 1e-2, 4), 4),
        (ChainOfLoRA("chain", 1e-2, 4, Never(), alpha=6), 1.5),
    ],
    ids=["2r", "6", "rsLoRA", "chain"],
)
def test_scale_of_the_factors_is_alpha_over_rank_or_over_its_root(method, scale):
    model = method.prepare(llama(), TARGETS, steps=4, seed=0).model
    assert model.model.layers[0].self_attn.q_proj.scaling["default"] == scale


def test_lora_plus_gives_b_its_ratio_and_a_trained_head_the_plain_rate():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    setup = LoRAPlus("LoRA+", 1e-3, 2, schedule=Steady(), ratio=16).prepare(model, ["0"], steps=4, seed=0, trained=["1"])
    names = {parameter: name for name, parameter in model.named_parameters()}
    rates = {names[p]: group["lr"] for group in setup.optimizer.param_groups for p in group["params"]}
    factors = {"0.lora_A.default.weight": 1e-3, "0.lora_B.default.weight": 1.6e-2}
    assert rates == pytest.approx({**factors, "1.weight": 1e-3, "1.bias": 1e-3})
    assert {*setup.parameters} == {*names} - {model[0].base_layer.weight, model[0].base_layer.bias}


@pytest.mark.parametrize("method", [DoRA("DoRA", 1e-1, 2), PiSSA("PiSSA", 1e-1, 2), LoRA("LoRA", 1e-1, 2)], ids=label)
def test_effective_weight_is_what_the_adapted_layer_computes(method):
    model = nn.Sequential(nn.Linear(5, 4, bias=False))
    setup = method.prepare(model, ["0"], steps=3, seed=0)
    for _ in range(3):
        model(torch.eye(5)).square().sum().backward()
        setup.optimizer.step()
        setup.optimizer.zero_grad()
    assert torch.allclose(effective_weights(model)["0"].float(), model(torch.eye(5)).T, atol=1e-5)
