"""What is easy to get wrong in silence: layers that LoRA twins do not follow, things trained beside the factors, files."""

from __future__ import annotations

import copy
import warnings

import numpy as np
import pytest
import torch
from peft import IA3Config, LoraConfig, PeftModel, get_peft_model
from torch import nn

from fwlora import At, ChainLoRAOptimizer, Decay, Every, Never, StepDown
from fwlora.errors import (
    ArgumentError,
    LostUpdatesWarning,
    OwnershipError,
    RunningStatisticsWarning,
    ShortLinkWarning,
    SkippedLayersWarning,
    UnsupportedModelError,
)
from tests.conftest import train
from tests.tables import CASES, loss_of, output, tiny_llama


class Holder(nn.Module):
    """Any layer behind an ordinary one."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.first, self.odd = nn.Linear(4, 4), layer


ODD = {
    "MultiheadAttention": (lambda: nn.MultiheadAttention(4, 2), "odd.out_proj"),
    "TransformerEncoderLayer": (lambda: nn.TransformerEncoderLayer(4, 2, 8), "odd.linear1"),
    "padding_mode='circular'": (lambda: nn.Conv1d(4, 4, 3, padding=1, padding_mode="circular"), "odd"),
    "dilation": (lambda: nn.Conv2d(4, 4, 3, padding="same", dilation=2), "odd"),
    "groups=2": (lambda: nn.Conv1d(4, 4, 1, groups=2), "odd"),
}


@pytest.mark.parametrize("reason", ODD)
def test_layer_that_a_merge_would_change_is_refused_by_name_and_skipped_by_default(reason):
    build, name = ODD[reason]
    with pytest.raises(UnsupportedModelError, match=reason):
        ChainLoRAOptimizer(Holder(build()), target_modules=[name])
    with pytest.warns(SkippedLayersWarning, match=reason):
        optimizer = ChainLoRAOptimizer(Holder(build()))
    assert name not in optimizer.sites
    assert "first" in optimizer.sites


def test_embedding_that_renormalises_in_place_is_refused():
    with pytest.raises(UnsupportedModelError, match="max_norm"):
        ChainLoRAOptimizer(Holder(nn.Embedding(5, 4, max_norm=1.0)), target_modules=["odd"])


def test_model_that_is_one_layer_is_refused_with_the_way_out():
    with pytest.raises(UnsupportedModelError, match=r"nn\.Sequential"):
        ChainLoRAOptimizer(nn.Linear(3, 3))


def test_adapter_loaded_for_inference_is_refused_with_the_way_out(chained, tmp_path):
    _, optimizer, _ = chained("llama", steps=4)
    optimizer.export_adapter(tmp_path)
    with pytest.raises(UnsupportedModelError, match="is_trainable=True"):
        ChainLoRAOptimizer(PeftModel.from_pretrained(CASES["llama"].model(), str(tmp_path)))


def test_model_with_another_kind_of_adapter_is_refused_and_left_as_it_was():
    config = IA3Config(target_modules=["k_proj"], feedforward_modules=[], modules_to_save=["lm_head"])
    model = get_peft_model(tiny_llama(), config)
    before = [type(module) for module in model.modules()]
    with pytest.raises(UnsupportedModelError, match="another kind"):
        ChainLoRAOptimizer(model)
    assert [type(module) for module in model.modules()] == before


# -- beside the factors -----------------------------------------------------------------------------------------------


def test_tied_module_cannot_be_trained_in_full():
    with pytest.raises(UnsupportedModelError, match="tied"):
        ChainLoRAOptimizer(tiny_llama(tie_word_embeddings=True), train_modules=["embed_tokens"])


def conv_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2)).train()


def steps(model, optimizer, count):
    for _ in range(count):
        x = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(optimizer.progress.step))
        optimizer.zero_grad()
        (model(2 * x + 1) - 1).square().mean().backward()
        optimizer.step()


def test_running_statistics_outside_train_modules_are_warned_of():
    with pytest.warns(RunningStatisticsWarning, match=r"1: running statistics.*train_modules"):
        ChainLoRAOptimizer(conv_net())


def test_running_statistics_of_trained_modules_are_saved_and_exported(tmp_path):
    model = conv_net()
    optimizer = ChainLoRAOptimizer(model, 0.02, train_modules=["1"], knots=Every(3))
    steps(model, optimizer, 4)
    saved = copy.deepcopy(optimizer.state_dict())
    optimizer.export_adapter(tmp_path)
    x = torch.randn(4, 3, 8, 8)
    expected = model.eval()(x)
    reloaded = PeftModel.from_pretrained(conv_net(), str(tmp_path)).eval()
    torch.testing.assert_close(reloaded(x), expected, rtol=1e-5, atol=1e-6)

    other_model = conv_net()
    other = ChainLoRAOptimizer(other_model, 0.02, train_modules=["1"], knots=Every(3))
    other.load_state_dict(saved)
    assert torch.equal(other_model.eval()(x), expected)


def test_parameter_that_no_adapter_can_hold_is_refused_at_export_with_nothing_written(tmp_path):
    model = nn.Sequential(Holder(nn.Linear(4, 4)), nn.Linear(4, 2))
    model[0].scale = nn.Parameter(torch.ones(4))
    optimizer = ChainLoRAOptimizer(model, target_modules=["0.first"])
    optimizer.add_param_group({"params": [model[0].scale]})
    with pytest.raises(ArgumentError, match="merge_and_unload"):
        optimizer.export_adapter(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_added_parameter_is_unfrozen_and_its_whole_module_exported(tmp_path):
    def build() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))

    model, x = build(), torch.randn(3, 4)
    optimizer = ChainLoRAOptimizer(model, 0.1, target_modules=["0"])
    optimizer.add_param_group({"params": [("weight", model[1].weight)]})
    for _ in range(2):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
    assert not torch.equal(model[1].weight, build()[1].weight)
    optimizer.export_adapter(tmp_path)
    torch.testing.assert_close(PeftModel.from_pretrained(build(), str(tmp_path))(x), model(x), rtol=1e-5, atol=1e-6)


def test_module_to_save_named_again_in_train_modules_is_trained_once():
    config = LoraConfig(target_modules=["q_proj"], modules_to_save=["lm_head"])
    model = get_peft_model(tiny_llama(), config)
    optimizer = ChainLoRAOptimizer(model, train_modules=["lm_head"])
    (trained,) = (group["params"] for group in optimizer.param_groups if group["role"] == "trained")
    assert len(trained) == 1
    assert not model.get_base_model().lm_head.original_module.weight.requires_grad


def test_rollback_takes_the_trained_copy_and_not_the_original_of_a_module_to_save():
    config = LoraConfig(target_modules=["q_proj"], modules_to_save=["lm_head"])
    model = get_peft_model(CASES["llama"].model(), config)
    base = CASES["llama"].model().state_dict()
    optimizer = ChainLoRAOptimizer(model, 0.02, knots=Every(3))
    batch = CASES["llama"].batch()
    train(optimizer, model, batch, 3)
    head = model.get_base_model().lm_head.modules_to_save["default"].weight
    at_knot = head.detach().clone()
    train(optimizer, model, batch, 2)
    with pytest.raises(ArgumentError, match="trained in full"):
        optimizer.rollback(1, original=base)
    optimizer.rollback(1, original=base | {"lm_head.modules_to_save.default.weight": at_knot})
    assert torch.equal(head, at_knot)


def test_live_link_with_a_bias_alone_is_folded_in_too(chained):
    model, optimizer, batch = chained("opt", steps=3)
    site = next(iter(optimizer.sites.values()))
    with torch.no_grad():
        site.bias.fill_(0.5)
    expected = output(model, batch)
    torch.testing.assert_close(output(optimizer.merge_and_unload(), batch), expected, rtol=1e-5, atol=1e-6)


# -- numbers ----------------------------------------------------------------------------------------------------------


def test_half_precision_factors_sum_as_they_were_merged():
    config = LoraConfig(r=2, target_modules=["q_proj"])
    model = get_peft_model(CASES["llama"].model(), config).to(torch.float32)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.bfloat16()
    optimizer = ChainLoRAOptimizer(model, knots=Never())
    site = next(iter(optimizer.sites.values()))
    before = site.weight.detach().clone()
    with torch.no_grad():
        site.B.normal_()
    optimizer.tie_knot()
    torch.testing.assert_close(optimizer.delta(site.name), site.weight.detach() - before, rtol=0, atol=1e-6)


def test_half_precision_weight_never_becomes_infinite():
    model = nn.Sequential(nn.Linear(3, 3, bias=False)).half()
    optimizer = ChainLoRAOptimizer(model, rank=1, knots=Never())
    with torch.no_grad():
        optimizer.sites["0"].A.fill_(1.0)
        optimizer.sites["0"].B.fill_(1e5)
    with pytest.warns(LostUpdatesWarning, match=r"largest number of torch\.float16"):
        record = optimizer.tie_knot()
    assert optimizer.sites["0"].weight.isfinite().all()
    assert record.gains["0"] < 0.9, "the ledger says that the merge fell short"


def test_tensor_rates_of_the_groups_are_scheduled_apart():
    optimizer = ChainLoRAOptimizer(tiny_llama(), torch.tensor(0.01), train_modules=["norm"])
    rates = [group["lr"] for group in optimizer.param_groups]
    assert len({id(rate) for rate in rates}) == 3


def test_numpy_seed_is_a_seed(chained, tmp_path):
    _, optimizer, _ = chained(seed=np.int64(3))
    optimizer.load(optimizer.save(tmp_path).parent)
    assert optimizer.seed == 3


# -- schedules and warnings -------------------------------------------------------------------------------------------


def test_decay_with_a_last_link_of_unknown_length_is_refused_at_the_first_step(chained):
    model, optimizer, batch = chained(knots=At([3]), link_lr=Decay())
    with pytest.raises(ArgumentError, match="total_steps"):
        train(optimizer, model, batch, 1)
    assert optimizer.progress.step == 0


def test_warning_points_at_the_users_line_under_a_scheduler(chained):
    model, optimizer, batch = chained()
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    loss_of(model, batch).backward()
    with pytest.warns(ShortLinkWarning) as caught:
        optimizer.step()
    assert caught[0].filename == __file__


# -- models that hold models ------------------------------------------------------------------------------------------


class Around(nn.Module):
    """A PeftModel inside a model of the user's."""

    def __init__(self) -> None:
        super().__init__()
        inner = get_peft_model(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), LoraConfig(target_modules=["0"]))
        self.lm, self.head = inner, nn.Linear(4, 2)


def test_refusal_leaves_the_lora_layers_of_a_held_peft_model():
    model = Around()
    layers = sum("lora_A" in name for name, _ in model.named_parameters())
    with pytest.raises(UnsupportedModelError, match="silently not be trained"):
        ChainLoRAOptimizer(model)
    first = ChainLoRAOptimizer(model, train_modules=["head"])
    with pytest.raises(OwnershipError):
        ChainLoRAOptimizer(model, train_modules=["head"])
    assert sum("lora_A" in name for name, _ in model.named_parameters()) == layers
    assert len(first.sites) == 1


def test_buffers_that_were_replaced_are_saved_as_they_are():
    """`.double()` and `.to(device)` make new buffer objects."""
    model = conv_net()
    optimizer = ChainLoRAOptimizer(model, train_modules=["1"], target_modules=["0"])
    model.double()
    model(torch.randn(8, 3, 8, 8).double() + 1)
    saved = optimizer.state_dict()["fwlora"]["trained"]["1.running_mean"]
    assert torch.equal(saved, model[1].running_mean)
    assert saved.any()


def test_module_with_buffers_alone_is_exported(tmp_path):
    def build() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3, affine=False)).train()

    model = build()
    optimizer = ChainLoRAOptimizer(model, train_modules=["1"])
    model(torch.randn(16, 4) + 2)
    optimizer.export_adapter(tmp_path)
    x = torch.randn(3, 4)
    reloaded = PeftModel.from_pretrained(build(), str(tmp_path)).eval()
    torch.testing.assert_close(reloaded(x), model.eval()(x))


def test_module_whose_name_ends_a_sites_name_is_refused_at_export(tmp_path):
    model = nn.Sequential(*[nn.Linear(3, 3) for _ in range(15)])
    optimizer = ChainLoRAOptimizer(model, target_modules=["14"], train_modules=["4"])
    with pytest.raises(ArgumentError, match="ends of names"):
        optimizer.export_adapter(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_export_after_unloading_holds_the_trained_copy(tmp_path):
    base = CASES["llama"].model()
    model = get_peft_model(copy.deepcopy(base), LoraConfig(target_modules=["q_proj"], modules_to_save=["lm_head"]))
    optimizer = ChainLoRAOptimizer(model, 0.02)
    batch = CASES["llama"].batch()
    train(optimizer, model, batch, 2)
    plain = optimizer.merge_and_unload()
    optimizer.export_adapter(tmp_path)
    reloaded = PeftModel.from_pretrained(base, str(tmp_path)).eval()
    torch.testing.assert_close(output(reloaded, batch), output(plain.eval(), batch), rtol=1e-5, atol=1e-6)


def test_batch_norm_that_peft_saves_is_not_warned_of():
    config = LoraConfig(target_modules=["0"], modules_to_save=["1"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ChainLoRAOptimizer(conv_net(), lora_config=config)


def test_rollback_refuses_trained_values_of_another_shape_with_nothing_changed(chained):
    original = CASES["llama"].model().state_dict()
    _, optimizer, _ = chained("llama", steps=4, train_modules=["norm"])
    with pytest.raises(ArgumentError, match=r"\(model\.norm\.weight\)"):
        optimizer.rollback(0, original=original | {"model.norm.weight": torch.ones(1)})
    assert len(optimizer.chain) == len(optimizer.ledger) == 1


def test_compacted_state_loads_into_an_optimizer_of_that_rank(chained):
    _, optimizer, _ = chained(rank=StepDown([5, 3]), alpha=1, steps=4)
    optimizer.compact()
    _, other, _ = chained(rank=3, alpha=0.6)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert torch.equal(other.delta("layers.0"), optimizer.delta("layers.0"))


def test_exact_key_in_a_later_file_beats_an_ending_in_an_earlier_one(tmp_path):
    from safetensors.torch import save_file

    model = CASES["linear"].model()
    optimizer = ChainLoRAOptimizer(model, 0.02, target_modules=["layers.0"], knots=Every(3))
    weights = CASES["linear"].model().state_dict()
    save_file({f"aux.{name}": value + 1 for name, value in weights.items()}, tmp_path / "a.safetensors")
    save_file(dict(weights), tmp_path / "b.safetensors")
    train(optimizer, model, CASES["linear"].batch(), 4)
    optimizer.rollback(0, original=tmp_path)
    assert torch.equal(optimizer.sites["layers.0"].weight, weights["layers.0.weight"])
