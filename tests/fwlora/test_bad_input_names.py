"""Names that no layer has: the error lists what may have been meant, and the model is as it was."""

from __future__ import annotations

import pytest
from peft import LoraConfig
from torch import nn

from fwlora import ChainLoRAOptimizer
from fwlora.errors import ArgumentError, SkippedLayersWarning
from tests.tables import CASES, tiny_llama


def fingerprint(model: nn.Module) -> list[tuple[str, bool, int]]:
    return [(name, p.requires_grad, id(p)) for name, p in model.named_parameters()]


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (["q_prj"], 'did you mean "q_proj"'),
        (("q_prj", "vproj"), '"q_proj" or "v_proj"'),
        ({"Q_PROJ"}, 'did you mean "q_proj"'),
        (["lm_hed"], 'did you mean "lm_head"?'),
        (["model.layer.0.self_attn.q_proj"], '"model.layers.0.self_attn.q_proj"'),
        ("q_proj", 'did you mean "q_proj".*Endings of names go in a list'),
        (".*q_prj", 'did you mean "q_proj"'),
        (["nowhere"], "names of this model's layers end in embed_tokens, q_proj, k_proj"),
    ],
    ids=str,
)
@pytest.mark.parametrize("through", ["target_modules", "lora_config"])
def test_name_that_no_layer_has_is_answered_with_close_ones(wanted, message, through):
    model = tiny_llama()
    before = fingerprint(model)
    options = {"target_modules": wanted} if through == "target_modules" else {"lora_config": LoraConfig(target_modules=wanted)}
    with pytest.raises(ArgumentError, match=message.replace("?", r"\?")):
        ChainLoRAOptimizer(model, **options)
    assert fingerprint(model) == before
    assert not hasattr(model, "peft_config")


def test_name_that_no_layer_has_among_others_is_warned_of():
    with pytest.warns(SkippedLayersWarning, match='names v_prj, which no module has; did you mean "v_proj"'):
        optimizer = ChainLoRAOptimizer(tiny_llama(), target_modules=["q_proj", "v_prj"])
    assert {name.rpartition(".")[2] for name in optimizer.sites} == {"q_proj"}


def test_layer_without_a_name_close_to_it_is_listed():
    with pytest.raises(ArgumentError, match="layers end in 0, 1, 2"):
        ChainLoRAOptimizer(CASES["linear"].model(), target_modules=["encoder"])


def test_name_of_a_module_that_is_no_layer_is_not_taken_for_a_misspelling():
    with pytest.raises(ArgumentError, match="not supported") as caught:
        ChainLoRAOptimizer(tiny_llama(), target_modules=["input_layernorm"])
    assert "did you mean" not in str(caught.value)
