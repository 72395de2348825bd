"""How many numbers each method trains and its optimizer keeps, on a real device and on none."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from experiments.errors import UsageError
from experiments.methods import INNERS, BAdam, ChainOfLoRA, GaLore, LoRA
from experiments.methods.inner import numbers
from experiments.train import Setup, train
from fwlora import At, Evenly, Every, Never, Plateau
from tests.experiments.small import ALL, INNER_CHAINS, TARGETS, WIDTH, WORDS, Text, label, llama

LAYERS, RANK, KV = 2, 2, 8  # two heads share one pair of keys and values
FACTORS = LAYERS * RANK * ((WIDTH + WIDTH) + (WIDTH + KV))
OUTPUTS = LAYERS * (WIDTH + KV)
LAYER = WIDTH * (2 * WIDTH + 2 * KV) + 3 * WIDTH * 32 + 2 * WIDTH
MODEL = LAYERS * LAYER + 2 * WORDS * WIDTH + WIDTH
TRAINED = {
    "LoRA": FACTORS,
    "LoRA with biases": FACTORS + OUTPUTS,
    **dict.fromkeys(("LoRA+", "fused LoRA", "half LoRA", "ReLoRA", "chain by PEFT"), FACTORS),
    "LoRA-FA": RANK * OUTPUTS,
    "rsLoRA": FACTORS,
    "DoRA": FACTORS + OUTPUTS,
    "PiSSA": FACTORS,
    "chain": FACTORS,
    "narrowing chain": FACTORS,
    "chain of B": RANK * OUTPUTS,
    "kept": FACTORS,
    **dict.fromkeys(INNERS, FACTORS),
    "bottlenecks": 2 * 3 * OUTPUTS + OUTPUTS + 2 * LAYERS * 3,
    "prefix": 4 * 2 * LAYERS * KV,
    "full": MODEL,
    "GaLore": MODEL,
    "BAdam": LAYERS * LAYER,
}


def kept(setup: Setup) -> int:
    """The numbers in an optimizer's state, step counters left out."""
    optimizer = getattr(setup.optimizer, "base_optimizer", setup.optimizer)
    values = [value for state in optimizer.state.values() for value in state.values()]
    values += [value.ortho_matrix for value in values if hasattr(value, "ortho_matrix")]
    values += getattr(setup.optimizer, "param_idx2hp", {}).values()
    return sum(value.numel() for value in values if isinstance(value, Tensor) and value.ndim)


@pytest.mark.parametrize("method", ALL, ids=label)
def test_trained_numbers_are_those_of_the_formula(method):
    setup = method.prepare(llama(), TARGETS, steps=4, seed=0)
    assert sum(parameter.numel() for parameter in setup.parameters) == TRAINED[method.label]


@pytest.mark.parametrize("method", ALL, ids=label)
def test_injection_on_the_meta_device_trains_what_preparation_does(method):
    bare = method.inject(llama("meta"), TARGETS, trained=["lm_head"])
    assert all(parameter.is_meta for parameter in bare.parameters())
    setup = method.prepare(llama(), TARGETS, steps=4, seed=0, trained=["lm_head"])
    names = {parameter: name for name, parameter in setup.model.named_parameters()}
    expected = {names[parameter]: (parameter.shape, parameter.dtype) for parameter in setup.parameters}
    assert {n: (p.shape, p.dtype) for n, p in bare.named_parameters() if p.requires_grad} == expected


@pytest.mark.parametrize("method", ALL, ids=label)
def test_optimizer_keeps_as_many_numbers_as_the_method_says(method):
    setup = method.prepare(llama(), TARGETS, steps=3, seed=0)
    train(setup, Text(), steps=1)
    bare = method.inject(llama("meta"), TARGETS)
    assert kept(setup) == method.state_numbers(bare, TARGETS)
    if not isinstance(method, GaLore | BAdam):
        assert kept(setup) == sum(method.state_size(parameter.shape) for parameter in setup.parameters)


@pytest.mark.parametrize("method", [m for m in ALL if m.label != "Muon"], ids=label)
def test_a_head_is_trained_in_full_beside_whatever_is_adapted(method):
    model = llama()
    head, before = model.lm_head.weight, model.lm_head.weight.detach().clone()
    embedding = model.model.embed_tokens.weight.detach().clone()
    setup = method.prepare(model, TARGETS, steps=2, seed=0, trained=["lm_head"])
    assert any(parameter is head for parameter in setup.parameters)
    train(setup, Text(), steps=2)
    assert not torch.allclose(head, before, atol=1e-3)
    assert torch.equal(model.model.embed_tokens.weight, embedding) == (method.label not in ("full", "GaLore"))
    bare = method.inject(llama("meta"), TARGETS, trained=["lm_head"])
    assert kept(setup) == method.state_numbers(bare, TARGETS, trained=["lm_head"])


def test_unknown_module_to_train_is_refused_by_its_name():
    with pytest.raises(UsageError, match="trained='score': the model has no module of that name"):
        LoRA("LoRA", 1e-2, 2).prepare(llama(), TARGETS, steps=3, seed=0, trained=["score"])


@pytest.mark.parametrize("shape", [(6, 4), (6,), (2, 6, 4)], ids=str)
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        *[(inner.kind, inner.options) for inner in INNERS.values()],
        (torch.optim.AdamW, (("amsgrad", True),)),
        (torch.optim.SGD, ()),
        (torch.optim.RMSprop, (("momentum", 0.9), ("centered", True))),
    ],
)
def test_numbers_of_an_inner_optimizer_are_those_in_its_state(kind, options, shape):
    if kind is torch.optim.Muon and len(shape) != 2:
        return
    parameter = nn.Parameter(torch.ones(shape))
    optimizer = kind([parameter], lr=1e-3, **dict(options))
    parameter.grad = torch.randn(shape)
    optimizer.step()
    values = optimizer.state[parameter].values()
    assert numbers(kind, options, shape) == sum(v.numel() for v in values if isinstance(v, Tensor) and v.ndim)


def test_unknown_inner_optimizer_is_refused_where_its_state_is_asked_for():
    with pytest.raises(UsageError, match="inner=Adadelta: what it keeps is not known here; use one of AdamW, SGD"):
        ChainOfLoRA("chain", 1e-2, 2, Evenly(2), inner=torch.optim.Adadelta).state_size((4, 4))


@pytest.mark.parametrize("chain", INNER_CHAINS, ids=label)
def test_chain_learns_with_every_inner_optimizer(chain):
    """The same batch again and again."""
    setup = chain.prepare(llama(), TARGETS, steps=30, seed=0)

    class Same(Text):
        def batches(self, step: int) -> list[Tensor]:
            return super().batches(0)

    losses = train(setup, Same(), steps=30)
    assert losses[15] < losses[0] - 0.1
    assert losses[-1] < losses[15]
    assert len(setup.optimizer.chain) == 1
    assert type(setup.optimizer.inner) is chain.inner


@pytest.mark.parametrize(
    ("schedule", "planned"),
    [
        (Evenly(3), [4, 7]),
        (Evenly(1), []),
        (Every(4), [4, 8]),
        (Every(5), [5, 10]),
        (At([3, 20]), [3]),
        (Never(), []),
        (Plateau(), []),
    ],
    ids=str,
)
def test_planned_knots_are_those_that_are_tied(schedule, planned):
    chain = ChainOfLoRA("chain", 1e-2, 2, schedule)
    assert chain.planned_knots(10) == planned
    setup = chain.prepare(llama(), TARGETS, steps=10, seed=0)
    train(setup, Text(), steps=10)
    assert [record.step for record in setup.optimizer.ledger] == planned


KNOTTED = ("kept", "ReLoRA")


@pytest.mark.parametrize("method", [m for m in ALL if not isinstance(m, ChainOfLoRA) and m.label not in KNOTTED], ids=label)
def test_other_methods_plan_no_knot(method):
    assert method.planned_knots(10) == []
