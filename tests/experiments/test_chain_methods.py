"""Chains as the studies make them: every rule reaches the optimizer, and the first link is a LoRA."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from experiments.methods import INNERS, ChainKeepingAdam, ChainOfLoRA, LoRA
from experiments.train import train
from fwlora import At, Evenly, FrankWolfe, NuclearBall, OpenLoop, StepDown
from tests.experiments.small import TARGETS, Text, label, llama

SITE = "model.layers.0.self_attn.q_proj"


def run(chain: ChainOfLoRA, steps: int = 6):
    """A chain after some steps on the tiny Llama."""
    model = llama()
    setup = chain.prepare(model, TARGETS, steps=steps, seed=0)
    train(setup, Text(), steps=steps)
    return model, setup.optimizer


def test_ranks_step_down_from_link_to_link_at_one_scale():
    chain = ChainOfLoRA("narrowing", 1e-2, StepDown([4, 2, 1]), Evenly(3))
    model, optimizer = run(chain)
    assert optimizer.chain.rank(SITE) == 4 + 2
    assert sum(bool(row.any()) for row in optimizer.sites[SITE].A) == 1
    assert model.get_submodule(SITE).scaling["default"] == 2
    injected = chain.inject(llama("meta"), TARGETS).get_submodule(SITE)
    assert (injected.r["default"], injected.scaling["default"]) == (4, 2)


def test_merge_rule_keeps_the_update_in_its_ball():
    radius = 0.1
    _, optimizer = run(ChainOfLoRA("ball", 1e-2, 2, Evenly(3), merge=FrankWolfe(NuclearBall(radius), OpenLoop())))
    nuclear = float(torch.linalg.svdvals(optimizer.chain.delta(SITE).double()).sum())
    assert 0 < nuclear <= radius * (1 + 1e-5)


def test_biases_of_the_factors_are_trained_and_merged():
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    before = model[0].bias.detach().clone()
    chain = ChainOfLoRA("biased", 1e-2, 2, At([3]), lora_bias=True, alpha=3)
    setup = chain.prepare(model, ["0"], steps=3, seed=0)
    assert sum(parameter.numel() for parameter in setup.parameters) == 2 * (4 + 3) + 3
    for _ in range(3):
        model(torch.ones(2, 4)).square().sum().backward()
        setup.optimizer.step()
        setup.optimizer.zero_grad()
    assert len(setup.optimizer.chain) == 1
    assert not torch.equal(model[0].base_layer.bias, before)
    assert model[0].scaling["default"] == 1.5


def test_inner_optimizer_gets_its_options():
    for inner in INNERS.values():
        chain = ChainOfLoRA("chain", 1e-2, 2, Evenly(2), inner=inner.kind, inner_options=inner.options)
        optimizer = chain.prepare(llama(), TARGETS, steps=4, seed=0).optimizer
        assert type(optimizer.inner) is inner.kind
        assert {name: optimizer.param_groups[0][name] for name, _ in inner.options} == dict(inner.options)
        assert optimizer.param_groups[0]["weight_decay"] == 0


@pytest.mark.parametrize(
    "chain", [ChainOfLoRA("chain", 1e-2, 3, Evenly(2), alpha=5), ChainKeepingAdam("kept", 1e-2, 3, 2)], ids=label
)
def test_first_link_is_injected_as_the_lora_of_its_rank_and_alpha(chain):
    alpha = getattr(chain, "alpha", None)
    one, other = (m.inject(llama("meta"), TARGETS) for m in (chain, LoRA("LoRA", 1e-2, 3, alpha=alpha)))
    assert {n: (p.shape, p.requires_grad) for n, p in one.named_parameters()} == {
        n: (p.shape, p.requires_grad) for n, p in other.named_parameters()
    }
    assert one.get_submodule(SITE).scaling == other.get_submodule(SITE).scaling


def test_chain_of_b_freezes_a_whatever_the_layer():
    def model():
        return nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 3), nn.Conv1d(2, 2, 2))

    chain = ChainOfLoRA("B", 1e-2, 2, Evenly(2), freeze_A=True)
    prepared, bare = model(), model()
    chain.prepare(prepared, ["0", "1", "2"], steps=4, seed=0)
    chain.inject(bare, ["0", "1", "2"])
    wanted = {"0.lora_embedding_A.default", "1.lora_B.default.weight", "2.lora_B.default.weight"}
    for adapted in (prepared, bare):
        assert {name for name, parameter in adapted.named_parameters() if parameter.requires_grad} == wanted
