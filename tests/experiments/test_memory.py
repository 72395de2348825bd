"""Memory from shapes is what a step on the CPU holds, method by method; and what does not fit is told why."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, OPTConfig

from experiments.__main__ import main
from experiments.accounting import bench as benches
from experiments.accounting.architectures import LLAMA, config_of, skeleton
from experiments.accounting.bench import Bench
from experiments.accounting.memory import Bytes, Saved, activation_bytes, fits, training_bytes
from experiments.accounting.weighing import isolated, tensors, weigh
from experiments.methods import FullFineTuning, LoRA
from experiments.pages import memory as page
from experiments.records import RunFolder
from experiments.tasks.random_tokens import RandomTokens, next_token_loss

LABELS = [
    "LoRA", "chain", "chain, B only", "LoRA+", "LoRA-FA", "rsLoRA", "DoRA", "PiSSA", "prefix tuning", "bottleneck adapters",
    "full fine-tuning", "GaLore", "GaLore, half-precision weights", "BAdam",
]  # fmt: skip


@pytest.fixture
def bench(tiny_model: Path) -> Bench:
    """Two rows on a two-layer Llama in bfloat16, and one knot."""
    return Bench(str(tiny_model), "bf16", "cpu", 2, 8, ("q_proj", "v_proj"), 2, 1, 4)


@pytest.mark.parametrize("label", LABELS)
@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_the_estimate_is_what_a_step_holds(bench: Bench, label: str, dtype: str):
    bench = replace(bench, dtype=dtype)
    methods = {method.label: method for method in bench.methods(())}
    if label not in methods:
        assert label.endswith("half-precision weights")
        assert dtype == "fp32"
        return
    row = weigh(bench, methods[label])
    if row["reason"] is not None:
        pytest.skip(row["reason"])
    estimate = row["estimate"]
    assert row["gradients"] == estimate["gradients"]
    assert row["optimizer"] == estimate["optimizer"]
    assert row["saved"] == estimate["activations"]


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_activations_from_shapes_are_those_of_the_cpu_dropout_included(attention: str):
    config = OPTConfig(
        vocab_size=50, hidden_size=16, ffn_dim=24, num_hidden_layers=2, num_attention_heads=4, word_embed_proj_dim=16,
        max_position_embeddings=32, dropout=0.1,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    LoRA("LoRA", 1e-3, 2).inject(model, ["q_proj", "v_proj"])
    task = RandomTokens(50, rows=3, length=9)
    model.train()
    saved = Saved()
    with saved:
        batch = task.batches(0)[0]
        logits = task.logits(model, batch)
        saved.keep(logits)
        next_token_loss(logits, batch)
    model.eval()
    assert activation_bytes(model, 3, 9) == saved.bytes([*model.parameters(), *model.buffers()]) > 0


def test_activations_of_a_network_are_the_tensors_it_keeps():
    """Backward needs each layer's input and the ReLU's result, which is the second's input; and there is the output."""
    network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    assert activation_bytes(network, 5, example=torch.empty(1, 4)) == 4 * 5 * (4 + 8 + 2)


def test_views_of_one_storage_are_one_and_parameters_are_none():
    saved, whole, weight = Saved(), torch.empty(10), nn.Parameter(torch.empty(3))
    for tensor in (whole, whole[2:], whole.view(2, 5), weight, torch.empty(2)):
        saved.keep(tensor)
    assert saved.bytes([weight]) == 4 * 12


def test_full_fine_tuning_of_a_half_precision_base_needs_sixteen_bytes_a_parameter():
    method, bare = FullFineTuning("full", 1e-4), skeleton(config_of(LLAMA), torch.bfloat16)
    numbers = sum(parameter.numel() for parameter in bare.parameters())
    needed = training_bytes(method, bare, (), 1, 8)
    assert needed.weights - sum(buffer.nbytes for buffer in bare.buffers()) == needed.gradients == 4 * numbers
    assert needed.optimizer == 8 * numbers
    assert fits(needed, 80) == "needs 108 GB for weights, gradients and the optimizer's state alone; the device has 80 GB"
    assert fits(needed, 80, "AdamW's moments").startswith("needs 108 GB for weights, gradients and AdamW's moments alone")  # pyright: ignore


def test_fits_says_what_does_not():
    needed = Bytes(weights=10 * 10**9, gradients=0, optimizer=0, activations=5 * 10**9)
    assert fits(needed, 15) is None
    assert fits(needed, 12) == "needs 15 GB, 5 GB of them for activations; the device has 12 GB: take a smaller batch"
    assert fits(needed, 9) == "needs 10 GB for weights, gradients and the optimizer's state alone; the device has 9 GB"


def test_a_half_precision_chain_keeps_links_and_rounding_errors_on_the_host(bench: Bench):
    (chain,) = [method for method in bench.methods(("chain",)) if method.label == "chain"]
    # q is 16 x 16, v 8 x 16, in two layers: one link of rank 2 in float32, and a byte for each weight.
    link = 2 * 4 * 2 * ((16 + 16) + (8 + 16))
    assert weigh(bench, chain)["host"] == link + 2 * (16 * 16 + 8 * 16)
    assert weigh(replace(bench, dtype="fp32"), chain)["host"] == link


def test_tensors_are_found_once_in_objects_and_containers():
    class Projector:
        def __init__(self, matrix: torch.Tensor) -> None:
            self.ortho_matrix = matrix

    one, two = torch.empty(2), torch.empty(3)
    found = list(tensors({"a": [one, (one, Projector(two))], "step": 3}))
    assert [tensor.numel() for tensor in found] == [2, 3]


def test_a_process_of_its_own_tells_its_peak(bench: Bench):
    row = isolated(bench, bench.methods(("chain",))[1])
    assert row["reason"] is None
    if Path("/proc/self/status").exists():
        assert row["peak"] > 0


def test_smoke_run_of_the_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(os, "environ", os.environ.copy())
    assert main(["memory", "--preset", "smoke", "--out", str(tmp_path)]) == 0
    rows = RunFolder(tmp_path).rows("weights.jsonl")
    assert [row["method"] for row in rows] == ["LoRA", "chain", "full fine-tuning"]
    assert {page.agreement(row) for row in rows} == {"1.000"}
    readme = (tmp_path / "README.md").read_text(encoding="utf-8")
    for text in (capsys.readouterr().out, readme):
        assert "chain: 1.00 of LoRA's trained parameters, gradients and optimizer, 1.00 of what LoRA saves" in text
    assert (tmp_path / "figures" / "memory.png").read_bytes().startswith(b"\x89PNG")


def test_a_method_that_cannot_run_leaves_its_reason_in_a_cell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_model: Path
):
    monkeypatch.setattr(os, "environ", os.environ.copy())
    gone = "galore-torch is not installed: pip install --group peers"
    monkeypatch.setattr(benches, "unavailable", lambda method: gone if method.label == "GaLore" else None)
    options = ["--base", str(tiny_model), "--length", "8", "--device", "cpu", "--in-process", "--methods", "GaLore"]
    assert main(["memory", *options, "--dtype", "fp32", "--out", str(tmp_path)]) == 0
    rows = RunFolder(tmp_path).rows("weights.jsonl")
    assert [row["reason"] for row in rows] == [None, gone]
    assert gone in (tmp_path / "README.md").read_text(encoding="utf-8")
    assert page.findings(rows) == [f"GaLore: not measured; {gone}."]


def test_a_base_that_does_not_fit_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(os, "environ", os.environ.copy())
    monkeypatch.setattr(benches, "memory_of", lambda device: 1e6)
    assert main(["memory", "--preset", "smoke", "--out", str(tmp_path / "out")]) == 2
    assert "--base small-llama: LoRA itself needs" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
