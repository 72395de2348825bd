"""Whatever is special about a layer or a call is left to PEFT: the fused function is not called, and the bits are PEFT's."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.functional import inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from peft.tuners.lora import layer as lora
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import distribute_tensor

from fwlora.layers import fused as module
from fwlora.layers.fused import FusedLinear, Turn, fuse, unfuse
from tests.fwlora.layers.fused_layers import calls, model_with_lora, pair
from tests.tables import CASES


def dropout(layer: lora.Linear) -> None:
    layer.lora_dropout["default"] = nn.Dropout(0.5)


def merged(layer: lora.Linear) -> None:
    layer.merge()


def disabled(layer: lora.Linear) -> None:
    layer.enable_adapters(False)


def second_adapter(layer: lora.Linear) -> None:
    layer.update_layer("other", r=2, lora_alpha=4, config=LoraConfig())
    nn.init.normal_(layer.lora_B["other"].weight)
    layer.set_adapter(["default", "other"])


def adapter_that_is_elsewhere(layer: lora.Linear) -> None:
    layer._active_adapter = "other"


def another_forward_on_the_base(layer: lora.Linear) -> None:
    layer.base_layer.forward = lambda x: x[..., :5]  # as accelerate's hooks do


def bias_beside_B(layer: lora.Linear) -> None:
    layer.lora_B["default"].bias = nn.Parameter(torch.randn(5))


def trained_base(layer: lora.Linear) -> None:
    layer.base_layer.weight.requires_grad_(True)


def trained_base_bias(layer: lora.Linear) -> None:
    layer.base_layer.bias.requires_grad_(True)


def hook_on_the_base(layer: lora.Linear) -> None:
    layer.base_layer.register_forward_hook(lambda module, given, output: 2 * output)


def hook_on_A(layer: lora.Linear) -> None:
    layer.lora_A["default"].register_forward_pre_hook(lambda module, given: (given[0] + 1,))


def hook_on_B(layer: lora.Linear) -> None:
    layer.lora_B["default"].register_full_backward_hook(lambda module, given, output: None)


def base_of_another_class(layer: lora.Linear) -> None:
    class Scaled(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return 3 * super().forward(x)

    layer.base_layer.__class__ = Scaled


def parametrised_base(layer: lora.Linear) -> None:
    nn.utils.parametrizations.weight_norm(layer.base_layer)
    layer.base_layer.requires_grad_(False)


def wider_factors(layer: lora.Linear) -> None:
    layer.lora_A["default"].double()
    layer.lora_B["default"].double()


@pytest.mark.parametrize(
    "special",
    [
        dropout, merged, disabled, second_adapter, adapter_that_is_elsewhere, another_forward_on_the_base, bias_beside_B,
        trained_base, trained_base_bias, hook_on_the_base, hook_on_A, hook_on_B, base_of_another_class, parametrised_base,
        wider_factors,
    ],
)  # fmt: skip
def test_special_layer_computes_as_peft_does(special: Callable[[lora.Linear], None], monkeypatch: pytest.MonkeyPatch):
    plain, fused = pair()
    x = torch.randn(4, 6, requires_grad=True)
    results = []
    for layer in (plain, fused):
        torch.manual_seed(2)
        special(layer)
        with calls(monkeypatch) as seen:
            torch.manual_seed(1)
            y = layer(x)
        assert not seen
        results.append([y.detach(), *(torch.autograd.grad(y.sum(), x) if y.requires_grad else ())])
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(*results, strict=True))


def test_layer_is_fused_again_when_nothing_is_special_any_more(monkeypatch: pytest.MonkeyPatch):
    _, fused = pair()
    dropout(fused)
    fused.eval()
    fused.merge()
    fused.unmerge()
    fused.enable_adapters(False)
    fused.enable_adapters(True)
    with calls(monkeypatch) as seen:
        fused(torch.randn(4, 6))
    assert len(seen) == 1


def test_mixed_batch_of_adapters_is_pefts(monkeypatch: pytest.MonkeyPatch):
    plain, fused = pair()
    x = torch.randn(2, 6)
    with calls(monkeypatch) as seen:
        assert torch.equal(fused(x, adapter_names=["default", "__base__"]), plain(x, adapter_names=["default", "__base__"]))
    assert not seen


def test_variant_such_as_dora_is_pefts(monkeypatch: pytest.MonkeyPatch):
    plain, fused = pair(use_dora=True)
    x = torch.randn(2, 6)
    with calls(monkeypatch) as seen:
        assert torch.equal(fused(x), plain(x))
    assert not seen


def test_float16_is_pefts_whose_float32_factors_do_not_overflow(monkeypatch: pytest.MonkeyPatch):
    plain, fused = pair(torch.float16)
    x = torch.full((2, 6), 2.0**12, dtype=torch.float16)
    with calls(monkeypatch) as seen:
        assert torch.equal(fused(x), plain(x))
        with torch.autocast("cpu", torch.float16):
            fused(x.float())
    assert not seen


def test_numbers_that_autocast_leaves_alone_are_pefts(monkeypatch: pytest.MonkeyPatch):
    _, fused = pair(torch.float64)
    with calls(monkeypatch) as seen, torch.autocast("cpu", torch.bfloat16):
        assert fused(torch.randn(2, 6, dtype=torch.float64)).dtype == torch.float64
    assert not seen


def test_input_of_another_precision_is_refused_as_torch_does():
    plain, fused = pair()
    for layer in (plain, fused):
        with pytest.raises(RuntimeError, match="same dtype"):
            layer(torch.randn(2, 6, dtype=torch.float64))


def test_tensor_of_another_kind_is_pefts(monkeypatch: pytest.MonkeyPatch):
    class Marked(Tensor):
        pass

    plain, fused = pair()
    x = torch.randn(2, 6).as_subclass(Marked)
    with calls(monkeypatch) as seen:
        assert torch.equal(fused(x), plain(x))
    assert not seen


def test_sharded_weight_is_pefts(one_rank, monkeypatch: pytest.MonkeyPatch):
    plain, fused = pair()
    mesh = init_device_mesh("cpu", (1,))
    for layer in (plain, fused):
        for linear in (layer.base_layer, layer.lora_A["default"], layer.lora_B["default"]):
            for name, parameter in [*linear.named_parameters()]:
                sharded = nn.Parameter(distribute_tensor(parameter.detach(), mesh), requires_grad=parameter.requires_grad)
                setattr(linear, name, sharded)
    x = distribute_tensor(torch.randn(2, 6), mesh)
    with calls(monkeypatch) as seen:
        assert torch.equal(fused(x).full_tensor(), plain(x).full_tensor())
    assert not seen


@pytest.fixture
def one_rank(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("kind", ["conv1d", "conv2d", "embedding", "gpt2"])
def test_layer_of_another_kind_is_never_fused(kind):
    case = CASES[kind]
    config = LoraConfig(target_modules=case.targets if kind == "gpt2" else r"layers\.0", fan_in_fan_out=kind == "gpt2")
    model = inject_adapter_in_model(config, case.model())
    layers = [m for m in model.modules() if isinstance(m, LoraLayer)]
    assert layers
    assert not any(fuse(layer) for layer in layers)


def test_release_of_peft_that_was_not_tested_keeps_its_own_forward(monkeypatch: pytest.MonkeyPatch):
    model = model_with_lora()
    monkeypatch.setattr(module.peft, "__version__", "0.99.1")
    assert not fuse(model[0])
    assert type(model[0]) is lora.Linear


def test_fused_layer_is_pefts_in_all_else(tmp_path):
    model = get_peft_model(CASES["llama"].model(), LoraConfig(target_modules=["q_proj"]))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    layers = [m for m in model.modules() if isinstance(m, LoraLayer)]
    assert all(fuse(layer) and isinstance(layer, lora.Linear) for layer in layers)
    assert {name: value.shape for name, value in model.state_dict().items()} == {n: v.shape for n, v in before.items()}
    model.save_pretrained(tmp_path)
    assert (tmp_path / "adapter_model.safetensors").is_file()
    twin = copy.deepcopy(layers[0])
    assert isinstance(twin, FusedLinear)
    twin.turn = Turn("default", 2, True)
    unfuse(twin)
    assert type(twin) is lora.Linear
    assert "turn" not in vars(twin)
    plain = model.unload()
    assert not any(isinstance(m, LoraLayer) for m in plain.modules())
