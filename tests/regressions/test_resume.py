"""Resumes that lost the merged knots, merged them twice, or went back to the best adapter on another base.

Each test puts one and the same check to a chain and to what the peer does; the peer must fail it.
"""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from torch import Tensor, nn

from fwlora import ChainLoRAOptimizer
from fwlora.errors import StateError
from tests.conftest import assert_same, make_chain, train
from tests.tables import CASES, output

CASE = CASES["linear"]


def through_disk(document: object) -> dict:
    """torch.save, then the strict loader that transformers uses for optimizer.pt."""
    buffer = io.BytesIO()
    torch.save(document, buffer)
    return torch.load(io.BytesIO(buffer.getvalue()), weights_only=True)


def begin(**options) -> tuple[nn.Module, ChainLoRAOptimizer]:
    """A fresh chain on the pristine base."""
    model = CASE.model()
    return model, make_chain(CASE, model, **options)


def adapter(model: nn.Module) -> dict[str, Tensor]:
    """What an adapter's checkpoint holds."""
    return {name: value for name, value in model.state_dict().items() if "lora_" in name}


def load_live_link_and_moments(model: nn.Module, optimizer: ChainLoRAOptimizer, saved: dict) -> None:
    """The checkpoint of an adapter's trainer: the base has never heard of the links before."""
    model.load_state_dict(saved["adapter"], strict=False)
    optimizer.inner.load_state_dict({name: saved["optimizer"][name] for name in ("state", "param_groups")})


def load_chain(model: nn.Module, optimizer: ChainLoRAOptimizer, saved: dict) -> None:
    optimizer.load_state_dict(saved["optimizer"])


def test_05_resume_from_an_adapter_sized_checkpoint_has_every_knot():
    """axolotl-ai-cloud/axolotl (unquantised ReLoRA), huggingface/trl#609, #4713: what was merged is not saved."""
    model, optimizer = begin()
    train(optimizer, model, CASE.batch(), 7)
    saved = through_disk({"optimizer": optimizer.state_dict(), "adapter": adapter(model)})
    losses = train(optimizer, model, CASE.batch(), 2)

    def resumed_losses(load) -> list[float]:
        other_model, other = begin()
        load(other_model, other, saved)
        other._course.step = 7  # the batches that follow; the chain has them from its state
        return train(other, other_model, CASE.batch(), 2)

    assert resumed_losses(load_chain) == losses
    assert resumed_losses(load_live_link_and_moments) != pytest.approx(losses, rel=1e-3)


class Projector:
    """An object of the optimizer's own in its state."""

    def __init__(self, rank: int) -> None:
        self.rank = rank


def test_05_state_is_read_by_the_strict_loader(chained):
    """jiaweizzhao/GaLore#35, modelscope/ms-swift#10161: an object in the state, and `weights_only=True` refuses it."""
    _, optimizer, _ = chained(steps=7)
    document = optimizer.state_dict()
    assert through_disk(document).keys() == document.keys()

    document["state"][0]["projector"] = Projector(4)
    with pytest.raises(pickle.UnpicklingError, match="Projector"):
        through_disk(document)


@pytest.mark.parametrize("base", ["pristine", "merged"])
def test_16_state_loaded_twice_is_merged_once(chained, base):
    """huggingface/peft#1064, #3025, oobabooga/text-generation-webui#2956; accelerate's `prepare` loads a state into itself."""
    model, optimizer, batch = chained(steps=7)
    saved, links = copy.deepcopy(optimizer.state_dict()), optimizer.chain
    expected = output(model, batch)
    if base == "pristine":
        model, optimizer, _ = chained()

    def off_after(load) -> float:
        for _ in range(2):
            load()
        return (output(model, batch) - expected).abs().max().item()

    def replay_whatever_the_weights_hold():
        with torch.no_grad():
            for name, site in optimizer.sites.items():
                site.weight.add_(site.orient(links.delta(name)))

    assert off_after(lambda: optimizer.load_state_dict(saved)) == 0
    assert off_after(replay_whatever_the_weights_hold) > 1e-3
    with pytest.raises(StateError, match="neither the original"):
        optimizer.load_state_dict(saved)


def test_16_second_chain_stands_beside_nothing_of_the_first(chained):
    """unslothai/unsloth#2981, huggingface/peft#3067: the adapter that was merged is loaded once more, beside itself."""
    model, optimizer, batch = chained("llama", steps=4)
    expected = output(model, batch)
    live = copy.deepcopy(adapter(model))
    plain = optimizer.merge_and_unload()

    def off_after(load) -> float:
        load()
        return (output(plain, batch) - expected).abs().max().item()

    assert not any("lora" in name for name, _ in plain.named_modules())
    second = make_chain(CASES["llama"], plain)
    assert all(list(site.layer.r) == ["default"] for site in second.sites.values())
    assert off_after(lambda: second.load_state_dict(copy.deepcopy(optimizer.state_dict()))) <= 1e-6
    assert off_after(lambda: plain.load_state_dict(live, strict=False)) > 1e-3


def test_best_checkpoint_comes_back_on_its_own_base():
    """Trainer's `_load_best_model` reloads the adapter alone, onto a base that has absorbed later knots since."""
    model, optimizer = begin(original=CASE.model().state_dict())
    train(optimizer, model, CASE.batch(), 4)
    best, expected = (
        copy.deepcopy({"optimizer": optimizer.state_dict(), "adapter": adapter(model)}),
        output(model, CASE.batch()),
    )
    train(optimizer, model, CASE.batch(), 6)

    def off_after(load) -> float:
        load(model, optimizer, best)
        return (output(model, CASE.batch()) - expected).abs().max().item()

    assert off_after(load_live_link_and_moments) > 1e-3
    assert off_after(load_chain) == 0
    then_model, then = begin()
    train(then, then_model, CASE.batch(), 4)
    assert_same(then_model, then, model, optimizer)
