"""What others do to a model after `ChainLoRAOptimizer(model)`: gone on with rightly, or told of by name."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from fwlora import ChainLoRAOptimizer, Every
from tests.conftest import make_chain, train
from tests.tables import CASES, output

CASE = CASES["llama"]
Q = "model.layers.0.self_attn.q_proj"


def adopted(steps: int) -> tuple[nn.Module, ChainLoRAOptimizer]:
    """A PeftModel whose q_proj layers are the sites, after some steps; a knot every 3."""
    torch.manual_seed(3)
    model = get_peft_model(CASE.model(), LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj"]))
    optimizer = ChainLoRAOptimizer(model, 0.02, knots=Every(3))
    train(optimizer, model, CASE.batch(), steps)
    return model, optimizer


def put_back(model, optimizer):
    layers = model.get_base_model().model.layers
    layer = layers[0].self_attn.q_proj
    layers[0].self_attn.q_proj = nn.Identity()
    layers[0].self_attn.q_proj = layer


def chosen_again(model, optimizer):
    model.add_adapter("other", LoraConfig(r=2, target_modules=["q_proj"]))
    model.set_adapter("other")
    model.set_adapter("default")


def enabled_again(model, optimizer):
    with model.disable_adapter():
        output(model, CASE.batch())


def moved(model, optimizer):
    model.to("cpu")


def evaluated(model, optimizer):
    model.train().eval()


@pytest.mark.parametrize("event", [put_back, chosen_again, enabled_again, moved, evaluated], ids=lambda event: event.__name__)
def test_change_that_was_undone_leaves_no_trace(event):
    whole, expected = adopted(5)
    model, optimizer = adopted(2)
    event(model, optimizer)
    train(optimizer, model, CASE.batch(), 3)
    assert optimizer.ledger == expected.ledger
    theirs = whole.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in model.state_dict().items() if name in theirs)


def test_adapter_that_was_merged_and_unmerged_for_a_while_goes_on():
    """As a trainer does to generate: PEFT's way back is exact to rounding only, and so is what follows."""
    whole, _ = adopted(5)
    model, optimizer = adopted(2)
    model.merge_adapter()
    model.unmerge_adapter()
    train(optimizer, model, CASE.batch(), 3)
    assert len(optimizer.chain) == 1
    torch.testing.assert_close(output(model, CASE.batch()), output(whole, CASE.batch()), rtol=1e-4, atol=1e-5)


def test_model_cast_before_the_first_knot_trains_in_its_new_precision():
    case = CASES["linear"]
    model = case.model()
    optimizer = make_chain(case, model)
    model.double()
    batch = {"x": case.batch()["x"].double()}
    train(optimizer, model, batch, 4)
    assert len(optimizer.chain) == 1
    assert optimizer.sites["layers.0"].weight.dtype == optimizer.sites["layers.0"].A.dtype == torch.float64


def test_scale_that_was_changed_is_the_one_that_is_merged():
    model, optimizer = adopted(2)
    for site in optimizer.sites.values():
        site.layer.scaling["default"] = 5.0
    before = output(model, CASE.batch())
    optimizer.tie_knot()
    torch.testing.assert_close(output(model, CASE.batch()), before, rtol=1e-5, atol=1e-6)


def test_site_whose_factors_are_both_frozen_stands_still_and_the_others_learn():
    model, optimizer = adopted(0)
    for factor in optimizer.sites[Q].parameters():
        factor.requires_grad_(False)
    train(optimizer, model, CASE.batch(), 4)
    assert not optimizer.delta(Q).any()
    assert all(optimizer.delta(name).any() for name in optimizer.sites if name != Q)


def test_model_that_was_frozen_in_all_before_is_served():
    model = CASE.model().requires_grad_(False)
    optimizer = make_chain(CASE, model)
    train(optimizer, model, CASE.batch(), 4)
    assert len(optimizer.chain) == 1
