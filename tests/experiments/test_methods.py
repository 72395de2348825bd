"""Methods: what each trains, what each starts from, and what the control keeps."""

from __future__ import annotations

import pytest
import torch

from experiments.compare import Run, execute
from experiments.methods import ChainKeepingAdam, ChainOfLoRA, FullFineTuning, LoRA, chain_with_decay, effective_weights
from experiments.tasks.regression import Regression
from experiments.train import train
from experiments.workers import spread
from fwlora import ChainLoRAOptimizer, Evenly, Never

METHODS = [
    LoRA("LoRA", 1e-2, 2),
    ChainOfLoRA("chain", 1e-2, 2, Evenly(2)),
    chain_with_decay("decay", 1e-2, 2, Evenly(2), warmup=1),
    ChainKeepingAdam("kept", 1e-2, 2, 2),
    FullFineTuning("full", 1e-2),
]
SMALL = Regression(true_rank=2, steps=8, batch_size=16)


def names(value: object) -> str | None:
    return getattr(value, "label", None)


@pytest.mark.parametrize("method", METHODS, ids=names)
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


@pytest.mark.parametrize("method", METHODS, ids=names)
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


def test_lora_baseline_leaves_the_global_generator_alone():
    model = SMALL.model()
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    METHODS[0].prepare(model, SMALL.targets, steps=8, seed=0)
    assert torch.equal(torch.rand(1), expected)


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
