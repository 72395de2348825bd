"""What is timed beside the methods that adapt: the frozen floor, ReLoRA's loop, compiled models, LoRA with other options."""

from __future__ import annotations

import shutil
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from experiments.accounting.architectures import config_of
from experiments.accounting.contenders import contenders, variants
from experiments.accounting.timing import WARM_UP
from experiments.errors import UsageError
from experiments.methods import (
    ChainOfLoRA,
    Compiled,
    FrozenFloor,
    FusedLoRA,
    GaLore,
    HalfLoRA,
    LoRA,
    ReLoRA,
    effective_weights,
    unavailable,
)
from experiments.methods.relora import start_again
from experiments.studies import memory, speed
from experiments.train import train
from fwlora import Blocks, Evenly
from tests.experiments.small import TARGETS, Text, label, llama, logits


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def test_floor_trains_nothing_and_its_gradient_reaches_the_embeddings_output():
    model = llama()
    before, reached = weights(model), []
    setup = FrozenFloor("floor").prepare(model, TARGETS, steps=3, seed=0)
    model.get_input_embeddings().register_forward_hook(lambda module, inputs, output: reached.append(output))
    train(setup, Text(), steps=3)
    assert all(torch.equal(value, before[name]) for name, value in weights(model).items())
    assert len(reached) == 3
    assert all(output.grad is not None and output.grad.norm() > 0 for output in reached)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not setup.parameters
    assert FrozenFloor("floor").state_numbers(model, TARGETS) == 0


def test_floor_of_a_model_without_embeddings_is_refused():
    with pytest.raises(UsageError, match="floor: a Linear has no input embeddings; give a transformers model"):
        FrozenFloor("floor").prepare(nn.Linear(2, 2), [], steps=1, seed=0)


def test_merge_of_relora_leaves_the_forward_unchanged_up_to_its_rounding():
    model = llama()
    setup = LoRA("LoRA", 1e-2, 2).prepare(model, TARGETS, steps=4, seed=0)
    train(setup, Text(), steps=4)
    before, learnt = logits(model).detach(), effective_weights(model)
    start_again(model, seed=1)
    assert torch.allclose(logits(model), before, atol=1e-5)
    layer = model.model.layers[0].self_attn.q_proj
    assert not layer.merged
    assert not layer.lora_B["default"].weight.any()
    assert layer.lora_A["default"].weight.any()
    for name, value in effective_weights(model).items():
        assert torch.allclose(value, learnt[name], atol=1e-6)


def test_relora_adds_up_rank_and_its_adam_starts_from_nothing():
    model = llama()
    base = effective_weights(model)
    method = ReLoRA("ReLoRA", 1e-2, 2, every=3)
    assert method.planned_knots(9) == [3, 6]
    setup = method.prepare(model, TARGETS, steps=9, seed=0)
    train(setup, Text(), steps=9)
    name = "model.layers.1.self_attn.q_proj"
    update = effective_weights(model)[name] - base[name]
    assert torch.linalg.matrix_rank(update, rtol=1e-4) == 6
    assert {int(state["step"]) for state in setup.optimizer.state.values()} == {3}


def test_fused_lora_takes_the_steps_of_lora():
    trained = []
    for method in (LoRA("LoRA", 1e-2, 2), FusedLoRA("fused", 1e-2, 2)):
        setup = method.prepare(llama(), TARGETS, steps=5, seed=0)
        train(setup, Text(), steps=5)
        trained.append((logits(setup.model).detach(), setup.optimizer.defaults["fused"]))
    assert torch.allclose(trained[0][0], trained[1][0], atol=1e-4)
    assert [fused for _, fused in trained] == [None, True]


@pytest.mark.parametrize(
    ("method", "dtype"), [(LoRA("LoRA", 1e-2, 2), torch.float32), (HalfLoRA("half", 1e-2, 2), torch.bfloat16)], ids=label
)
def test_factors_on_a_bf16_base_are_float32_unless_they_are_to_be_bf16(method: LoRA, dtype: torch.dtype):
    setup = method.prepare(llama(dtype=torch.bfloat16), TARGETS, steps=1, seed=0)
    assert {parameter.dtype for parameter in setup.parameters} == {dtype}
    train(setup, Text(), steps=1)
    moments = {state["exp_avg"].dtype for state in setup.optimizer.state.values()}
    assert moments == {dtype}


def test_chain_gets_its_blocks_and_whether_its_layers_may_be_fast():
    """With as many blocks as layers, a link moves the weights of one layer."""
    chain = ChainOfLoRA("chain", 1e-2, 2, Evenly(2), blocks=Blocks(2), fast_layers=False)
    model = llama()
    before = effective_weights(model)
    setup = chain.prepare(model, TARGETS, steps=6, seed=0)
    train(setup, Text(), steps=3)
    first = [name for name, value in effective_weights(model).items() if not torch.allclose(value, before[name], atol=1e-7)]
    layers = {name.split(".")[2] for name in first}
    assert len(layers) == 1
    train(setup, Text(), steps=6, start=3)
    moved = [name for name, value in effective_weights(model).items() if not torch.allclose(value, before[name], atol=1e-7)]
    assert {name.split(".")[2] for name in moved} == {"0", "1"}


@pytest.mark.parametrize("inner", [LoRA("LoRA", 1e-2, 2), ChainOfLoRA("chain", 1e-2, 2, Evenly(2))], ids=label)
def test_compiled_method_trains_as_the_method_does(inner: LoRA | ChainOfLoRA):
    compiled = Compiled("compiled", inner, backend="eager")
    setups = [method.prepare(llama(), TARGETS, steps=4, seed=0) for method in (inner, compiled)]
    losses = [train(setup, Text(), steps=4) for setup in setups]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert list(dict(setups[1].model.named_parameters())) == list(dict(setups[0].model.named_parameters()))
    bare = compiled.inject(llama("meta"), TARGETS)
    assert compiled.state_numbers(bare, TARGETS) == inner.state_numbers(bare, TARGETS)
    assert compiled.state_size((4, 2)) == inner.state_size((4, 2))
    assert (compiled.lr, compiled.planned_knots(4)) == (inner.lr, inner.planned_knots(4))
    torch._dynamo.reset()


@pytest.mark.long
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # inductor's own imports
def test_compiled_by_inductor_trains_as_the_method_does():
    inner = ChainOfLoRA("chain", 1e-2, 2, Evenly(2))
    methods = (inner, Compiled("compiled", inner))
    if (reason := unavailable(methods[1])) is not None:
        pytest.skip(reason)
    losses = [train(method.prepare(llama(), TARGETS, steps=4, seed=0), Text(), steps=4) for method in methods]
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
    torch._dynamo.reset()


def test_without_a_compiler_there_is_a_reason(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    compiled = Compiled("compiled", LoRA("LoRA", 1e-2, 2))
    assert unavailable(compiled) == "inductor needs a C++ compiler, and there is neither g++ nor clang++"
    assert unavailable(replace(compiled, backend="eager")) is None


def test_compiled_method_lacks_what_the_method_lacks(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    reason = unavailable(Compiled("compiled", GaLore("peer", 1e-2, 2)))
    assert reason is not None
    assert reason.startswith("galore-torch is not installed")


@pytest.mark.parametrize(
    ("study", "preset", "warm_up"),
    [
        (study, name, warm_up)
        for study, warm_up in ((speed, WARM_UP), (memory, 0))
        for name, config in study.PRESETS.items()
        if not config.methods
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_presets_come_to_every_block(study: Any, preset: str, warm_up: int):
    config = study.PRESETS[preset]
    steps = getattr(config, "steps", None) or config.rounds + WARM_UP
    counted = range(warm_up, steps)
    for base in config.bases:
        layers = config_of(base).num_hidden_layers
        methods: dict[str, Any] = {method.label: method for method in variants(8, 4, steps, layers=layers)}
        every = methods["BAdam"].switch_every
        # The first block is left a step early.
        assert every >= 2
        assert {(step + 1) // every % layers for step in counted} == set(range(layers))
        knots = methods["chain, one block a link"].planned_knots(steps)
        # A step that ties a knot is no ordinary one, but is weighed.
        links = {sum(knot <= step for knot in knots) for step in counted if study is memory or step + 1 not in knots}
        assert links == set(range(layers))


@pytest.mark.parametrize(("steps", "layers"), [(16, 7), (20, 4), (8, 4), (10, 5), (100, 24), (48, 24), (20, 2)])
def test_badam_comes_to_every_block_of_any_run_with_two_steps_for_each(steps: int, layers: int):
    badam: Any = variants(8, 4, steps, layers=layers)[-1]
    assert {(step + 1) // badam.switch_every % layers for step in range(steps)} == set(range(layers))


def test_variants_hold_the_contenders_and_have_names_of_their_own():
    labels = [method.label for method in variants(2, 3, 30, half=True, layers=2)]
    assert labels[0] == "LoRA"
    assert len(set(labels)) == len(labels)
    assert {method.label for method in contenders(2, 3, 30, half=True)} < set(labels)
    assert "LoRA, bf16 adapters" not in [method.label for method in variants(2, 3, 30, layers=2)]
