"""What is refused: the error names the argument, the rule, the value and the way out, and nothing is left half-done."""

from __future__ import annotations

import gc

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from fwlora import ChainLoRAOptimizer, Constant, Decay, Every, StepDown
from fwlora.errors import (
    ArgumentError,
    DisconnectedParametersError,
    FwloraError,
    NoGradientError,
    OwnershipError,
    UnsupportedModelError,
)
from fwlora.rules import KnotSchedule
from tests.conftest import train
from tests.tables import CASES, tiny_llama


def config(**options):
    return LoraConfig(**{"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], **options})


class ByData(KnotSchedule):
    """A schedule that decides by data."""

    reads = frozenset({"loss"})

    def due(self, progress):
        return False


class ByGap(ByData):
    """A schedule that reads what is not measured yet."""

    reads = frozenset({"gap"})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"knots": 500}, r"`knots=500`.*Every\(500\)"),
        ({"link_lr": "decay"}, "`link_lr='decay'`"),
        ({"reset": None}, "`reset=None`"),
        ({"merge": "add"}, "`merge='add'`"),
        ({"blocks": 3}, "`blocks=3`"),
        ({"knot": Every(3)}, "`knot=`.*did you mean `knots=`"),
        ({"beta": (0.9, 0.99)}, "did you mean `betas=`"),
        ({"lr": -1.0}, "AdamW.*-1.0"),
        ({"rank": 0}, "`rank=0`"),
        ({"rank": 2.5}, "`rank=2.5`"),
        ({"rank": [4, 2]}, r"`rank=\[4, 2\]`.*StepDown"),
        ({"rank": StepDown([4, 2]), "lora_config": config(r=8)}, "rank 8 at most"),
        ({"rank": Constant(16), "lora_config": config(r=2)}, "rank 2 at most"),
        ({"alpha": 0}, "`alpha=0`"),
        ({"alpha": "x"}, "`alpha='x'`"),
        ({"lr": None}, "`lr=None`"),
        ({"lr_ratio": "2"}, "`lr_ratio='2'`"),
        ({"inner": 42}, "`inner=42`"),
        ({"seed": None}, "`seed=None`"),
        ({"target_modules": "("}, "target_modules"),
        ({"inner": torch.optim.LBFGS}, "LBFGS"),
        ({"lr_ratio": 0.0}, "`lr_ratio=0.0`"),
        ({"train_modules": "lm_head"}, "sequence of module names"),
        ({"train_modules": ["nowhere"]}, "'nowhere'"),
        ({"train_modules": ["self_attn"]}, "holds a site"),
        ({"target_modules": ["nowhere"]}, "target_modules"),
        ({"target_modules": ["input_layernorm"]}, "target_modules"),
        ({"lora_config": "r=8"}, "LoraConfig"),
        ({"lora_config": config(), "rank": 4}, "leave out `rank=`"),
        ({"lora_config": config(), "lora_bias": True}, "contradicts"),
        ({"knots": ByData(), "link_lr": Decay()}, "decides by data"),
        ({"knots": ByGap()}, r"reads \['gap'\]"),
        ({"inner": torch.optim.Muon, "target_modules": ["embed_tokens"]}, "Muon.*embed_tokens"),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else "",
)
def test_bad_argument_is_refused_and_the_model_left_as_it_was(options, message):
    model = CASES["llama"].model()
    before = [(name, p.requires_grad, id(p)) for name, p in model.named_parameters()]
    with pytest.raises(ArgumentError, match=message):
        ChainLoRAOptimizer(model, **options)
    assert [(name, p.requires_grad, id(p)) for name, p in model.named_parameters()] == before
    assert not hasattr(model, "peft_config")


@pytest.mark.parametrize(
    ("build", "options", "message"),
    [
        (tiny_llama, {"lora_config": config(use_dora=True)}, "DoRA"),
        (tiny_llama, {"lora_config": config(init_lora_weights="pissa")}, "pissa"),
        (tiny_llama, {"lora_config": config(bias="all")}, "bias='all'"),
        (tiny_llama, {"lora_bias": True, "target_modules": ["q_proj"]}, "lora_bias=True"),
        (lambda: tiny_llama(tie_word_embeddings=True), {"target_modules": ["lm_head"]}, "tied"),
        (lambda: nn.Sequential(nn.Conv2d(4, 4, 1, groups=2)), {"target_modules": ["0"]}, "groups"),
        (lambda: nn.ModuleList([nn.Linear(3, 3)] * 2), {"target_modules": ["0"]}, "tied"),
        (lambda: nn.Sequential(nn.Linear(3, 3, device="meta")), {}, "meta device"),
        (lambda: nn.Sequential(nn.LayerNorm(4)), {}, "none that can be adapted"),
        (lambda: torch.nn.DataParallel(nn.Sequential(nn.Linear(3, 3))), {}, "without LoRA layers"),
        (lambda: nn.Sequential(nn.Linear(3, 3).to(torch.float8_e4m3fn)), {}, "float8"),
    ],
    ids=["dora", "pissa", "bias", "lora_bias", "tied", "grouped", "module twice", "meta", "nothing", "wrapped", "float8"],
)
@pytest.mark.filterwarnings("ignore:.*tie_word_embeddings.*:UserWarning")  # PEFT warns where we refuse
def test_unsupported_model_is_refused_and_left_as_it_was(build, options, message):
    model = build()
    before = [(name, p.requires_grad, id(p)) for name, p in model.named_parameters()]
    with pytest.raises(UnsupportedModelError, match=message):
        ChainLoRAOptimizer(model, **options)
    assert [(name, p.requires_grad, id(p)) for name, p in model.named_parameters()] == before


def test_parameters_instead_of_a_model_are_refused():
    with pytest.raises(ArgumentError, match="give the model"):
        ChainLoRAOptimizer(tiny_llama().parameters())


def test_shape_arguments_on_an_adopted_model_are_refused_but_a_schedule_is_not():
    model = get_peft_model(tiny_llama(), config())
    for options in ({"rank": 4}, {"alpha": 8}, {"target_modules": ["q_proj"]}, {"lora_config": config()}):
        with pytest.raises(ArgumentError, match="brings its own LoRA layers"):
            ChainLoRAOptimizer(model, **options)
    with pytest.raises(ArgumentError, match="rank 4 at most"):
        ChainLoRAOptimizer(model, rank=Constant(2))
    ChainLoRAOptimizer(model, rank=StepDown([4, 2]))


@pytest.mark.filterwarnings("ignore:Already found a `peft_config`:UserWarning")
def test_merged_disabled_and_several_adapters_are_refused():
    model = get_peft_model(tiny_llama(), config())
    model.merge_adapter()
    with pytest.raises(UnsupportedModelError, match="merged"):
        ChainLoRAOptimizer(model)
    model.unmerge_adapter()
    with model.disable_adapter(), pytest.raises(UnsupportedModelError, match="disabled"):
        ChainLoRAOptimizer(model)
    model.add_adapter("second", config())
    model.base_model.set_adapter(["default", "second"])
    with pytest.raises(UnsupportedModelError, match="active adapters"):
        ChainLoRAOptimizer(model)


def test_dora_in_an_adopted_model_is_refused():
    with pytest.raises(UnsupportedModelError, match="DoRA"):
        ChainLoRAOptimizer(get_peft_model(tiny_llama(), config(use_dora=True)))


def test_stray_trainable_parameter_of_an_adopted_model_is_refused():
    model = get_peft_model(tiny_llama(), config())
    model.get_base_model().model.norm.weight.requires_grad_(True)
    with pytest.raises(UnsupportedModelError, match="silently not be trained"):
        ChainLoRAOptimizer(model)
    ChainLoRAOptimizer(model, train_modules=["norm"])


def test_model_that_another_chain_owns_is_refused_until_that_chain_is_gone():
    model = tiny_llama()
    first = ChainLoRAOptimizer(model)
    with pytest.raises(OwnershipError, match="belongs to another chain"):
        ChainLoRAOptimizer(model)
    del first
    gc.collect()
    ChainLoRAOptimizer(model)


def test_optimizer_whose_parameters_are_not_the_models_own_raises_at_the_first_step(chained):
    model, optimizer, batch = chained()
    layer = optimizer.sites["layers.0"].layer
    layer.lora_A["default"].weight = nn.Parameter(layer.lora_A["default"].weight.detach().clone())
    with pytest.raises(DisconnectedParametersError, match="make the optimizer last"):
        train(optimizer, model, batch, 1)
    # Parameters that a framework swapped into the groups are adopted.
    optimizer.param_groups[0]["params"] = [site.A for site in optimizer.sites.values()]
    train(optimizer, model, batch, 4)
    assert len(optimizer.chain) == 1


def test_first_step_without_gradients_raises(chained):
    _, optimizer, _ = chained()
    with pytest.raises(NoGradientError, match="use_reentrant=False"):
        optimizer.step()
    assert optimizer.progress.step == 0


def test_every_error_is_one_of_ours():
    assert all(issubclass(error, FwloraError) for error in (ArgumentError, OwnershipError, UnsupportedModelError))


def test_fsdp_wrapped_and_attention_modules_are_refused():
    class FullyShardedDataParallel(nn.Module):
        """As torch names it; the class itself needs a process group."""

    with pytest.raises(UnsupportedModelError, match="FSDP"):
        ChainLoRAOptimizer(FullyShardedDataParallel())
    attention = nn.Sequential(nn.MultiheadAttention(8, 2))
    before = {name: p.requires_grad for name, p in attention.named_parameters()}
    with pytest.raises(UnsupportedModelError, match="MultiheadAttention"):
        ChainLoRAOptimizer(attention, target_modules=["0"])
    assert {name: p.requires_grad for name, p in attention.named_parameters()} == before


def test_quantised_base_is_refused():
    """A packed 4-bit weight is no floating matrix: adding to it would destroy it."""
    model = tiny_llama()
    get_peft_model(model, config())
    layer = model.model.layers[0].self_attn.q_proj.base_layer
    layer.weight = nn.Parameter(torch.zeros(512, 1, dtype=torch.uint8), requires_grad=False)
    with pytest.raises(UnsupportedModelError, match="uint8"):
        ChainLoRAOptimizer(model)
