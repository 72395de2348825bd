"""The ways out of a chain on a quantised base: an adapter for it, a compressed chain, a plain model."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import PeftModel
from torch import nn

from fwlora import Blocks, Never, StepDown
from fwlora.errors import ArgumentError
from tests.conftest import make_chain, train
from tests.quantising import quantised, stood_for
from tests.tables import CASES, QUANTISED, output

EVERY_KIND = pytest.mark.parametrize("kind", QUANTISED)


def relative(value: torch.Tensor, expected: torch.Tensor) -> float:
    return ((value - expected).norm() / expected.norm()).item()


@EVERY_KIND
@pytest.mark.parametrize("options", [{}, {"rank": StepDown([3, 2, 1])}], ids=["plain", "ranks step down"])
def test_exported_adapter_reproduces_the_model_on_the_quantised_base(chained, kind, options, tmp_path):
    """To 1e-6; on what the packed weights stand for too."""
    model, optimizer, batch = chained(kind, steps=8, **options)
    optimizer.export_adapter(tmp_path)
    expected = output(model, batch)
    base = QUANTISED[kind].model()
    for original in (stood_for(base), base):
        assert relative(output(PeftModel.from_pretrained(original, str(tmp_path)), batch), expected) <= 1e-6


@EVERY_KIND
def test_disabled_adapter_is_the_base_after_the_knots(chained, kind):
    """As on a merged base; a model without its factors keeps what was tied."""
    model, optimizer, batch = chained(kind, steps=3)
    tied = output(model, batch)
    train(optimizer, model, batch, 2)
    for site in optimizer.sites.values():
        site.layer.enable_adapters(False)
    assert relative(output(model, batch), tied) < 1e-6


@EVERY_KIND
def test_compressing_states_its_error_and_moves_the_model_by_it(chained, kind):
    """Each site's total moves by exactly the relative error that the report states, the best there is at that rank."""
    model, optimizer, batch = chained(kind, steps=9)
    totals = {name: optimizer.delta(name).double() for name in optimizer.sites}
    report = optimizer.compress(max_rank=3)
    for name, total in totals.items():
        tail = torch.linalg.svdvals(total)[3:].norm() / total.norm()
        assert report.errors[name] == pytest.approx(tail.item(), rel=1e-3)
        assert relative(optimizer.delta(name), total) == pytest.approx(report.errors[name], rel=1e-3)
    assert (set(report.ranks.values()), set(report.chain_ranks.values())) == ({3}, {6})
    assert str(report).startswith("chain compressed\n")
    twin = stood_for(QUANTISED[kind].model())
    for name in totals:
        twin.get_submodule(name).weight.data += optimizer.delta(name)
    assert relative(output(model, batch), output(twin, batch)) < 1e-5


@EVERY_KIND
def test_compressing_to_a_tolerance_keeps_it(chained, kind):
    _, optimizer, _ = chained(kind, steps=9)
    totals = {name: optimizer.delta(name).double() for name in optimizer.sites}
    report = optimizer.compress(tolerance=0.2)
    for name, total in totals.items():
        error = relative(optimizer.delta(name), total)
        assert error == pytest.approx(report.errors[name], rel=1e-3)
        tails = [
            torch.linalg.svdvals(total)[rank:].norm() / total.norm() for rank in (report.ranks[name] - 1, report.ranks[name])
        ]
        assert tails[0] > 0.2 >= tails[1], "the smallest rank that does"


@EVERY_KIND
def test_compressing_changes_nothing_where_the_rank_suffices(chained, kind):
    model, optimizer, batch = chained(kind, steps=8)
    before = output(model, batch)
    report = optimizer.compress(max_rank=100)
    assert max(report.errors.values()) < 1e-6
    assert relative(output(model, batch), before) < 1e-6


@EVERY_KIND
def test_compressed_chain_goes_on_saves_and_turns_back(chained, kind, tmp_path):
    """Resume is exact, the next knot adds to it, an export holds it, and a rollback finds the earlier links as they were."""
    model, optimizer, batch = chained(kind, steps=7, chain_dir=tmp_path / "links")
    optimizer.compress(max_rank=2)
    assert (len(optimizer.chain), len(optimizer.ledger), optimizer.progress.step) == (2, 2, 7)
    other_model, other, _ = chained(kind, chain_dir=tmp_path / "links")
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert torch.equal(output(other_model, batch), output(model, batch))
    assert train(other, other_model, batch, 4) == train(optimizer, model, batch, 4)
    assert optimizer.chain.rank("layers.0") == 2 + 2

    optimizer.export_adapter(tmp_path / "adapter")
    reloaded = PeftModel.from_pretrained(QUANTISED[kind].model(), str(tmp_path / "adapter"))
    assert relative(output(reloaded, batch), output(model, batch)) <= 1e-6

    optimizer.rollback(1)
    expected, _, _ = chained(kind, steps=3)
    assert torch.equal(output(model, batch), output(expected, batch))


def test_compressing_reaches_sites_that_rested_in_the_last_link(chained):
    model, optimizer, batch = chained("nf4", steps=12, blocks=Blocks(3))
    totals = {name: optimizer.delta(name) for name in optimizer.sites}
    report = optimizer.compress(max_rank=1)
    for name, total in totals.items():
        assert relative(optimizer.delta(name), total) == pytest.approx(report.errors[name], rel=1e-3, abs=1e-6)
        assert report.ranks[name] == 1
    assert torch.isfinite(output(model, batch)).all()


@pytest.mark.parametrize(
    ("kind", "steps", "bounds", "message"),
    [
        ("linear", 4, {"max_rank": 2}, "kept beside quantised weights; here they are merged"),
        ("nf4", 1, {"max_rank": 2}, "before the first knot"),
        ("nf4", 4, {}, r"`compress\(max_rank=None, tolerance=None\)` takes one bound"),
        ("nf4", 4, {"max_rank": 2, "tolerance": 0.1}, r"`compress\(max_rank=2, tolerance=0.1\)` takes one bound"),
        ("nf4", 4, {"max_rank": 0}, r"`compress\(max_rank=...\)` takes a whole number.*got 0"),
        ("nf4", 4, {"tolerance": 1.5}, r"`compress\(tolerance=...\)` takes a relative error.*got 1.5"),
    ],
)
def test_what_cannot_be_compressed_is_refused_and_nothing_changed(chained, kind, steps, bounds, message):
    model, optimizer, batch = chained(kind, steps=steps)
    before, links = output(model, batch), len(optimizer.chain)
    with pytest.raises(ArgumentError, match=message):
        optimizer.compress(**bounds)
    assert torch.equal(output(model, batch), before)
    assert len(optimizer.chain) == links


@EVERY_KIND
def test_merging_into_packed_weights_is_refused_and_training_goes_on(chained, kind):
    model, optimizer, batch = chained(kind, steps=4)
    before = output(model, batch)
    with pytest.raises(ArgumentError, match=r"`merge_and_unload\(dequantize=False\)`.*'layers.0'.*export_adapter"):
        optimizer.merge_and_unload()
    assert torch.equal(output(model, batch), before)
    assert len(train(optimizer, model, batch, 3)) == 3


@EVERY_KIND
@pytest.mark.parametrize("steps", [1, 8], ids=["before a knot", "after knots"])
def test_dequantizing_gives_a_plain_model_that_computes_the_same(chained, kind, steps):
    model, optimizer, batch = chained(kind, steps=steps)
    before = output(model, batch)
    plain = optimizer.merge_and_unload(dequantize=True)
    assert plain is model
    assert [type(plain.get_submodule(name)) for name in optimizer.sites] == [nn.Linear] * 3
    assert list(plain.state_dict()) == [f"layers.{n}" for n in ("0.weight", "0.bias", "2.weight", "4.weight", "4.bias")]
    assert relative(output(plain, batch), before) < 1e-6
    assert output(plain.bfloat16(), batch).dtype is torch.bfloat16


def test_dequantizing_takes_the_precision_of_the_models_activations():
    """An ordinary Linear casts nothing, so its weight is in what most of the model is in."""
    case = QUANTISED["nf4"]
    model = case.model().to(torch.bfloat16)  # packed weights stay as they are
    model.layers.append(nn.Linear(8, 300, dtype=torch.bfloat16))
    optimizer = make_chain(case, model, target_modules=["layers.0", "layers.2"])
    train(optimizer, model, case.batch(), 4)
    before = output(model, case.batch())
    plain = optimizer.merge_and_unload(dequantize=True)
    assert {p.dtype for p in plain.parameters()} == {torch.bfloat16}
    assert type(plain.layers[4]) is nn.Linear, "a packed layer that was no site is dequantised too"
    assert relative(output(plain, case.batch()), before) < 1.2e-2


def test_float_model_is_merged_alike_with_and_without_dequantizing(chained):
    """There is nothing to dequantise, so that a script may always ask."""
    models = []
    for options in ({}, {"dequantize": True}):
        _, optimizer, _ = chained("linear", steps=4)
        models.append(optimizer.merge_and_unload(**options).state_dict())
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])


def test_packed_and_float_sites_share_a_chain(tmp_path):
    """Each does as its kind: links are kept here and merged there, and all leave in one adapter."""
    case = CASES["linear"]

    def mixed() -> nn.Module:
        model = case.model()
        model.layers[2] = quantised(model.layers[2], "int8")
        return model.train()

    model = mixed()
    optimizer = make_chain(case, model)
    train(optimizer, model, case.batch(), 7)
    other_model = mixed()
    other = make_chain(case, other_model)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert torch.equal(output(other_model, case.batch()), output(model, case.batch()))
    assert set(optimizer.compress(max_rank=1).ranks) == {"layers.2"}
    optimizer.export_adapter(tmp_path)
    reloaded = PeftModel.from_pretrained(mixed(), str(tmp_path)).train()
    assert relative(output(reloaded, case.batch()), output(model, case.batch())) <= 1e-6
    optimizer.rollback(1, original=mixed().state_dict())
    assert len(optimizer.chain) == 1
    before = output(model, case.batch())
    assert relative(output(optimizer.merge_and_unload(dequantize=True), case.batch()), before) < 1e-6


def test_exported_adapter_starts_a_new_chain(chained, tmp_path):
    """A live link from elsewhere is retired like any other."""
    model, optimizer, batch = chained("nf4", steps=5, knots=Never())
    optimizer.export_adapter(tmp_path)
    base = QUANTISED["nf4"].model()
    base.is_loaded_in_4bit = True
    adopted = PeftModel.from_pretrained(base, str(tmp_path), is_trainable=True)
    chain = make_chain(QUANTISED["nf4"], adopted, rank=None, target_modules=None)
    chain.tie_knot()
    assert relative(output(adopted, batch), output(model, batch)) < 1e-6
