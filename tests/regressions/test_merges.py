"""Merges that merged nothing, lost half of it, took the memory of a whole update or changed a second layer.

Each test puts one and the same check to a chain and to what the peer does; the peer must fail it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.functional import inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fwlora import ChainLoRAOptimizer, Never
from fwlora.errors import UnsupportedModelError
from fwlora.layers.sites import Site
from tests.conftest import make_chain, train
from tests.tables import CASES, QUANTISED, loss_of, output, tiny_llama

LORA = {"r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "v_proj"]}


def peft_run(base: nn.Module, batch: dict[str, Tensor], steps: int = 3, **config) -> tuple[nn.Module, list[LoraLayer]]:
    """PEFT's LoRA after some steps of AdamW, and its layers."""
    model = get_peft_model(base, LoraConfig(**{**LORA, **config}))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 0.02)
    for _ in range(steps):
        optimizer.zero_grad()
        loss_of(model, batch).backward()
        optimizer.step()
    return model, [m for m in model.modules() if isinstance(m, LoraLayer)]


def change(outputs: Callable[[], Tensor], event: Callable[[], object]) -> float:
    """By how much an event changes what is computed, relatively."""
    with torch.no_grad():
        before = outputs().double()
        event()
        return ((outputs().double() - before).norm() / before.norm()).item()


def merge_that_is_not_called(layers: list[LoraLayer]) -> None:
    for layer in layers:
        layer.merge
        layer.reset_lora_parameters("default", True)


def pruned_for_merged(layers: list[LoraLayer]) -> None:
    for layer in layers:
        layer.lora_B["default"].weight.zero_()  # type: ignore[operator]


@pytest.mark.parametrize("merge_of_the_peer", [merge_that_is_not_called, pruned_for_merged])
def test_02_knot_keeps_what_was_learned(chained, merge_of_the_peer):
    """MakazhanAlpamys/Soup#693, Lightning-ReLoRA: `merge_weights` without `()`, or B pruned: what was learned is gone."""
    model, optimizer, batch = chained("llama", steps=3, knots=Never())
    base = CASES["llama"].model()
    assert change(lambda: output(model, batch), optimizer.tie_knot) <= 1e-6
    assert any(not torch.equal(site.weight, base.get_submodule(name).weight) for name, site in optimizer.sites.items())

    peer, layers = peft_run(base, batch)
    assert change(lambda: output(peer, batch), lambda: merge_of_the_peer(layers)) > 1e-3


def arrived(W: Tensor, original: Tensor, asked: Tensor) -> float:
    """The part of an update of known size that has arrived in W: ``<W - W_0, D> / |D|^2``."""
    D = asked.double()
    return (torch.sum((W.double() - original.double()) * D) / D.square().sum()).item()


def test_07_small_links_arrive_in_a_bf16_weight():
    """huggingface/peft#1388, #1836, #2502, pytorch/torchtune#1101: each bf16 merge rounds most of a small update away."""
    torch.manual_seed(1)
    base = nn.Sequential(nn.Linear(64, 64, bias=False)).bfloat16()
    nn.init.normal_(base[0].weight, std=0.02)
    peer = inject_adapter_in_model(LoraConfig(r=2, lora_alpha=2, target_modules=["0"]), copy.deepcopy(base))[0]
    original = base[0].weight.detach().clone()
    optimizer = ChainLoRAOptimizer(base, rank=2, alpha=2, target_modules=["0"], knots=Never())
    site = optimizer.sites["0"]
    asked = torch.zeros(64, 64)
    for _ in range(30):
        A, B = torch.randn(2, 64), torch.randn(64, 2)
        B *= 1e-3 * original.float().norm() / (B @ A).norm()
        asked += B @ A
        with torch.no_grad():
            for factors in ((site.A, site.B), (peer.lora_A["default"].weight, peer.lora_B["default"].weight)):
                for factor, value in zip(factors, (A, B), strict=True):
                    factor.copy_(value)
        optimizer.tie_knot()
        peer.merge()
        peer.merged_adapters.clear()
    assert arrived(site.weight.detach(), original, asked) == pytest.approx(1, abs=0.05)
    assert arrived(peer.get_base_layer().weight.detach(), original, asked) < 0.65


@pytest.mark.parametrize("kind", QUANTISED)
@pytest.mark.filterwarnings("ignore:Merge lora module to:UserWarning")  # PEFT says so and goes on
def test_08_knot_on_a_quantised_base_rounds_nothing(chained, kind):
    """huggingface/peft#2321, #1043, huggingface/transformers#31293, unslothai/unsloth#1519: each merge requantises the base."""
    model, optimizer, batch = chained(kind, steps=3, knots=Never())
    codes = {name: site.weight.detach().clone() for name, site in optimizer.sites.items()}
    peer = copy.deepcopy(model)
    for _ in range(3):
        assert change(lambda: output(model, batch), optimizer.tie_knot) <= 1e-6
        train(optimizer, model, batch, 2)
    assert all(torch.equal(site.weight, codes[name]) for name, site in optimizer.sites.items())

    layers = [m for m in peer.modules() if isinstance(m, LoraLayer)]
    assert change(lambda: output(peer, batch), lambda: [layer.merge() for layer in layers]) > 1e-3  # type: ignore[operator]
    assert not all(torch.equal(layer.get_base_layer().weight, codes[name]) for name, layer in zip(codes, layers, strict=True))


class Largest(TorchDispatchMode):
    """Entries of the largest tensor that an operation returns in memory of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.entries = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given = {t.untyped_storage().data_ptr() for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        out = func(*args, **(kwargs or {}))
        for t in tree_leaves(out):
            if isinstance(t, Tensor) and t.untyped_storage().data_ptr() not in given:
                self.entries = max(self.entries, t.numel())
        return out


def test_09_knot_makes_no_matrix_of_a_weights_size():
    """axolotl-ai-cloud/axolotl#1414 ("ooms after the first relora restart"), huggingface/peft#1939, unslothai/unsloth#1667."""
    layer = nn.Linear(1024, 512, bias=False)
    peer = inject_adapter_in_model(LoraConfig(r=2, target_modules=["0"]), nn.Sequential(copy.deepcopy(layer)))
    optimizer = ChainLoRAOptimizer(nn.Sequential(layer), rank=2, target_modules=["0"], knots=Never())
    with Largest() as knot:
        optimizer.tie_knot()
    with Largest() as merge:
        peer[0].merge()  # type: ignore[operator, index]
    assert knot.entries <= layer.weight.numel() // 8
    assert merge.entries == layer.weight.numel()


def test_09_knot_that_ran_out_of_memory_is_completed_and_not_begun_again(chained, monkeypatch):
    """hiyouga/LlamaFactory#3273, axolotl-ai-cloud/axolotl#1414: what was merged before the memory ran out counts, and once."""
    whole, expected, batch = chained("llama", steps=3, knots=Never())
    expected.tie_knot()
    model, optimizer, _ = chained("llama", steps=3, knots=Never())
    merges, calls = Site.merges, []

    def full_at_the_third_site(self, *args):
        calls.append(1)
        if len(calls) == 3:
            raise torch.OutOfMemoryError
        return merges(self, *args)

    def knot_and_retry():
        with pytest.raises(torch.OutOfMemoryError):
            optimizer.tie_knot()
        optimizer.state_dict()

    monkeypatch.setattr(Site, "merges", full_at_the_third_site)
    assert change(lambda: output(model, batch), knot_and_retry) <= 1e-6
    assert len(optimizer.chain) == 1
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), whole.parameters(), strict=True))

    peer, layers = peft_run(CASES["llama"].model(), batch)

    def loop_and_retry():
        for layer in [*layers[:2], *layers]:  # out of memory at the third, and from the first on again
            layer.get_base_layer().weight.add_(layer.get_delta_weight("default"))  # type: ignore[operator]
        for layer in layers:
            layer.reset_lora_parameters("default", True)

    assert change(lambda: output(peer, batch), loop_and_retry) > 1e-3


@pytest.mark.filterwarnings("ignore:.*tie_word_embeddings.*:UserWarning")  # PEFT says so and goes on
def test_10_tied_weight_is_never_merged_into():
    """huggingface/peft#2018, huggingface/transformers#45127, hiyouga/LlamaFactory#6749: a tied embedding changes too."""
    case = SimpleNamespace(batch=CASES["llama"].batch(), base=lambda: tiny_llama(tie_word_embeddings=True).eval())
    model = case.base()
    with pytest.raises(UnsupportedModelError, match=r"tied.*lm_head = .*embed_tokens.*untie"):
        ChainLoRAOptimizer(model, target_modules=["q_proj", "lm_head"])
    optimizer = make_chain(CASES["llama"], model, knots=Never())
    train(optimizer, model, case.batch, 3)
    assert change(lambda: output(model, case.batch), optimizer.tie_knot) <= 1e-6

    peer, layers = peft_run(case.base(), case.batch, target_modules=["lm_head"])
    assert change(lambda: output(peer, case.batch), lambda: layers[0].merge()) > 1e-3  # type: ignore[operator]
