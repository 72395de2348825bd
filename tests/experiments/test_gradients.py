"""Gradients of a chain's factors are PEFT's in float32, and as near to float32's as PEFT's in half precision."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from experiments.accounting import bench as benches
from experiments.accounting.bench import Bench
from experiments.accounting.gradients import accuracy, distances, errors, gradients
from experiments.methods import ChainOfLoRA, LoRA
from fwlora import Never


@pytest.fixture
def bench(tiny_model: Path) -> Bench:
    return Bench(str(tiny_model), "fp32", "cpu", 2, 8, ("q_proj", "up_proj"), 2, 1, 4)


def test_gradients_in_float32_are_those_of_peft(bench: Bench):
    row = accuracy(bench)
    assert 0 <= row["difference"] <= row["largest"] < 1e-5
    assert (row["reason"], row["chain"], row["lora"]) == (None, None, None)


@pytest.mark.parametrize("options", [{"dtype": "bf16"}, {"autocast": True}], ids=str)
def test_gradients_in_half_precision_are_compared_with_float32(bench: Bench, options: dict):
    row = accuracy(replace(bench, **options))
    assert 1e-4 < row["lora"] < 0.1
    assert row["chain"] < 1.5 * row["lora"]
    assert 0.5 < row["paired"] < 1.5


def test_both_factors_of_every_layer_have_a_gradient_at_the_same_values(bench: Bench):
    lora, chain = (
        gradients(bench, method, 3) for method in (LoRA("LoRA", 1e-3, 2), ChainOfLoRA("chain", 1e-3, 2, Never()))
    )  # fmt: skip
    assert set(lora) == set(chain)
    assert len(lora) == 2 * 2 * 2 * 3
    assert all(value.norm() > 0 for value in lora.values())


def test_gradients_of_different_factors_are_not_compared():
    with pytest.raises(ValueError, match=r"gradients of different factors: \('A', 0\), \('B', 0\)"):
        errors({("A", 0): torch.ones(1)}, {("B", 0): torch.ones(1)})


def test_a_batchs_difference_is_that_of_all_its_factors_as_one_vector():
    reference = {("A", 0): torch.tensor([3.0]), ("B", 0): torch.tensor([4.0]), ("A", 1): torch.tensor([2.0])}
    ours = {("A", 0): torch.tensor([6.0]), ("B", 0): torch.tensor([8.0]), ("A", 1): torch.tensor([3.0])}
    assert distances(ours, reference) == [1.0, 0.5]
    assert errors(ours, reference) == [1.0, 1.0, 0.5]


def test_reference_that_does_not_fit_is_a_reason(bench: Bench, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(benches, "memory_of", lambda device: 1e3)
    assert accuracy(bench)["reason"].startswith("needs 0 GB for weights")
