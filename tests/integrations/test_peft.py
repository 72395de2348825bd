"""PEFT models adopted as they stand, and adapters that PEFT reads."""

from __future__ import annotations

import json

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from fwlora import At, ChainLoRAOptimizer, Every, StepDown
from fwlora.errors import ArgumentError, OwnershipError, UnsupportedModelError


def _peft(bench, **config):
    options = {"r": 4, "lora_alpha": 8, "target_modules": bench.targets, "task_type": "CAUSAL_LM", **config}
    return get_peft_model(bench.llama(), LoraConfig(**options))


def _difference(bench, one, other):
    return float((bench.logits(one) - bench.logits(other)).abs().max())


# -- adoption ---------------------------------------------------------------------------------------------------------


def test_adopted_factors_are_left_as_they_stand(bench):
    """A and B of a model that brings its own are the same Parameters with the same values."""
    model = _peft(bench, init_lora_weights=False)
    before = {name: (id(p), p.detach().clone()) for name, p in model.named_parameters()}
    chain = bench.adopt(model)
    after = dict(model.named_parameters())
    assert after.keys() == before.keys()
    assert all(id(after[name]) == key and torch.equal(after[name], value) for name, (key, value) in before.items())
    assert {id(p) for p in chain.parameters()} == {id(p) for p in after.values() if p.requires_grad}


def test_site_names_have_no_prefix_of_peft(bench):
    """The names of an adopted model and of a plain one are the same, and so are the draws."""
    adopted, plain = bench.adopt(_peft(bench)), bench.chain(bench.llama())
    assert (
        list(adopted.sites) == list(plain.sites) == [f"model.layers.{i}.self_attn.{m}" for i in (0, 1) for m in bench.targets]
    )
    adopted.tie_knot()
    plain.tie_knot()
    assert all(torch.equal(adopted.sites[name].A, plain.sites[name].A) for name in plain.sites)


@pytest.mark.parametrize("kind", ["plain", "peft"])
def test_site_names_have_no_prefix_of_compile(bench, kind):
    """torch.compile adds `_orig_mod.`, which a state must not know of: it loads into the model as it was before."""
    model = bench.llama() if kind == "plain" else _peft(bench)
    make = bench.chain if kind == "plain" else bench.adopt
    chain = make(torch.compile(model, backend="eager"))
    bench.train(model, chain, range(4))
    fresh = make(bench.llama() if kind == "plain" else _peft(bench))
    assert list(chain.sites) == list(fresh.sites)
    fresh.load_state_dict(chain.state_dict())
    bench.assert_same(bench.facts(fresh), bench.facts(chain))


@pytest.mark.parametrize("inner_base", [False, True], ids=["PeftModel", "its base model"])
def test_adopted_chain_is_the_injected_chain(bench, inner_base):
    """From the same factors, adoption and injection train bit for bit alike."""
    plain = bench.llama()
    injected = bench.chain(plain)
    model = _peft(bench)
    adopted = bench.adopt(model.get_base_model() if inner_base else model)
    with torch.no_grad():
        for name, site in injected.sites.items():
            adopted.sites[name].A.copy_(site.A)
    bench.train(plain, injected, range(8))
    bench.train(model, adopted, range(8))
    bench.assert_same(bench.facts(adopted), bench.facts(injected))
    assert adopted.ledger == injected.ledger


def test_knot_leaves_the_peft_model_unchanged_and_unmerged(bench):
    """W + s B A computed by PEFT is the same before and after; PEFT still trains the factors."""
    model = _peft(bench)
    chain = bench.adopt(model, knots=At([]))
    bench.train(model, chain, range(3))
    before = bench.logits(model)
    chain.tie_knot()
    assert torch.allclose(bench.logits(model), before, rtol=1e-6, atol=1e-6)
    assert not any(site.layer.merged for site in chain.sites.values())
    with model.disable_adapter():
        assert torch.allclose(bench.logits(model), before, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("argument", [{"rank": 4}, {"alpha": 8}, {"target_modules": ["q_proj"]}, {"lora_config": LoraConfig()}])
def test_arguments_of_an_injection_are_refused_for_an_adopted_model(bench, argument):
    """Its layers have a rank, a scale and a place already."""
    with pytest.raises(ArgumentError, match="brings its own LoRA layers"):
        ChainLoRAOptimizer(_peft(bench), **argument)


def test_rank_schedule_masks_an_adopted_model(bench):
    """StepDown([4, 2]): the second link has rank 2 in Parameters of the same shape."""
    model = _peft(bench)
    chain = bench.adopt(model, rank=StepDown([4, 2]))
    bench.train(model, chain, range(7))
    assert [link.factors["model.layers.0.self_attn.q_proj"].rank for link in chain.chain] == [4, 2]
    assert all(site.A.shape[0] == 4 and not site.A[2:].any() for site in chain.sites.values())


def test_patterns_of_ranks_and_alphas_are_adopted(bench, tmp_path):
    """rank_pattern, alpha_pattern and rsLoRA: each site retires its own rank at its own scale, and export sums them."""
    model = _peft(bench, rank_pattern={"v_proj": 2}, alpha_pattern={"q_proj": 3}, use_rslora=True)
    chain = bench.adopt(model)
    bench.train(model, chain, range(4))
    q, v = (chain.chain[0].factors[f"model.layers.0.self_attn.{m}"] for m in bench.targets)
    assert (q.rank, v.rank) == (4, 2)
    assert (q.scale, v.scale) == pytest.approx((3 / 4**0.5, 8 / 2**0.5))
    chain.export_adapter(tmp_path)
    assert _difference(bench, PeftModel.from_pretrained(bench.llama(), str(tmp_path)), model) <= 1e-6


def test_model_with_two_active_adapters_is_refused(bench):
    """A chain trains exactly one."""
    model = _peft(bench)
    model.add_adapter("other", LoraConfig(r=2, target_modules=bench.targets))
    model.base_model.set_adapter(["default", "other"])
    with pytest.raises(UnsupportedModelError, match="active adapters"):
        bench.adopt(model)


def test_chosen_adapter_is_adopted_and_the_others_are_left(bench):
    """set_adapter("other"): its factors are the chain's; "default" keeps its values."""
    model = _peft(bench, init_lora_weights=False)
    model.add_adapter("other", LoraConfig(r=2, target_modules=bench.targets))
    model.set_adapter("other")
    idle = {name: p.detach().clone() for name, p in model.named_parameters() if ".default." in name}
    chain = bench.adopt(model)
    bench.train(model, chain, range(4))
    assert {site.adapter for site in chain.sites.values()} == {"other"}
    assert all(torch.equal(p, idle[name]) for name, p in model.named_parameters() if name in idle)


def test_merged_adapter_is_refused(bench):
    """PEFT's forward bypasses merged factors."""
    model = _peft(bench)
    model.merge_adapter()
    with pytest.raises(UnsupportedModelError, match="merged"):
        bench.adopt(model)


def test_second_chain_on_the_same_model_is_refused(bench):
    """One owner; the next may come when the first is gone."""
    model = _peft(bench)
    chain = bench.adopt(model)
    with pytest.raises(OwnershipError, match="belongs to another chain"):
        bench.adopt(model)
    del chain
    bench.adopt(model)


def test_modules_to_save_train_through_knots_and_are_exported(bench, tmp_path):
    """PEFT's trained copies keep their moments at knots, and the exported adapter brings them."""
    model = _peft(bench, modules_to_save=["lm_head"])
    chain = bench.adopt(model)
    bench.train(model, chain, range(7))
    head = model.get_base_model().lm_head.modules_to_save["default"].weight
    assert chain.state[head]["step"] == 7
    assert not torch.equal(head, bench.llama().lm_head.weight)
    chain.export_adapter(tmp_path)
    reloaded = PeftModel.from_pretrained(bench.llama(), str(tmp_path))
    assert _difference(bench, reloaded, model) <= 1e-6


# -- export -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [2, 3, 4, 7])
@pytest.mark.parametrize("kind", ["plain", "peft"])
def test_exported_adapter_reproduces_the_model(bench, tmp_path, kind, steps):
    """W_0 + sum_i s_i B_i A_i + live link, by PEFT on the pristine base: logits to 1e-6."""
    model = bench.llama() if kind == "plain" else _peft(bench)
    chain = bench.chain(model) if kind == "plain" else bench.adopt(model)
    bench.train(model, chain, range(steps))
    report = chain.export_adapter(tmp_path)
    reloaded = PeftModel.from_pretrained(bench.llama(), str(tmp_path))
    assert _difference(bench, reloaded, model) <= 1e-6
    assert _difference(bench, bench.llama(), model) > 1e-3
    assert set(report.ranks.values()) == {4 * -(-steps // 3)}
    assert _difference(bench, reloaded.merge_and_unload(), model) <= 1e-6


def test_exported_adapter_loads_through_transformers_too(bench, tmp_path):
    """model.load_adapter(dir) and AutoModelForCausalLM.from_pretrained(dir) compute the trained model."""
    base = tmp_path / "base"
    bench.llama().save_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(base).eval()
    chain = bench.chain(model)
    bench.train(model, chain, range(5))
    chain.export_adapter(tmp_path / "adapter")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(base)
    assert config["task_type"] == "CAUSAL_LM"

    loaded = bench.llama()
    loaded.load_adapter(str(tmp_path / "adapter"))
    assert _difference(bench, loaded, model) <= 1e-6
    auto = AutoModelForCausalLM.from_pretrained(tmp_path / "adapter").eval()
    assert _difference(bench, auto, model) <= 1e-6


def test_exported_adapter_starts_a_new_chain(bench, tmp_path):
    """from_pretrained(is_trainable=True) -> a chain whose first link is the old chain; its export is the sum of both."""
    model = bench.llama()
    chain = bench.chain(model)
    bench.train(model, chain, range(5))
    chain.export_adapter(tmp_path / "first")

    second_model = PeftModel.from_pretrained(bench.llama(), str(tmp_path / "first"), is_trainable=True)
    second = bench.adopt(second_model, knots=Every(2))
    start = bench.logits(second_model)
    assert float((start - bench.logits(model)).abs().max()) <= 1e-6
    bench.train(second_model, second, range(3))
    assert len(second.chain) == 1
    second.export_adapter(tmp_path / "second")
    reloaded = PeftModel.from_pretrained(bench.llama(), str(tmp_path / "second"))
    assert _difference(bench, reloaded, second_model) <= 1e-6


def test_save_pretrained_writes_the_live_link_only(bench, tmp_path):
    """PEFT's own save knows nothing of the chain: after a knot its B is zero."""
    model = _peft(bench)
    chain = bench.adopt(model)
    bench.train(model, chain, range(3))
    model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "adapter_model.safetensors")
    assert all(not value.any() for name, value in saved.items() if "lora_B" in name)


def test_merge_and_unload_gives_the_plain_model_back(bench):
    """The base model's own object, no LoRA layer left, the same logits, the pristine names."""
    model = _peft(bench)
    base = model.get_base_model()
    chain = bench.adopt(model)
    bench.train(model, chain, range(5))
    expected = bench.logits(model)
    merged = chain.merge_and_unload()
    assert merged is base
    assert merged.state_dict().keys() == bench.llama().state_dict().keys()
    assert torch.allclose(bench.logits(merged), expected, atol=1e-6)
