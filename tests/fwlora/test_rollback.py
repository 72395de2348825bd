"""Rollback replays from the originals; it never subtracts."""

from __future__ import annotations

import copy

import pytest
import torch

from fwlora.errors import ArgumentError, StateError
from tests.conftest import assert_same, make_chain, train
from tests.tables import CASES


@pytest.mark.parametrize("knot", [0, 1, 2])
@pytest.mark.parametrize("source", ["state_dict", "file", "folder"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_rollback_equals_the_run_at_that_knot(tmp_path, knot, source, dtype):
    """Weights, live link, chain, ledger and counters; and the run that goes on from there."""
    from safetensors.torch import save_file

    case = CASES["opt"]
    model = case.model(dtype)
    original = copy.deepcopy(model.state_dict())
    weights = {name: value.clone() for name, value in original.items() if name != "lm_head.weight"}
    save_file(weights, tmp_path / "model.safetensors")
    original = {"state_dict": original, "file": tmp_path / "model.safetensors", "folder": tmp_path}[source]
    optimizer = make_chain(case, model)
    train(optimizer, model, case.batch(), 8)

    then_model = case.model(dtype)
    then = make_chain(case, then_model)
    train(then, then_model, case.batch(), 3 * knot)

    optimizer.rollback(knot, original=original)
    assert_same(then_model, then, model, optimizer)
    assert train(optimizer, model, case.batch(), 4) == train(then, then_model, case.batch(), 4)
    assert_same(then_model, then, model, optimizer)


def test_rollback_rereads_the_folder_that_the_model_came_from(tmp_path):
    case = CASES["llama"]
    case.model().save_pretrained(tmp_path)
    model = type(case.model()).from_pretrained(tmp_path)
    optimizer = make_chain(case, model)
    train(optimizer, model, case.batch(), 7)
    optimizer.rollback(0)
    pristine = case.model().state_dict()
    for name, site in optimizer.sites.items():
        assert torch.equal(site.weight, pristine[f"{name}.weight"])


def test_rollback_refuses_what_it_cannot_turn_back(chained):
    original = copy.deepcopy(CASES["llama"].model().state_dict())
    model, optimizer, _ = chained("llama", steps=4, train_modules=["norm"])
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(ArgumentError, match="knots 0 to 1"):
        optimizer.rollback(2, original=original)
    with pytest.raises(ArgumentError, match="loaded from nowhere"):
        optimizer.rollback(0)
    with pytest.raises(ArgumentError, match="trained in full"):
        optimizer.rollback(0, original={k: v for k, v in original.items() if "norm" not in k})
    with pytest.raises(StateError, match="other values"):
        optimizer.rollback(0, original={k: v + 1 for k, v in original.items()})
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))
    optimizer.rollback(0, original=original)
    assert torch.equal(model.model.norm.weight, original["model.norm.weight"])
