"""What others do to a model after `ChainLoRAOptimizer(model)`: gone on with rightly, or told of by name."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.nn.utils import prune

from fwlora import ChainLoRAOptimizer, Every
from fwlora.errors import DisconnectedParametersError, FwloraError, UnsupportedModelError
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


# -- what is done to it -----------------------------------------------------------------------------------------------


def removed(model, optimizer):
    model.get_base_model().model.layers[0].self_attn.q_proj = nn.Linear(32, 32, bias=False)


def unloaded(model, optimizer):
    model.unload()


def merged_and_unloaded(model, optimizer):
    model.merge_and_unload()


def deleted(model, optimizer):
    model.delete_adapter("default")


def merged(model, optimizer):
    model.merge_adapter()


def switched(model, optimizer):
    model.add_adapter("other", LoraConfig(r=2, target_modules=["q_proj"]))
    model.set_adapter("other")


def two_active(model, optimizer):
    model.add_adapter("other", LoraConfig(r=2, target_modules=["q_proj"]))
    model.base_model.set_adapter(["default", "other"])


def disabled(model, optimizer):
    model.base_model.disable_adapter_layers()


def injected_again(model, optimizer):
    layer = optimizer.sites[Q].layer
    layer.update_layer("default", r=2, lora_alpha=4, config=LoraConfig())


def cast_after_a_knot(model, optimizer):
    optimizer.tie_knot()
    model.bfloat16()


def tied(model, optimizer):
    model.get_base_model().model.layers[1].self_attn.o_proj.weight = optimizer.sites[Q].weight


def factor_shared(model, optimizer):
    other = optimizer.sites[Q.replace("0", "1")]
    other.layer.lora_A["default"].weight = optimizer.sites[Q].A


def normalised(model, optimizer):
    nn.utils.parametrizations.weight_norm(optimizer.sites[Q].layer.get_base_layer())


def pruned(model, optimizer):
    prune.random_unstructured(optimizer.sites[Q].layer.get_base_layer(), "weight", 0.5)


GONE = {
    normalised: "weight of .* is computed anew",
    pruned: "weight of .* is computed anew.*pruning",
    removed: "'model.layers.0.self_attn.q_proj'.*no longer in the model",
    unloaded: "no longer in the model.*unloaded",
    merged_and_unloaded: "no longer in the model",
    deleted: "'default'.*was deleted",
    switched: r"'other' is active.*set_adapter\('default'\)",
}
MERGED = {merged: "unmerge_adapter", two_active: r"\['default', 'other'\]", disabled: "they are disabled"}
UNMERGEABLE = {
    cast_after_a_knot: r"cast from torch\.float32 to torch\.bfloat16",
    tied: "tied",
    factor_shared: "share a factor",
}


@pytest.mark.parametrize("event", [*GONE, *MERGED, *UNMERGEABLE, injected_again], ids=lambda event: event.__name__)
@pytest.mark.parametrize("steps", [0, 2])
def test_knot_on_a_changed_model_is_refused_with_nothing_changed(event, steps):
    model, optimizer = adopted(steps)
    event(model, optimizer)
    before, knots = copy.deepcopy(model.state_dict()), len(optimizer.chain)
    kind = DisconnectedParametersError if event in GONE or event is injected_again else UnsupportedModelError
    with pytest.raises(kind, match={**GONE, **MERGED, **UNMERGEABLE, injected_again: "make the optimizer last"}[event]):
        optimizer.tie_knot()
    assert len(optimizer.chain) == knots
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("event", [*GONE, *MERGED, cast_after_a_knot], ids=lambda event: event.__name__)
def test_state_of_a_changed_model_is_never_made(event):
    """It could not be loaded again, or would be another model's."""
    model, optimizer = adopted(2)
    event(model, optimizer)
    with pytest.raises(FwloraError, match={**GONE, **MERGED, **UNMERGEABLE}[event]):
        optimizer.state_dict()


@pytest.mark.parametrize("event", [*GONE, *MERGED], ids=lambda event: event.__name__)
@pytest.mark.parametrize("way", ["export_adapter", "merge_and_unload"])
def test_way_out_of_a_changed_model_is_refused(tmp_path, event, way):
    model, optimizer = adopted(4)
    event(model, optimizer)
    with pytest.raises(FwloraError, match={**GONE, **MERGED}[event]):
        optimizer.merge_and_unload() if way == "merge_and_unload" else optimizer.export_adapter(tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("event", [switched, two_active, injected_again, factor_shared], ids=lambda e: e.__name__)
def test_first_step_of_a_link_refuses_a_changed_model(event):
    """At the first of all and at the first after a knot: at the latest one link has been in vain."""
    for steps in (0, 3):
        model, optimizer = adopted(steps)
        event(model, optimizer)
        with pytest.raises(FwloraError):
            train(optimizer, model, CASE.batch(), 1)
        assert optimizer.progress.step == steps


# -- what is right to do ----------------------------------------------------------------------------------------------


def put_back(model, optimizer):
    layers = model.get_base_model().model.layers
    layer = layers[0].self_attn.q_proj
    layers[0].self_attn.q_proj = nn.Identity()
    layers[0].self_attn.q_proj = layer


def chosen_again(model, optimizer):
    switched(model, optimizer)
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
    whole, expected = adopted(5)
    model, optimizer = adopted(2)
    model.merge_adapter()
    model.unmerge_adapter()
    train(optimizer, model, CASE.batch(), 3)
    assert len(optimizer.chain) == 1
    torch.testing.assert_close(output(model, CASE.batch()), output(whole, CASE.batch()), rtol=1e-4, atol=1e-5)
    saved = copy.deepcopy(optimizer.state_dict())
    other = ChainLoRAOptimizer(get_peft_model(CASE.model(), LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj"])))
    with pytest.warns(UserWarning, match="differ from the saved ones by rounding"):
        other.load_state_dict(saved)
    torch.testing.assert_close(other.delta(Q), expected.delta(Q), rtol=1e-3, atol=1e-5)


def test_model_cast_before_the_first_knot_trains_in_its_new_precision():
    case = CASES["linear"]
    model = case.model()
    optimizer = make_chain(case, model)
    model.double()
    batch = {"x": case.batch()["x"].double()}
    train(optimizer, model, batch, 4)
    assert len(optimizer.chain) == 1
    assert optimizer.sites["layers.0"].weight.dtype == optimizer.sites["layers.0"].A.dtype == torch.float64


def test_model_cast_between_steps_is_told_of_with_the_way_out():
    case = CASES["linear"]
    model = case.model()
    optimizer = make_chain(case, model)
    train(optimizer, model, case.batch(), 2)
    model.double()
    batch = {"x": case.batch()["x"].double()}
    with pytest.raises(DisconnectedParametersError, match=r"cast to torch\.float64.*Cast it back"):
        train(optimizer, model, batch, 1)
    assert optimizer.progress.step == 2
    model.float()
    train(optimizer, model, case.batch(), 2)
    assert len(optimizer.chain) == 1


def test_model_cast_before_a_load_is_judged_by_what_was_loaded(chained):
    _, optimizer, _ = chained("llama", steps=4, dtype=torch.bfloat16)
    _, other, _ = chained("llama")
    other.state_dict()
    for site in other.sites.values():
        site.layer.get_base_layer().bfloat16()
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    other.tie_knot()
    assert len(other.chain) == 2


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
