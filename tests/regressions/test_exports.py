"""Adapters that held a part of the chain, did not load, or were summed at the wrong scale.

Each test puts one and the same check to a chain and to what the peer does; the peer must fail it.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import Tensor, nn

from fwlora import ChainLoRAOptimizer, Every, Never, StepDown
from fwlora.errors import UnsupportedModelError
from tests.conftest import train
from tests.tables import CASES, output

LLAMA = CASES["llama"]
TARGETS = ["q_proj", "v_proj"]


def error_on_the_original(folder: Path, expected: Tensor) -> float:
    """Relative error of what PEFT computes with the adapter on the original base."""
    reloaded = PeftModel.from_pretrained(LLAMA.model(), str(folder)).eval()
    with torch.no_grad():
        return ((output(reloaded, LLAMA.batch()) - expected).norm() / expected.norm()).item()


def test_13_one_adapter_is_the_whole_chain_on_the_original_base(tmp_path):
    """huggingface/peft#2264, hiyouga/LlamaFactory#6342, gradients-ai/G.O.D#1180: only the last adapter is kept of a chain."""
    model = get_peft_model(LLAMA.model(), LoraConfig(r=2, target_modules=TARGETS))
    optimizer = ChainLoRAOptimizer(model, 0.02, knots=Every(3))
    train(optimizer, model, LLAMA.batch(), 7)
    expected = output(model, LLAMA.batch())
    optimizer.export_adapter(tmp_path / "chain")
    assert error_on_the_original(tmp_path / "chain", expected) <= 1e-6
    assert [path.name for path in (tmp_path / "chain").glob("*.safetensors")] == ["adapter_model.safetensors"]

    model.save_pretrained(str(tmp_path / "last link"))
    assert error_on_the_original(tmp_path / "last link", expected) > 1e-3


def loads_as_saved(folder: Path, deltas: dict[str, Tensor]) -> bool:
    """Whether PEFT reads the folder back, and what it computes at each site is what was meant."""
    try:
        reloaded = PeftModel.from_pretrained(LLAMA.model(), str(folder)).get_base_model()
    except RuntimeError:  # sizes differ from what the configuration says
        return False
    found = {name: reloaded.get_submodule(name).get_delta_weight("default") for name in deltas}  # type: ignore[operator]
    return all(torch.allclose(found[name], delta, rtol=1e-4, atol=1e-6) for name, delta in deltas.items())


def test_14_exported_configuration_is_that_of_the_tensors(tmp_path):
    """huggingface/peft#2075, #3737, huggingface/diffusers#14409: a rank or a scale in the config and not in the file."""
    config = LoraConfig(r=4, lora_alpha=6, target_modules=TARGETS, rank_pattern={"v_proj": 3}, use_rslora=True)
    model = get_peft_model(LLAMA.model(), config)
    optimizer = ChainLoRAOptimizer(model, 0.02, rank=StepDown([4, 2]), knots=Every(3))
    train(optimizer, model, LLAMA.batch(), 5)
    deltas = {name: optimizer.delta(name) for name in optimizer.sites}
    optimizer.export_adapter(tmp_path / "chain")
    assert loads_as_saved(tmp_path / "chain", deltas)

    site = next(iter(optimizer.sites.values()))
    written = json.loads((tmp_path / "chain" / "adapter_config.json").read_text())
    for name, change in {"no ranks of its own": {"rank_pattern": {}}, "no scales": {"alpha_pattern": {}}}.items():
        peer = tmp_path / name
        peer.mkdir()
        (peer / "adapter_model.safetensors").write_bytes((tmp_path / "chain" / "adapter_model.safetensors").read_bytes())
        (peer / "adapter_config.json").write_text(json.dumps(written | change))
        assert not loads_as_saved(peer, deltas)

    site.layer.update_layer(site.adapter, r=8, lora_alpha=6, config=LoraConfig())  # the config is not told
    model.save_pretrained(str(tmp_path / "grown"))
    assert not loads_as_saved(tmp_path / "grown", {})


def two_adapters(base: nn.Module, config: LoraConfig) -> PeftModel:
    """Two trained adapters of one kind on a base, both in force."""
    model = get_peft_model(base, copy.deepcopy(config))  # type: ignore[arg-type]
    model.add_adapter("second", copy.deepcopy(config))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.5)
    model.base_model.set_adapter(["default", "second"])
    return model  # type: ignore[return-value]


def error_of_a_sum(model: PeftModel, batch: dict[str, Tensor]) -> float:
    """By how much PEFT's own concatenation of the two computes something else than the two do."""
    both = output(model, batch)
    model.base_model.add_weighted_adapter(["default", "second"], [1.0, 1.0], "sum", combination_type="cat")
    model.set_adapter("sum")
    return ((output(model, batch) - both).norm() / both.norm()).item()


@pytest.mark.parametrize("option", ["use_rslora", "lora_bias", "plain"])
def test_15_links_of_every_kind_sum_to_what_was_trained(tmp_path, option):
    """huggingface/peft#3761, #3449, #2733: `add_weighted_adapter("cat")` of rsLoRA or lora_bias is wrong in silence."""
    case = CASES["opt"]
    chosen = {} if option == "plain" else {option: True}
    config = LoraConfig(r=2, lora_alpha=4, target_modules=TARGETS, **chosen)
    model = two_adapters(case.model(), config)
    both = output(model, case.batch())

    # A chain of which each is a link.
    plain = case.model()
    optimizer = ChainLoRAOptimizer(plain, lora_config=copy.deepcopy(config), knots=Never())
    for adapter in ("default", "second"):
        with torch.no_grad():
            for name, site in optimizer.sites.items():
                layer = model.get_base_model().get_submodule(name)
                for mine, theirs in ((site.A, layer.lora_A[adapter].weight), (site.B, layer.lora_B[adapter].weight)):  # type: ignore[index]
                    mine.copy_(theirs)
                if site.bias is not None:
                    site.bias.copy_(layer.lora_B[adapter].bias)  # type: ignore[index]
        optimizer.tie_knot()
    assert (output(plain, case.batch()) - both).norm() <= 1e-5 * both.norm()
    optimizer.export_adapter(tmp_path)
    reloaded = PeftModel.from_pretrained(case.model(), str(tmp_path)).eval()
    assert (output(reloaded, case.batch()) - both).norm() <= 1e-5 * both.norm()

    error = error_of_a_sum(model, case.batch())
    assert error <= 1e-5 if option == "plain" else error > 1e-2


def test_15_dora_is_refused_and_not_summed():
    """huggingface/peft#3761: DoRA's update is no sum of low-rank links; summed as one it is wrong in silence."""
    config = LoraConfig(r=2, lora_alpha=4, target_modules=TARGETS, use_dora=True)
    with pytest.raises(UnsupportedModelError, match="use_dora=False"):
        ChainLoRAOptimizer(LLAMA.model(), lora_config=copy.deepcopy(config))

    peer = two_adapters(LLAMA.model(), config)
    assert error_of_a_sum(peer, LLAMA.batch()) > 1e-2


def test_runner_up_adapter_stays_under_a_servers_rank(chained, tmp_path):
    """vllm-project/vllm#2847: servers have a `max_lora_rank`, and a long chain's exact rank is beyond it."""

    def largest_rank(folder: Path) -> int:
        tensors = load_file(folder / "adapter_model.safetensors")
        return max(len(value) for name, value in tensors.items() if "lora_A" in name)

    _, optimizer, _ = chained("llama", steps=25, rank=2)
    optimizer.export_adapter(tmp_path / "exact")
    report = optimizer.export_adapter(tmp_path / "cut", max_rank=16)
    assert largest_rank(tmp_path / "exact") == 18
    assert largest_rank(tmp_path / "cut") == 16 == json.loads((tmp_path / "cut" / "adapter_config.json").read_text())["r"]
    assert 0 < max(report.errors.values()) < 0.1
