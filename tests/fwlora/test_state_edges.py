"""States and files: what is refused, what is copied, what is never overwritten."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

from fwlora import ChainLoRAOptimizer, Every, StepDown
from fwlora.errors import (
    ChainFileError,
    FinishedError,
    StateError,
)
from tests.conftest import assert_same, train
from tests.tables import CASES, output


@pytest.mark.parametrize(
    ("options", "message"), [({"alpha": 32}, "`alpha=`"), ({"lora_bias": True}, "`lora_bias=`")], ids=["alpha", "lora_bias"]
)
def test_state_of_another_scale_or_bias_is_refused(chained, options, message):
    _, optimizer, _ = chained(steps=1, target_modules=["layers.0"])
    _, other, _ = chained(target_modules=["layers.0"], **options)
    with pytest.raises(StateError, match=message):
        other.load_state_dict(optimizer.state_dict())


def test_loaded_document_stays_as_it_was(chained):
    model, optimizer, batch = chained("llama", steps=4, dtype=torch.bfloat16)
    saved = copy.deepcopy(optimizer.state_dict())
    expected = copy.deepcopy(saved["fwlora"]["residuals"])
    optimizer.load_state_dict(saved)
    train(optimizer, model, batch, 3)
    assert all(torch.equal(saved["fwlora"]["residuals"][name], value) for name, value in expected.items())


@pytest.mark.parametrize("call", ["export_adapter", "tie_knot", "delta", "merge_and_unload", "rollback", "compact"])
def test_chain_that_waits_for_its_links_does_nothing_else(chained, tmp_path, call):
    _, optimizer, _ = chained(steps=4)
    saved = optimizer.state_dict()
    del saved["fwlora"]
    _, other, _ = chained()
    other.load_state_dict(saved)
    arguments = {"export_adapter": [tmp_path], "delta": ["layers.0"], "rollback": [0]}.get(call, [])
    with pytest.raises(StateError, match=r"optimizer\.load"):
        getattr(other, call)(*arguments)


def test_bare_state_without_knots_is_refused_by_a_chain_that_has_some(chained):
    _, fresh, _ = chained()
    _, optimizer, _ = chained(steps=4)
    saved = fresh.state_dict()
    del saved["fwlora"]
    with pytest.raises(StateError, match="has tied 1"):
        optimizer.load_state_dict(saved)
    assert optimizer.progress.step == 4


def test_finished_chain_loads_nothing(chained):
    _, optimizer, _ = chained(steps=4)
    saved = copy.deepcopy(optimizer.state_dict())
    optimizer.merge_and_unload()
    with pytest.raises(FinishedError):
        optimizer.load_state_dict(saved)


def test_link_files_of_a_saved_state_are_never_overwritten(chained, tmp_path):
    """Neither by another run in the same folder, nor by this one after a rollback."""
    original = CASES["linear"].model().state_dict()
    model, optimizer, batch = chained(steps=7, chain_dir=tmp_path)
    saved = copy.deepcopy(optimizer.state_dict())
    expected = output(model, batch)
    chained(steps=7, chain_dir=tmp_path, seed=5)
    optimizer.rollback(1, original=original)
    train(optimizer, model, {"x": batch["x"] + 1}, 3)
    fresh_model, fresh, _ = chained(chain_dir=tmp_path)
    fresh.load_state_dict(saved)
    assert torch.equal(output(fresh_model, batch), expected)


def test_refused_load_leaves_the_running_chain_on_disk(chained, tmp_path):
    _, optimizer, _ = chained(steps=7, chain_dir=tmp_path)
    expected = optimizer.delta("layers.0")
    _, stranger, _ = chained(steps=7, lr=0.5)
    foreign = copy.deepcopy(stranger.state_dict())
    with pytest.raises(StateError):
        optimizer.load_state_dict(foreign)
    assert torch.equal(optimizer.delta("layers.0"), expected)


def test_rollback_with_a_missing_link_changes_nothing(chained, tmp_path):
    model, optimizer, batch = chained(steps=7, chain_dir=tmp_path)
    before, progress = output(model, batch), optimizer.progress
    min(tmp_path.iterdir()).unlink()
    with pytest.raises(ChainFileError, match="lacks"):
        optimizer.rollback(1, original=CASES["linear"].model().state_dict())
    assert torch.equal(output(model, batch), before)
    assert optimizer.progress == progress


def test_original_given_as_the_models_own_state_dict_is_copied():
    model = CASES["linear"].model()
    optimizer = ChainLoRAOptimizer(model, 0.02, original=model.state_dict(), knots=Every(3))
    train(optimizer, model, CASES["linear"].batch(), 4)
    optimizer.rollback(0)
    assert torch.equal(optimizer.sites["layers.0"].weight, CASES["linear"].model().layers[0].weight)


def test_export_names_its_layers_so_that_no_other_is_reached(tmp_path):
    """A listed name would also reach `up.fc.0`, which was not adapted."""

    def build() -> nn.Module:
        torch.manual_seed(0)
        return nn.ModuleDict({
            "fc": nn.Sequential(nn.Linear(3, 3)),
            "up": nn.ModuleDict({"fc": nn.Sequential(nn.Linear(3, 3))}),
        })

    model = build()
    optimizer = ChainLoRAOptimizer(model, target_modules=r"fc\.0")
    optimizer.export_adapter(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        reloaded = PeftModel.from_pretrained(build(), str(tmp_path))
    assert sum("lora_A" in name for name, _ in reloaded.named_parameters()) == 1


def test_compact_leaves_alone_what_is_not_masked_and_saves_what_loads(tmp_path):
    base = CASES["llama"].model()
    config = LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj", "v_proj"], rank_pattern={"v_proj": 4})
    model = get_peft_model(copy.deepcopy(base), config)
    optimizer = ChainLoRAOptimizer(model, 0.02, rank=StepDown([4, 2]), knots=Every(3))
    train(optimizer, model, CASES["llama"].batch(), 5)
    kept = next(site for name, site in optimizer.sites.items() if name.endswith("q_proj"))
    moments = optimizer.state[kept.A]["exp_avg"].clone()
    optimizer.compact()
    assert torch.equal(optimizer.state[kept.A]["exp_avg"], moments)
    model.save_pretrained(tmp_path)
    PeftModel.from_pretrained(copy.deepcopy(base), str(tmp_path))


def test_state_of_version_1_loads(chained):
    """It knew neither links that shrink others nor links that look for their direction."""
    model, optimizer, batch = chained("linear", steps=7, knots=Every(3))
    old = copy.deepcopy(optimizer.state_dict())
    old["fwlora"]["version"] = 1
    for later in ("alignment", "shard", "checksum"):
        del old["fwlora"][later]
    for link in old["fwlora"]["links"]:
        del link["shrinks"], link["sha256"]
    for record in old["fwlora"]["ledger"]:
        for name in ("eta", "norms", "gap", "fallbacks"):
            del record[name]
    other_model, other, _ = chained("linear", knots=Every(3))
    other.load_state_dict(old)
    train(optimizer, model, batch, 4)
    train(other, other_model, batch, 4)
    assert_same(model, optimizer, other_model, other)
