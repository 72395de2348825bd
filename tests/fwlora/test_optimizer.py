"""The public object: limits that collapse it onto known methods, what may be read."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

from fwlora import ChainLoRAOptimizer, Evenly, Every, Flat, Never, StepDown, unwrap
from fwlora.errors import (
    ArgumentError,
    FinishedError,
    ShortLinkWarning,
    SkippedLayersWarning,
)
from fwlora.rules import KnotSchedule
from tests.conftest import make_chain, train
from tests.tables import CASES, loss_of, output, tiny_llama


def config(**options):
    return LoraConfig(**{"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], **options})


def lora_run(optimizer_of, dtype=torch.float32, **options):
    """Losses and parameters of PEFT's LoRA in a plain loop."""
    batch = CASES["llama"].batch()
    torch.manual_seed(3)
    model = get_peft_model(CASES["llama"].model(dtype), config(**options)).train()
    optimizer = optimizer_of(model)
    losses = []
    for _ in range(6):
        optimizer.zero_grad()
        loss = loss_of(model, batch)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, [p.detach() for p in model.parameters()]


def adamw(model, **options):
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 0.01, weight_decay=0.0, **options)


@pytest.mark.parametrize("options", [{}, {"use_rslora": True}, {"lora_dropout": 0.3}, {"rank_pattern": {"v_proj": 2}}])
@pytest.mark.parametrize("fused", [False, True])
def test_chain_that_never_knots_is_lora(options, fused):
    """Bit for bit PEFT's LoRA under the same AdamW, dropout and all."""
    lora = lora_run(lambda model: adamw(model, fused=fused), **options)
    chain = lora_run(lambda model: ChainLoRAOptimizer(model, 0.01, knots=Never(), fast_layers=False, fused=fused), **options)
    assert chain[0] == lora[0]
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(chain[1], lora[1], strict=True))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
def test_chain_that_never_knots_is_lora_by_the_fused_layer_too(dtype, tolerance):
    lora = lora_run(adamw, dtype)
    chain = lora_run(lambda model: ChainLoRAOptimizer(model, 0.01, knots=Never()), dtype)
    assert chain[0] == pytest.approx(lora[0], rel=tolerance)


def test_plain_call_gives_the_documented_defaults():
    model = tiny_llama()
    optimizer = ChainLoRAOptimizer(model)
    site = optimizer.sites["model.layers.0.self_attn.q_proj"]
    assert (site.width, site.scaling, optimizer.knots, optimizer.link_lr) == (8, 2.0, Every(500), Flat(warmup=10))
    assert {name.rpartition(".")[2] for name in optimizer.sites} == {"q_proj", "v_proj"}
    assert isinstance(optimizer.inner, torch.optim.AdamW)
    assert [group["lr"] for group in optimizer.param_groups] == [2e-4, 2e-4]
    assert all(group["weight_decay"] == 0 for group in optimizer.param_groups)
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trainable == {name for name in trainable if "lora_" in name}
    assert len(trainable) == 8


def test_half_precision_base_gets_float32_factors():
    _model = CASES["llama"].model(torch.bfloat16)
    optimizer = make_chain(CASES["llama"], _model)
    assert {p.dtype for p in optimizer.parameters()} == {torch.float32}


def test_injection_leaves_the_users_random_numbers_alone():
    model = tiny_llama()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    ChainLoRAOptimizer(model)
    assert torch.equal(torch.rand(3), expected)


def test_users_config_stays_his():
    mine = config(target_modules=["q_proj"])
    before = copy.deepcopy(mine)
    ChainLoRAOptimizer(tiny_llama(), lora_config=mine)
    assert mine == before


def test_adopted_model_keeps_its_factors():
    model = get_peft_model(tiny_llama(), config(init_lora_weights=False))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = ChainLoRAOptimizer(model)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert "model.layers.0.self_attn.q_proj" in optimizer.sites


def test_freeze_A_trains_B_alone_and_redraws_A_at_each_knot(chained):
    _, optimizer, _ = chained(steps=2, freeze_A=True)
    site = optimizer.sites["layers.0"]
    first = site.A.detach().clone()
    assert [group["role"] for group in optimizer.param_groups] == ["B"]
    optimizer.tie_knot()
    assert not torch.equal(site.A, first)
    assert not site.A.requires_grad


def test_lr_ratio_is_the_rate_of_B_over_that_of_A(chained):
    _, optimizer, _ = chained(lr=0.01, lr_ratio=16.0)
    assert {group["role"]: group["lr"] for group in optimizer.param_groups} == {"A": 0.01, "B": 0.16}


def test_link_factor_is_in_force_within_the_step_alone(chained):
    model, optimizer, batch = chained(steps=3, link_lr=Flat(warmup=4), lr=0.1)
    seen = []
    optimizer.inner.register_step_pre_hook(lambda inner, *_: seen.append(inner.param_groups[0]["lr"]))
    factors = []
    for _ in range(3):
        factors.append(optimizer.link_factor)
        train(optimizer, model, batch, 1)
        assert optimizer.param_groups[0]["lr"] == 0.1
    assert factors == [0.25, 0.5, 0.75]
    assert seen == pytest.approx([0.025, 0.05, 0.075])


def test_rates_are_put_back_when_the_inner_step_raises(chained):
    model, optimizer, batch = chained(steps=3, link_lr=Flat(warmup=4), lr=0.1)

    def fail(*_):
        raise RuntimeError("inner")

    optimizer.inner.register_step_pre_hook(fail)
    with pytest.raises(RuntimeError, match="inner"):
        train(optimizer, model, batch, 1)
    assert optimizer.param_groups[0]["lr"] == 0.1
    assert optimizer.progress.step == 3


def test_closure_is_called_once_and_its_loss_returned(chained):
    model, optimizer, batch = chained()
    calls = []

    def closure():
        calls.append(1)
        optimizer.zero_grad()
        loss = loss_of(model, batch)
        loss.backward()
        return loss

    assert optimizer.step(closure) > 0
    assert calls == [1]
    assert optimizer.progress.step == 1


def test_open_evenly_is_bound_by_total_steps_and_raises_unbound(chained):
    model, optimizer, batch = chained(knots=Evenly(3))
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(ArgumentError, match=r"Evenly\(links=3\).*optimizer\.total_steps"):
        train(optimizer, model, batch, 1)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))
    optimizer.total_steps = 6
    train(optimizer, model, batch, 6)
    assert [record.step for record in optimizer.ledger] == [2, 4]


def test_total_steps_must_not_contradict_the_schedule(chained):
    _, optimizer, _ = chained(knots=Evenly(2, total_steps=10))
    assert optimizer.total_steps == 10
    optimizer.total_steps = 10
    with pytest.raises(ArgumentError, match="contradicts"):
        optimizer.total_steps = 12


def test_train_modules_are_trained_saved_and_exported(tmp_path):
    model = CASES["llama"].model()
    base = copy.deepcopy(model)
    optimizer = make_chain(CASES["llama"], model, train_modules=["norm"], target_modules=["q_proj"])
    batch = CASES["llama"].batch()
    train(optimizer, model, batch, 4)
    assert not torch.equal(model.model.norm.weight, base.model.norm.weight)
    assert [group["role"] for group in optimizer.param_groups] == ["A", "B", "trained"]
    optimizer.export_adapter(tmp_path)
    reloaded = PeftModel.from_pretrained(copy.deepcopy(base), str(tmp_path)).eval()
    torch.testing.assert_close(output(reloaded, batch), output(model, batch), rtol=1e-5, atol=1e-6)


def test_modules_to_save_of_an_adopted_model_are_trained(tmp_path):
    base = CASES["llama"].model()
    model = get_peft_model(copy.deepcopy(base), config(modules_to_save=["lm_head"]))
    optimizer = ChainLoRAOptimizer(model, 0.02, knots=Every(3))
    batch = CASES["llama"].batch()
    train(optimizer, model, batch, 4)
    optimizer.export_adapter(tmp_path)
    reloaded = PeftModel.from_pretrained(copy.deepcopy(base), str(tmp_path)).eval()
    torch.testing.assert_close(output(reloaded, batch), output(model.eval(), batch), rtol=1e-5, atol=1e-6)
    expected = output(model, batch)
    plain = optimizer.merge_and_unload()
    assert not any("modules_to_save" in name for name, _ in plain.named_modules())
    torch.testing.assert_close(output(plain, batch), expected, rtol=1e-5, atol=1e-6)


def test_merge_and_unload_gives_back_the_plain_model(chained):
    model, optimizer, batch = chained("llama", steps=5)
    names = [name for name, _ in CASES["llama"].model().named_parameters()]
    expected = output(model, batch)
    plain = optimizer.merge_and_unload()
    assert plain is model
    assert [name for name, _ in plain.named_parameters()] == names
    torch.testing.assert_close(output(plain, batch), expected, rtol=1e-5, atol=1e-6)
    assert len(optimizer.chain) == 2
    with pytest.raises(FinishedError):
        optimizer.step()
    ChainLoRAOptimizer(plain, target_modules=["q_proj"])  # a new chain may begin


def test_merged_model_of_an_adopted_peft_model_is_the_base(chained):
    model = get_peft_model(CASES["llama"].model(), config())
    optimizer = ChainLoRAOptimizer(model, 0.02, knots=Every(3))
    train(optimizer, model, CASES["llama"].batch(), 4)
    expected = output(model, CASES["llama"].batch())
    plain = optimizer.merge_and_unload()
    assert type(plain).__name__ == "LlamaForCausalLM"
    torch.testing.assert_close(output(plain, CASES["llama"].batch()), expected, rtol=1e-5, atol=1e-6)


def test_compact_shrinks_the_factors_for_good(tmp_path):
    model = get_peft_model(CASES["llama"].model(), config())
    optimizer = ChainLoRAOptimizer(model, 0.02, rank=StepDown([4, 2]), knots=Every(3))
    batch = CASES["llama"].batch()
    train(optimizer, model, batch, 5)
    expected = output(model, batch)
    optimizer.compact()
    assert {len(site.A) for site in optimizer.sites.values()} == {2}
    torch.testing.assert_close(output(model, batch), expected, rtol=1e-6, atol=1e-7)
    train(optimizer, model, batch, 2)
    merged = copy.deepcopy(model.get_base_model()).state_dict()
    model.save_pretrained(tmp_path)
    base = CASES["llama"].model()
    base.load_state_dict({k.replace(".base_layer", ""): v for k, v in merged.items() if "lora_" not in k})
    reloaded = PeftModel.from_pretrained(base, str(tmp_path)).eval()
    torch.testing.assert_close(output(reloaded, batch), output(model, batch), rtol=1e-5, atol=1e-6)


def test_default_targets_skip_tied_grouped_and_output_layers():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Linear(4, 4)
            self.grouped = nn.Conv1d(4, 4, 1, groups=2)
            self.one, self.other = nn.Linear(4, 4), nn.Linear(4, 4)
            self.other.weight = self.one.weight
            self.head = nn.Linear(4, 2)

        def get_output_embeddings(self):
            return self.head

    expected = r"grouped \(grouped \(groups=2\)\), one \(tied\), other \(tied\), head \(output head\)"
    with pytest.warns(SkippedLayersWarning, match=expected) as caught:
        optimizer = ChainLoRAOptimizer(Odd())
    assert caught[0].filename == __file__, "it points at the caller's line"
    assert list(optimizer.sites) == ["body"]


def test_target_names_match_no_longer_name():
    """A bare name would reach every layer whose name ends in it; only what was chosen is adapted."""
    model = nn.Sequential(nn.Linear(3, 3), nn.Sequential(nn.Embedding(4, 3), nn.Linear(3, 3)))
    optimizer = ChainLoRAOptimizer(model)
    assert list(optimizer.sites) == ["0", "1.1"]


def test_unwrap_finds_the_chain_inside_wrappers(chained):
    class Wrapper:
        def __init__(self, optimizer):
            self.optimizer = optimizer

    _, optimizer, _ = chained()
    assert unwrap(Wrapper(Wrapper(optimizer))) is optimizer
    with pytest.raises(ArgumentError, match="SGD"):
        unwrap(torch.optim.SGD([nn.Parameter(torch.zeros(1))]))


def test_compiled_model_is_served_under_its_own_names():
    model = torch.compile(CASES["llama"].model(), backend="eager")
    optimizer = ChainLoRAOptimizer(model, 0.02, knots=Every(2))
    train(optimizer, model, CASES["llama"].batch(), 3)
    assert "model.layers.0.self_attn.q_proj" in optimizer.sites
    assert len(optimizer.chain) == 1


@pytest.mark.parametrize("steps", [99, 100])
def test_link_under_a_hundred_steps_warns_once_at_the_first_step(chained, steps):
    model, optimizer, batch = chained(knots=Every(steps))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        train(optimizer, model, batch, 2)
    assert [w.category for w in caught] == ([ShortLinkWarning] if steps < 100 else [])
    assert all(w.filename.endswith("conftest.py") for w in caught), "it points at the caller's line"


def test_added_group_is_trained_in_full_and_kept_in_the_state(chained):
    model, optimizer, batch = chained("llama")
    norm = model.model.norm.weight.requires_grad_(True)
    with pytest.raises(ArgumentError, match="parameters of the model"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(2))]})
    optimizer.add_param_group({"params": norm, "lr": 0.5})
    before = norm.detach().clone()
    train(optimizer, model, batch, 2)
    assert not torch.equal(norm, before)
    assert torch.equal(optimizer.state_dict()["fwlora"]["trained"]["model.norm.weight"], norm)


def test_descent_is_minus_the_gradient_along_B(chained):
    """Descent = -<grad_B, B> over the sites, before the step that consumes the gradient."""

    class Reads(KnotSchedule):
        """Reads the descent and never ties."""

        reads = frozenset({"descent"})

        def due(self, progress):
            return False

    model, optimizer, batch = chained(knots=Reads(), steps=3)
    optimizer.zero_grad()
    loss_of(model, batch).backward()
    expected = -sum(torch.sum(site.B.grad * site.B.detach()) for site in optimizer.sites.values()).item()
    optimizer.step()
    assert optimizer.progress.descent == pytest.approx(expected, rel=1e-6)
    assert len(optimizer.progress.history["descent"]) == 4
