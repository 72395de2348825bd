"""Methods that train a whole model: full fine-tuning in full precision, GaLore and BAdam by their authors' packages."""

from __future__ import annotations

import copy
import dataclasses
import importlib.util
import inspect

import pytest
import torch
from torch import nn

from experiments.errors import UsageError
from experiments.methods import BAdam, FullFineTuning, GaLore, LoRA, unavailable
from experiments.methods.full import full_precision
from experiments.methods.peers import blocks
from experiments.schedules import Linear, Steady
from experiments.tasks.regression import Regression
from experiments.train import train
from tests.experiments.small import TARGETS, WHOLE, Text, label, llama, logits, words


def ranks(before: dict[str, torch.Tensor], model: nn.Module) -> dict[str, int]:
    """The rank of what has happened to each matrix."""
    updates = {name: p.detach() - before[name] for name, p in model.named_parameters() if p.ndim == 2}
    return {name: int(torch.linalg.matrix_rank(update.double(), rtol=1e-3)) for name, update in updates.items()}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_full_fine_tuning_of_half_precision_keeps_small_steps(dtype):
    """Steps of 1e-5 on weights of size .3: of those in half precision hardly one would move."""
    model = llama(dtype=dtype)
    before = model.lm_head.weight.detach().float()
    setup = FullFineTuning("full", 1e-5, schedule=Steady()).prepare(model, TARGETS, steps=3, seed=0)
    assert {parameter.dtype for parameter in setup.parameters} == {torch.float32}
    train(setup, Text(), steps=3)
    moved = (model.lm_head.weight.detach() - before).abs()
    assert 0.5e-5 < float(moved.median()) < 4e-5
    rounded = model.lm_head.weight.detach().to(dtype)
    assert float((rounded == before.to(dtype)).double().mean()) > 0.8


def test_full_fine_tuning_computes_in_the_dtype_of_the_base():
    model = llama(dtype=torch.bfloat16)
    base = logits(model)
    FullFineTuning("full", 1e-3).inject(model, TARGETS)
    seen = []
    model.model.layers[0].self_attn.q_proj.register_forward_hook(lambda layer, inputs, output: seen.append(output.dtype))
    assert logits(model).dtype == base.dtype == torch.bfloat16
    assert seen == [torch.bfloat16]
    assert torch.allclose(logits(model), base, atol=0.1)


def test_full_precision_survives_a_copy_and_keeps_the_model_what_it_was():
    model = full_precision(llama(dtype=torch.bfloat16))
    twin = copy.deepcopy(model)
    with torch.no_grad():
        twin.lm_head.weight.zero_()
    assert not logits(twin).any()
    assert logits(model).any()
    assert isinstance(model, type(llama()))
    assert type(model).__name__ == "LlamaForCausalLM"
    assert [*inspect.signature(model.forward).parameters] == [*inspect.signature(llama().forward).parameters]
    generated = model.generate(words()[:1], max_new_tokens=3, do_sample=False, pad_token_id=0, eos_token_id=None)
    assert generated.shape == (1, 11)


def test_model_in_full_precision_is_left_as_it_is():
    model = llama()
    kind = type(model)
    assert full_precision(model) is model
    assert type(model) is kind


def test_galore_moves_the_projected_matrices_within_a_subspace_and_the_others_freely():
    model = llama()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    setup = GaLore("GaLore", 1e-2, 2, update_proj_gap=100).prepare(model, TARGETS, steps=5, seed=0)
    train(setup, Text(), steps=5)
    moved = ranks(before, model)
    projected = {name for name in moved if any(target in name for target in TARGETS)}
    assert {moved[name] for name in projected} == {2}
    assert min(moved[name] for name in moved if name not in projected) > 2
    assert all(not torch.equal(before[name], parameter) for name, parameter in model.named_parameters())


def test_galore_finds_a_new_subspace_after_its_gap():
    model = llama()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    setup = GaLore("GaLore", 1e-2, 2, update_proj_gap=3).prepare(model, TARGETS, steps=5, seed=0)
    train(setup, Text(), steps=5)
    assert ranks(before, model)["model.layers.0.self_attn.q_proj.weight"] == 4


def test_galore_projects_the_layers_that_it_names_and_may_leave_half_precision_as_it_is():
    model = llama(dtype=torch.bfloat16)
    method = GaLore("GaLore", 1e-2, 2, projected=("down_proj",), full_precision=False)
    setup = method.prepare(model, TARGETS, steps=3, seed=0)
    names = {parameter: name for name, parameter in model.named_parameters()}
    with_rank = [names[p] for group in setup.optimizer.param_groups if "rank" in group for p in group["params"]]
    assert with_rank == [f"model.layers.{layer}.mlp.down_proj.weight" for layer in range(2)]
    train(setup, Text(), steps=2)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert method.state_size((16, 32)) == 2 * 2 * 32 + 2 * 16
    assert method.state_size((16,)) == 32


def test_badam_trains_one_layer_at_a_time_from_the_last_to_the_first(capfd):
    """The package leaves its first block after three of four steps, and the next ones after four."""
    model = llama()
    setup = BAdam("BAdam", 1e-2, switch_every=4).prepare(model, TARGETS, steps=12, seed=0)
    active = []
    for step in range(11):
        before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
        train(setup, Text(), start=step, steps=step + 1)
        moved = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
        assert moved <= {n for n, p in model.named_parameters() if ".layers." in n}
        active.append({int(name.split(".layers.")[1].split(".")[0]) for name in moved})
    assert active == [{1}] * 3 + [{0}] * 4 + [{1}] * 4
    assert capfd.readouterr().out == ""


def test_badam_follows_the_schedule_over_a_change_of_block():
    """Adam's first step on fresh moments is as long as the rate, whatever the gradient."""
    model = llama()
    setup = BAdam("BAdam", 1e-2, switch_every=4, schedule=Linear()).prepare(model, TARGETS, steps=8, seed=0)
    for step in range(4):
        before = model.model.layers[0].mlp.down_proj.weight.detach().clone()
        train(setup, Text(), start=step, steps=step + 1)
    moved = (model.model.layers[0].mlp.down_proj.weight.detach() - before).abs()
    assert float(moved.median()) == pytest.approx(1e-2 * 5 / 8, rel=1e-3)
    used = [group["lr"] for group in setup.optimizer.base_optimizer.param_groups]
    assert used == pytest.approx([1e-2 * 5 / 8] * len(used))


def test_badam_takes_the_layers_of_a_plain_network_for_blocks_and_tells_layer_1_from_layer_10():
    model = nn.Sequential(*(nn.Linear(3, 3) for _ in range(11)))
    assert [len(block) for block in blocks(model, [])] == [2] * 11
    setup = BAdam("BAdam", 1e-2, switch_every=100).prepare(model, ["0"], steps=4, seed=0)
    setup.optimizer.current_block_idx = 1
    setup.optimizer.switch_trainable_params()
    assert {name for name, p in model.named_parameters() if p.requires_grad} == {"1.weight", "1.bias"}


def test_badam_trains_a_head_with_every_block():
    model = llama()
    setup = BAdam("BAdam", 1e-2, switch_every=2).prepare(model, TARGETS, steps=6, seed=0, trained=["lm_head"])
    for step in range(6):
        before = model.lm_head.weight.detach().clone()
        train(setup, Text(), start=step, steps=step + 1)
        assert not torch.equal(model.lm_head.weight, before)


@pytest.mark.parametrize(("method", "lr"), [*zip(WHOLE, (1e-2, 0.1, 1e-2), strict=True)], ids=label)
def test_whole_model_methods_serve_a_plain_network(method, lr):
    problem = Regression(true_rank=2, steps=40)
    method = dataclasses.replace(method, lr=lr)
    losses = train(method.prepare(problem.model(), problem.targets, steps=40, seed=0), problem.task(0), steps=40)
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])


@pytest.mark.parametrize(("method", "package"), [(WHOLE[1], "galore-torch"), (WHOLE[2], "badam")], ids=["GaLore", "BAdam"])
def test_method_whose_package_is_missing_says_how_to_get_it(method, package, monkeypatch):
    assert unavailable(method) is None
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert unavailable(method) == f"{package} is not installed: pip install --group peers"
    with pytest.raises(UsageError, match=f"{method.label}: {package} is not installed"):
        method.prepare(llama(), TARGETS, steps=4, seed=0)
    assert unavailable(LoRA("LoRA", 1e-2, 2)) is None
