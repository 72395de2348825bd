"""The fused layer computes PEFT's function and gradients, keeps less for the backward pass, and notices a knot in between."""

from __future__ import annotations

from statistics import median

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.func import functional_call, grad, vmap
from torch.utils.checkpoint import checkpoint
from transformers import LlamaConfig, LlamaForCausalLM, OPTConfig, OPTForCausalLM

from fwlora import ChainLoRAOptimizer, Every, StepDown
from fwlora.layers.fused import FusedLinear, Turn
from tests.conftest import train
from tests.fwlora.layers.fused_layers import assert_close, calls, gradients, pair
from tests.tables import CASES, loss_of

TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-14}
SHAPES = [(6,), (4, 6), (2, 3, 6), (2, 1, 3, 6), (0, 6), (2, 0, 6)]


def wide_llama(seed: int) -> nn.Module:
    """Width 512, two layers, in bfloat16."""
    sizes = {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 2, "num_attention_heads": 4}
    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(vocab_size=256, num_key_value_heads=4, use_cache=False, **sizes)).bfloat16()


def wide_opt(seed: int) -> nn.Module:
    """Width 256, four layers, in bfloat16."""
    sizes = {"hidden_size": 256, "word_embed_proj_dim": 256, "ffn_dim": 1024, "num_hidden_layers": 4, "num_attention_heads": 4}
    torch.manual_seed(seed)
    return OPTForCausalLM(OPTConfig(vocab_size=256, dropout=0.0, max_position_embeddings=128, **sizes)).bfloat16()


def factor_gradients(model: nn.Module, batch: Tensor, *, fast: bool) -> dict[str, Tensor]:
    """Of every Linear's factors, B being no zero, by the fused layer or by PEFT's."""
    linear = "|".join(name for name, m in model.named_modules() if isinstance(m, nn.Linear) and name != "lm_head")
    optimizer = ChainLoRAOptimizer(model, target_modules=linear, fast_layers=fast)
    for site in optimizer.sites.values():
        with torch.no_grad():
            site.B.copy_(0.02 * torch.randn(site.B.shape, generator=torch.Generator().manual_seed(len(site.name))))
    model(input_ids=batch, labels=batch).loss.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("freeze", ["", "A", "B"])
@pytest.mark.parametrize("wants_x", [True, False])
def test_function_and_gradients_are_pefts(dtype, shape, bias, freeze, wants_x):
    plain, fused = pair(dtype, bias=bias)
    x, g = torch.randn(shape, dtype=dtype, requires_grad=wants_x), torch.randn(*shape[:-1], 5, dtype=dtype)
    for layer in (plain, fused):
        if freeze:
            getattr(layer, f"lora_{freeze}")["default"].weight.requires_grad_(False)
    assert_close(gradients(fused, x, g), gradients(plain, x, g), TOLERANCE[dtype])


def test_input_and_gradient_may_lie_in_memory_anyhow():
    plain, fused = pair(torch.float64)
    x = torch.randn(6, 4, 2, dtype=torch.float64).permute(2, 1, 0).requires_grad_()
    g = torch.randn(5, 1, 2, dtype=torch.float64).permute(2, 1, 0).expand(2, 4, 5)
    assert_close(gradients(fused, x, g), gradients(plain, x, g), 1e-14)
    sliced = torch.randn(4, 12, dtype=torch.float64)[:, ::2].requires_grad_()
    assert_close(gradients(fused, sliced, g[0]), gradients(plain, sliced, g[0]), 1e-14)


@pytest.mark.parametrize("build", [wide_llama, wide_opt])
def test_bf16_gradients_are_no_further_from_the_truth_than_pefts(build):
    """Of a whole model, whose other layers round too: the median ratio over factors and seeds, with 5 % to spare."""
    ratios: list[float] = []
    for seed in range(6):
        batch = torch.randint(256, (4, 64), generator=torch.Generator().manual_seed(seed))
        truth = factor_gradients(build(seed).float(), batch, fast=False)
        mine, theirs = (factor_gradients(build(seed), batch, fast=fast) for fast in (True, False))
        assert mine.keys() == truth.keys()
        assert all(gradient.dtype == torch.float32 for gradient in mine.values())
        ratios += [((mine[n] - truth[n]).norm() / (theirs[n] - truth[n]).norm()).item() for n in truth]
    assert median(ratios) <= 1.05


@pytest.mark.parametrize("base", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("given", [torch.float32, torch.bfloat16])
def test_autocast_decides_the_precision_as_it_does_for_peft(base, given, monkeypatch: pytest.MonkeyPatch):
    plain, fused = pair(base)
    x, g = torch.randn(64, 6, dtype=given, requires_grad=True), torch.randn(64, 5)
    with torch.autocast("cpu", torch.bfloat16), calls(monkeypatch) as seen:
        mine, theirs = gradients(fused, x, g), gradients(plain, x, g)
    assert len(seen) == 1
    assert mine["y"].dtype == torch.bfloat16
    assert_close(mine, theirs, 2e-2)


def test_output_may_be_changed_in_place():
    plain, fused = pair()
    x, g = torch.randn(2, 3, 6, requires_grad=True), torch.randn(2, 3, 5)
    results = [gradients(lambda x, layer=layer: layer(x).add_(1).mul_(2), x, g, of=layer) for layer in (fused, plain)]
    assert_close(*results, 1e-6)


@pytest.mark.parametrize("forward", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("backward", [torch.float32, torch.bfloat16])
def test_backward_keeps_the_forwards_precision_whatever_autocast_is_on(forward, backward):
    _, fused = pair()
    x, g = torch.randn(4, 6, requires_grad=True), torch.randn(4, 5)
    with torch.autocast("cpu", torch.bfloat16, enabled=forward == torch.bfloat16):
        expected = gradients(fused, x, g)
        y = fused(x)
    fused.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=backward == torch.bfloat16):
        y.backward(g.to(y.dtype))
    assert all(torch.equal(p.grad, expected[name]) for name, p in fused.named_parameters() if p.requires_grad)


def test_double_backward_is_refused():
    _, fused = pair()
    x = torch.randn(4, 6, requires_grad=True)
    (dx,) = torch.autograd.grad(fused(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        dx.sum().backward()


# torch has no batching rule of its own for an addmm in place, and says so.
@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_gradients_of_each_row_by_torch_func():
    _, fused = pair(torch.float64)
    factors = {name: p.detach() for name, p in fused.named_parameters() if "lora" in name}
    x = torch.randn(4, 6, dtype=torch.float64)

    def loss(factors: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(fused, factors, (x,)).square().sum()

    rows = vmap(grad(loss), (None, 0))(factors, x)
    whole = grad(loss)(factors, x)
    assert all(torch.allclose(rows[name].sum(0), whole[name]) for name in factors)


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpointing_changes_no_bit(use_reentrant):
    _, fused = pair()
    x, g = torch.randn(4, 6, requires_grad=True), torch.randn(4, 5)
    direct = gradients(fused, x, g)
    again = gradients(lambda x: checkpoint(fused, x, use_reentrant=use_reentrant), x, g, of=fused)
    assert_close(again, direct, 0.0)


@pytest.mark.parametrize("wants_x", [True, False])
@pytest.mark.parametrize("freeze_A", [True, False])
def test_knot_between_forward_and_backward_raises(wants_x, freeze_A):
    model = nn.Sequential(nn.Linear(6, 5))
    optimizer = ChainLoRAOptimizer(model, rank=2, freeze_A=freeze_A, knots=Every(100))
    loss = model(torch.randn(4, 6, requires_grad=wants_x)).square().sum()
    optimizer.tie_knot()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


class Kept(saved_tensors_hooks):
    """Storages that autograd keeps, the parameters of a module apart."""

    def __init__(self, module: nn.Module) -> None:
        mine = {p.untyped_storage()._cdata for p in module.parameters()}
        self.storages: dict[int, int] = {}

        def keep(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage._cdata not in mine:
                self.storages[storage._cdata] = storage.nbytes()
            return tensor

        super().__init__(keep, lambda tensor: tensor)


def test_layers_that_read_the_same_input_keep_it_once():
    layers = [pair(torch.bfloat16)[1] for _ in range(3)]
    x = torch.randn(32, 6, dtype=torch.bfloat16)
    kept = Kept(nn.ModuleList(layers))
    with kept:
        sum(layer(x).sum() for layer in layers)
    products = [2 * 32 * 3] * 3  # u = x A^T of each
    assert sorted(kept.storages.values()) == sorted([x.nbytes, *products])


def test_input_is_not_kept_where_A_is_frozen():
    plain, fused = pair(torch.bfloat16)
    for layer in (plain, fused):
        layer.lora_A["default"].weight.requires_grad_(False)
    x = torch.randn(32, 6, dtype=torch.bfloat16, requires_grad=True)
    kept = Kept(fused)
    with kept:
        fused(x).sum()
    assert [*kept.storages.values()] == [2 * 32 * 3]  # u alone
    fused.lora_B["default"].weight.requires_grad_(False)
    kept = Kept(fused)
    with kept:
        fused(x).sum()
    assert not kept.storages


def test_stepped_down_rank_computes_with_the_active_rows_only(monkeypatch: pytest.MonkeyPatch):
    """And equals PEFT's forward, whose masked rows are zeros."""
    runs = []
    for fast in (True, False):
        model = CASES["llama"].model(torch.float64)
        optimizer = ChainLoRAOptimizer(model, 0.02, rank=StepDown([4, 2]), alpha=8, knots=Every(2), fast_layers=fast)
        train(optimizer, model, CASES["llama"].batch(), 4)
        batch = CASES["llama"].batch()
        with calls(monkeypatch) as seen:
            loss_of(model, batch).backward()
        assert {(len(args[3]), args[4].shape[1]) for args in seen} == ({(2, 2)} if fast else set())
        assert all(not site.A.grad[2:].any() and not site.B.grad[:, 2:].any() for site in optimizer.sites.values())
        runs.append((optimizer, [optimizer.delta(name) for name in optimizer.sites]))
        optimizer.compact()
        assert all(site.rank == site.width == 2 for site in optimizer.sites.values())
    assert all(torch.allclose(mine, theirs, rtol=1e-9, atol=1e-12) for mine, theirs in zip(runs[0][1], runs[1][1], strict=True))


def test_resting_layer_is_its_base_layer(monkeypatch: pytest.MonkeyPatch):
    _, fused = pair()
    nn.init.zeros_(fused.lora_B["default"].weight)
    fused.turn = Turn("default", 3, rests=True)
    x = torch.randn(4, 6)
    with calls(monkeypatch) as seen:
        y = fused(x)
    assert not seen
    assert not y.requires_grad
    assert torch.equal(y, fused.base_layer(x))


def test_site_computes_in_full_with_other_factors_though_masked_and_resting():
    model = nn.Sequential(nn.Linear(6, 5)).double()
    optimizer = ChainLoRAOptimizer(model, rank=StepDown([4, 2]), alpha=8)
    optimizer.tie_knot()
    site = optimizer.sites["0"]
    site.rest()
    A, B = torch.randn(7, 6, dtype=torch.float64), torch.randn(5, 7, dtype=torch.float64)
    x = torch.randn(4, 6, dtype=torch.float64)
    with site.substituted(A, B):
        y = model(x)
    assert torch.allclose(y, site.layer.base_layer(x) + site.scaling * x @ A.mT @ B.mT, rtol=1e-12)
    assert isinstance(site.layer, FusedLinear)
    assert site.layer.turn == ("default", 2, True)
