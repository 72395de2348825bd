"""Sites run the fused layer where they may, and a chain is the same with it, compiled or not."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from peft.tuners.lora import layer as lora
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

from fwlora import Blocks, ChainLoRAOptimizer, Every, StepDown
from fwlora.errors import ArgumentError, UnsupportedModelError
from fwlora.layers.fused import FusedLinear, unfuse
from tests.conftest import make_chain, train
from tests.tables import CASES, output


def kinds(model: nn.Module) -> set[type]:
    """Classes of a model's LoRA layers."""
    return {type(module) for module in model.modules() if isinstance(module, LoraLayer)}


def test_plain_linears_are_fused_and_all_else_is_left_to_peft():
    assert kinds(make_chain(CASES["llama"], CASES["llama"].model())._attachment.model) == {FusedLinear}
    for kind in ("conv2d", "embedding", "gpt2"):
        model = CASES[kind].model()
        optimizer = make_chain(CASES[kind], model)
        for site in optimizer.sites.values():
            assert isinstance(site.layer, FusedLinear) == (type(site.layer.get_base_layer()) is nn.Linear)


def test_fast_layers_false_leaves_every_layer_to_peft_and_takes_back_what_was_fused():
    model = CASES["llama"].model()
    optimizer = ChainLoRAOptimizer(model)
    assert kinds(model) == {FusedLinear}
    del optimizer
    again = ChainLoRAOptimizer(model, fast_layers=False)
    assert kinds(model) == {lora.Linear}
    assert again.sites


def test_refused_model_keeps_its_layers_classes():
    model = get_peft_model(CASES["llama"].model(), LoraConfig(target_modules=["q_proj"]))
    with pytest.raises(ArgumentError, match="lr_ratio"):
        ChainLoRAOptimizer(model, lr_ratio=-1.0)
    assert kinds(model) == {lora.Linear}
    with pytest.raises(UnsupportedModelError):
        ChainLoRAOptimizer(get_peft_model(CASES["llama"].model(), LoraConfig(use_dora=True, target_modules=["q_proj"])))


def test_unloaded_model_has_nothing_of_ours():
    model = CASES["llama"].model()
    optimizer = make_chain(CASES["llama"], model)
    train(optimizer, model, CASES["llama"].batch(), 4)
    assert not any("fwlora" in type(module).__module__ for module in optimizer.merge_and_unload().modules())


@pytest.mark.parametrize("again", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
def test_copy_of_model_and_chain_goes_on_fused(again, chained):
    model, optimizer, batch = chained("llama", steps=2)
    model_too, optimizer_too = again((model, optimizer))
    assert train(optimizer, model, batch, 4) == train(optimizer_too, model_too, batch, 4)
    assert kinds(model_too) == {FusedLinear}


def by_peft(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """What the model's tensors give under PEFT's own forward."""
    plain = copy.deepcopy(model)
    for layer in plain.modules():
        if isinstance(layer, LoraLayer):
            unfuse(layer)
    return output(plain, batch)


def fill(model: nn.Module, adapter: str = "default") -> None:
    """Numbers in every factor of an adapter, masked and resting ones too."""
    for name, parameter in model.named_parameters():
        if "lora" in name and f".{adapter}." in name:
            nn.init.normal_(parameter.data)


TURNS = [{"blocks": Blocks(2)}, {"rank": StepDown([4, 1]), "alpha": 8}]


@pytest.mark.parametrize("options", TURNS)
def test_weights_loaded_on_the_way_are_computed_as_they_are(options, chained):
    """Such as the best ones so far, which were kept in another link: no site rests and no row is masked in them."""
    model, optimizer, batch = chained("llama", steps=4, **options)
    other = copy.deepcopy(model)
    fill(other)
    model.load_state_dict(other.state_dict())
    torch.testing.assert_close(output(model, batch), by_peft(model, batch))
    assert len(optimizer.chain) == 1


@pytest.mark.parametrize("options", TURNS)
def test_copy_of_the_model_alone_is_steered_by_no_chain(options, chained):
    model, optimizer, batch = chained("llama", steps=4, **options)
    for alone in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        fill(alone)
        torch.testing.assert_close(output(alone, batch), by_peft(alone, batch))
    assert optimizer.sites


@pytest.mark.parametrize("options", TURNS)
def test_another_adapter_is_computed_in_full(options):
    model = get_peft_model(CASES["llama"].model(), LoraConfig(r=4, target_modules=["q_proj", "v_proj"]))
    model.add_adapter("other", LoraConfig(r=4, target_modules=["q_proj", "v_proj"]))
    options = {name: value for name, value in options.items() if name != "alpha"}
    optimizer = ChainLoRAOptimizer(model, **options)
    optimizer.tie_knot()
    fill(model, "other")
    model.set_adapter("other")
    batch = CASES["llama"].batch()
    torch.testing.assert_close(output(model, batch), by_peft(model, batch))


def test_resting_site_skips_its_dropout_too(chained):
    config = LoraConfig(r=2, lora_dropout=0.5, target_modules=r".*layers\.0\.self_attn\.(q|v)_proj|.*layers\.1\..*q_proj")
    model, optimizer, batch = chained("llama", lora_config=config, target_modules=None, rank=None, blocks=Blocks(2))
    model.train()
    output(model, batch).sum().backward()
    wanted = {site.name for site in optimizer.sites.values() if site.B.grad is not None}
    assert wanted == {name for name in optimizer.sites if ".layers.0." in name}


@pytest.mark.parametrize("options", [{}, {"freeze_A": True}, {"blocks": Blocks(2)}])
@pytest.mark.parametrize("kind", ["linear", "llama", "opt", "bert", "vit"])
def test_chain_is_the_same_by_either_forward(kind, options):
    """In float64, over two knots."""
    case = CASES[kind]
    runs = []
    for fast in (True, False):
        model = case.model(torch.float64)
        optimizer = make_chain(case, model, fast_layers=fast, **options)
        losses = train(optimizer, model, case.batch(), 8)
        runs.append((losses, torch.cat([optimizer.delta(name).flatten() for name in optimizer.sites])))
    assert runs[0][0] == pytest.approx(runs[1][0], rel=1e-6)
    assert torch.allclose(runs[0][1], runs[1][1], rtol=1e-4, atol=1e-6 * float(runs[1][1].abs().max()))


def compiled_run(backend: str | None, *, amp: bool = False, **options):
    """Losses of a chain over two knots, and how many graphs were compiled."""
    torch._dynamo.reset()
    case = CASES["llama"]
    model = case.model().train()
    optimizer = make_chain(case, model, **options)
    counter = CompileCounterWithBackend(backend or "eager")
    run = model if backend is None else torch.compile(model, backend=counter, fullgraph=True)
    with torch.autocast("cpu", torch.bfloat16, enabled=amp):
        losses = train(optimizer, run, case.batch(), 8)
    assert len(optimizer.chain) == 2
    return losses, counter.frame_count


@pytest.mark.parametrize("amp", [False, True])
@pytest.mark.parametrize("options", [{}, {"freeze_A": True}, {"target_modules": r".*\.(q_proj|down_proj)"}])
def test_compiled_chain_has_one_graph_over_all_its_knots(amp, options):
    eager, _ = compiled_run(None, amp=amp, **options)
    compiled, graphs = compiled_run("aot_eager", amp=amp, **options)
    assert graphs == 1
    assert compiled == pytest.approx(eager, rel=1e-2 if amp else 1e-6)


@pytest.mark.long
@pytest.mark.parametrize("amp", [False, True])
def test_inductor_compiles_a_chain_once(amp):
    eager, _ = compiled_run(None, amp=amp)
    compiled, graphs = compiled_run("inductor", amp=amp)
    assert graphs == 1
    assert compiled == pytest.approx(eager, rel=1e-2 if amp else 1e-5)


@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("options", [{}, {"freeze_A": True}, {"blocks": Blocks(2)}])
def test_gradient_checkpointing_changes_no_loss(use_reentrant, options):
    runs = []
    for on in (False, True):
        case = CASES["llama"]
        model = case.model().train()
        if on:
            model.activation_checkpointing_enable({"use_reentrant": use_reentrant})
            model.enable_input_require_grads()
        optimizer = make_chain(case, model, **options)
        runs.append(train(optimizer, model, case.batch(), 8))
    assert runs[0] == runs[1]


def adamw_options(**options) -> dict:
    """What the inner AdamW was made with."""
    return ChainLoRAOptimizer(CASES["linear"].model(), target_modules=CASES["linear"].targets, **options).inner.defaults


def test_adam_is_fused_unless_the_user_says_how():
    assert adamw_options()["fused"] is True
    assert adamw_options(inner=torch.optim.Adam)["fused"] is True
    assert adamw_options(fused=False)["fused"] is False
    assert adamw_options(foreach=True)["fused"] is None
    assert adamw_options(differentiable=True)["fused"] is None
    assert "fused" not in adamw_options(inner=torch.optim.RMSprop)
    assert adamw_options(inner=torch.optim.SGD)["fused"] is None


def test_adam_is_torchs_choice_on_a_device_without_a_fused_kernel(monkeypatch: pytest.MonkeyPatch):
    from fwlora import building

    def missing(*_, **__):
        raise RuntimeError("no kernel")

    monkeypatch.setattr(torch, "_fused_adamw_", missing)
    building._is_fusible.cache_clear()
    assert adamw_options()["fused"] is None
    building._is_fusible.cache_clear()


def test_knot_resets_moments_in_place(chained):
    """So that whoever holds their addresses, a captured graph for one, goes on to be right."""
    model, optimizer, batch = chained("llama", steps=2, knots=Every(100))
    before = {p: {name: value.data_ptr() for name, value in optimizer.state[p].items()} for p in optimizer.parameters()}
    assert all(len(state) == 3 for state in before.values())
    optimizer.tie_knot()
    assert before == {p: {name: value.data_ptr() for name, value in optimizer.state[p].items()} for p in before}
    assert not any(value.any() for p in before for value in optimizer.state[p].values())
    train(optimizer, model, batch, 1)
    assert all(optimizer.state[p]["step"] == 1 for p in before)
