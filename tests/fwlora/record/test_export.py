"""ONE standard adapter for the ORIGINAL base."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, PeftModel
from torch import nn

from fwlora import ChainLoRAOptimizer, Constant, Every, Never, StepDown
from fwlora.errors import ArgumentError
from tests.conftest import make_chain, train
from tests.tables import CASES, output

PEFT_SAYS_SO = pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to:UserWarning")


@PEFT_SAYS_SO
@pytest.mark.parametrize("kind", CASES)
def test_exported_adapter_reproduces_the_model(kind, tmp_path):
    """Every layer kind, two links and the live one, to 1e-6 of the output's scale."""
    case = CASES[kind]
    model, base = case.model(), case.model()
    optimizer = make_chain(case, model)
    train(optimizer, model, case.batch(), 8)
    report = optimizer.export_adapter(tmp_path)
    reloaded = PeftModel.from_pretrained(base, str(tmp_path)).eval()
    expected = output(model, case.batch())
    assert (output(reloaded, case.batch()) - expected).norm() <= 1e-6 * expected.norm()
    assert set(report.ranks.values()) == {6}
    assert set(report.errors.values()) == {0.0}


@PEFT_SAYS_SO
@pytest.mark.parametrize("options", [{"use_rslora": True}, {"rank_pattern": {"v_proj": 5}, "alpha_pattern": {"q_proj": 3}}])
def test_mixed_ranks_and_scales_are_folded_in(options, tmp_path):
    case = CASES["llama"]
    model, base = case.model(), case.model()
    widest = max(3, *options.get("rank_pattern", {}).values(), 3)
    config = LoraConfig(r=3, lora_alpha=7, target_modules=["q_proj", "v_proj", "down_proj"], **options)
    optimizer = ChainLoRAOptimizer(model, 0.02, lora_config=config, rank=StepDown([widest, 2]), knots=Every(3))
    train(optimizer, model, case.batch(), 8)
    optimizer.export_adapter(tmp_path)
    reloaded = PeftModel.from_pretrained(base, str(tmp_path)).eval()
    expected = output(model, case.batch())
    assert (output(reloaded, case.batch()) - expected).norm() <= 1e-6 * expected.norm()


@settings(max_examples=12, deadline=None)
@given(
    widths=st.tuples(st.integers(1, 6), st.integers(1, 6), st.integers(1, 6)), rank=st.integers(1, 4),
    knots=st.integers(0, 3), live=st.booleans(),
)  # fmt: skip
def test_any_shape_and_rank_exports_exactly(widths, rank, knots, live, tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapter")
    model = nn.Sequential(nn.Linear(widths[0], widths[1]), nn.Tanh(), nn.Linear(widths[1], widths[2]))
    base = copy.deepcopy(model)
    x = torch.randn(7, widths[0])
    optimizer = ChainLoRAOptimizer(model, 0.02, rank=rank, knots=Never())
    for step in range(2 * knots + live):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
        if step % 2:
            optimizer.tie_knot()
    report = optimizer.export_adapter(folder)
    reloaded = PeftModel.from_pretrained(base, str(folder))
    torch.testing.assert_close(reloaded(x), model(x), rtol=1e-5, atol=1e-6)
    assert report.ranks["0"] == rank * max(1, knots + live)


def test_truncation_error_is_the_singular_tail(chained, tmp_path):
    """|BA - cut| / |BA| = |sigma_{k+1..}| / |sigma| (Eckart-Young), and the report says so."""
    _, optimizer, _ = chained("llama", steps=9)
    report = optimizer.export_adapter(tmp_path, max_rank=2)
    base = CASES["llama"].model()
    reloaded = PeftModel.from_pretrained(base, str(tmp_path))
    for name, site in optimizer.sites.items():
        S = torch.linalg.svdvals(optimizer.delta(name).double())
        tail = (S[2:].norm() / S.norm()).item()
        assert report.ranks[name] == 2
        assert report.errors[name] == pytest.approx(tail, rel=1e-3)
        cut = reloaded.get_base_model().get_submodule(name).get_delta_weight("default")
        measured = (cut.double() - optimizer.delta(name)).norm() / optimizer.delta(name).norm()
        assert measured.item() == pytest.approx(tail, rel=1e-3)
        assert site.width == 2


@PEFT_SAYS_SO
@pytest.mark.parametrize("kind", ["conv2d", "embedding", "gpt2"])
def test_truncation_within_tolerance_keeps_every_layer_kind(kind, tmp_path):
    case = CASES[kind]
    model, base = case.model(), case.model()
    optimizer = make_chain(case, model, rank=3)
    train(optimizer, model, case.batch(), 9)
    report = optimizer.export_adapter(tmp_path, tolerance=0.2)
    assert max(report.errors.values()) <= 0.2
    assert sum(report.ranks.values()) < sum(report.chain_ranks.values())
    exact = output(model, case.batch())
    started = output(case.model(), case.batch())
    reloaded = output(PeftModel.from_pretrained(base, str(tmp_path)).eval(), case.batch())
    assert (reloaded - exact).norm() < 0.5 * (started - exact).norm()


def test_exported_adapter_can_start_a_new_chain(tmp_path):
    case = CASES["llama"]
    model = case.model()
    first = make_chain(case, model)
    train(first, model, case.batch(), 5)
    first.export_adapter(tmp_path / "first")
    second_model = PeftModel.from_pretrained(case.model(), str(tmp_path / "first"), is_trainable=True).eval()
    second = ChainLoRAOptimizer(second_model, 0.02, knots=Every(3), rank=Constant(4))
    train(second, second_model, case.batch(), 4)
    second.export_adapter(tmp_path / "second")
    reloaded = PeftModel.from_pretrained(case.model(), str(tmp_path / "second")).eval()
    expected = output(second_model, case.batch())
    assert (output(reloaded, case.batch()) - expected).norm() <= 1e-6 * expected.norm()


def test_adapter_folder_is_complete_and_says_what_it_is(chained, tmp_path):
    _, optimizer, _ = chained("llama", steps=4)
    report = optimizer.export_adapter(tmp_path / "deep" / "adapter", base_model="org/base")
    assert sorted(f.name for f in report.directory.iterdir()) == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    config = json.loads((report.directory / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["task_type"], config["r"]) == ("org/base", "CAUSAL_LM", 4)
    assert config["target_modules"] == sorted(optimizer.sites), "the same file at every export"
    assert "org/base" in (report.directory / "README.md").read_text()
    table = str(report).splitlines()
    assert len(table) == 2 + len(optimizer.sites)
    assert "rank" in table[1]


@pytest.mark.parametrize("options", [{"max_rank": 0}, {"max_rank": 1.5}, {"tolerance": 1.0}, {"tolerance": -0.1}])
def test_bad_bound_writes_nothing(chained, tmp_path, options):
    _, optimizer, _ = chained(steps=1)
    with pytest.raises(ArgumentError, match=next(iter(options))):
        optimizer.export_adapter(tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()
