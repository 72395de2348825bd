"""Blocks that cannot be are refused: by name, with the way out, before anything is changed."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model

from fwlora import Blocks, FrankWolfe, Never, NuclearBall
from fwlora.errors import ArgumentError, NoGradientError
from fwlora.rules import BlockRule
from tests.conftest import make_chain, step
from tests.tables import CASES, output


def test_block_without_gradient_at_the_first_step_is_an_error(chained):
    """Gradients of resting sites do not count."""
    _, optimizer, _ = chained("linear", blocks=Blocks(2), fast_layers=False)
    optimizer.sites["layers.2"].B.grad = torch.ones_like(optimizer.sites["layers.2"].B)
    with pytest.raises(NoGradientError):
        optimizer.step()


class Odd(BlockRule):
    """A user's rule, right or wrong."""

    def __init__(self, *names: str, later: tuple[str, ...] | None = None) -> None:
        self.names, self.later = names, names if later is None else later

    def active(self, knot, sites):
        return self.names if knot == 0 else self.later


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"blocks": Blocks(9)}, r"`blocks=Blocks\(9\)`.*2 layer.*from 1 to 2"),
        ({"blocks": Blocks(2), "merge": FrankWolfe(NuclearBall(1.0), 0.5)}, r"`merge=FrankWolfe.*`merge=Add\(\)`"),
        ({"blocks": Odd()}, "names no site for link 0"),
        ({"blocks": Odd("nowhere")}, r"unknown \['nowhere'\]"),
    ],
    ids=["too many", "Algorithm 2", "none", "unknown"],
)
def test_blocks_that_cannot_be_are_refused_and_the_model_left_as_it_was(options, message):
    model = CASES["llama"].model()
    before = [(name, p.requires_grad, id(p)) for name, p in model.named_parameters()]
    with pytest.raises(ArgumentError, match=message):
        make_chain(CASES["llama"], model, **options)
    assert [(name, p.requires_grad, id(p)) for name, p in model.named_parameters()] == before


def test_one_block_goes_with_algorithm_2(chained):
    _, optimizer, _ = chained(steps=4, blocks=Blocks(1), merge=FrankWolfe(NuclearBall(1.0), 0.5))
    assert len(optimizer.chain) == 1


def test_rule_that_goes_wrong_later_is_refused_before_the_knot_begins(chained):
    model, optimizer, batch = chained(steps=2, blocks=Odd("layers.0", later=()), knots=Never())
    before = output(model, batch)
    with pytest.raises(ArgumentError, match="names no site for link 1"):
        optimizer.tie_knot()
    assert torch.equal(output(model, batch), before)
    assert len(optimizer.chain) == 0


def test_data_parallel_training_is_refused_at_construction_and_at_the_first_step(chained, monkeypatch):
    model, optimizer, batch = chained(blocks=Blocks(2))
    monkeypatch.setattr("fwlora.distributed.world_size", lambda: 2)
    with pytest.raises(ArgumentError, match=r"`blocks=Blocks\(n=2\)`.*`blocks=AllSites\(\)`, or one process"):
        step(model, optimizer, batch)
    with pytest.raises(ArgumentError, match="data-parallel"):
        chained(blocks=Blocks(2))


def test_adopted_model_with_a_live_link_where_a_site_rests_is_refused():
    """It would be skipped by the forward pass and lost at the first knot."""
    model = get_peft_model(CASES["llama"].model(), LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
    resting = model.get_parameter("base_model.model.model.layers.1.self_attn.v_proj.lora_B.default.weight")
    with torch.no_grad():
        resting.fill_(0.1)
    with pytest.raises(ArgumentError, match=r"`blocks=Blocks\(n=2\)`.*layers\.1\.self_attn\.v_proj"):
        make_chain(CASES["llama"], model, blocks=Blocks(2), rank=None, target_modules=None)
    with torch.no_grad():
        resting.zero_()
    optimizer = make_chain(CASES["llama"], model, blocks=Blocks(2), rank=None, target_modules=None)
    with torch.no_grad():
        resting.fill_(0.1)  # as by `load_state_dict` of the model alone
    with pytest.raises(ArgumentError, match="live link there"):
        step(model, optimizer, CASES["llama"].batch())
