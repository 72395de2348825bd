"""Memory from shapes is what a step on the CPU holds, method by method; and what does not fit is told why."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import AutoModelForCausalLM, OPTConfig

from experiments.accounting.architectures import LLAMA, config_of, skeleton
from experiments.accounting.bench import Bench
from experiments.accounting.cases import Case
from experiments.accounting.memory import Bytes, Saved, activation_bytes, fits, training_bytes
from experiments.accounting.weighing import isolated, tensors, weigh, weighed
from experiments.methods import ChainOfLoRA, Compiled, FullFineTuning, LoRA, Method
from experiments.pages import memory as page
from experiments.pages.weighings import BY_BLOCK, LORA, Weighing
from experiments.tasks.random_tokens import RandomTokens, next_token_loss
from experiments.train import Setup
from fwlora import Blocks, Evenly, Never
from fwlora.layers.fused import fuse

LABELS = [
    "LoRA", "frozen floor", "LoRA, fused AdamW", "LoRA, bf16 adapters", "chain", "chain, B only", "chain, one block a link",
    "chain, PEFT's forward", "ReLoRA", "LoRA+", "LoRA-FA", "rsLoRA", "DoRA", "PiSSA", "prefix tuning", "bottleneck adapters",
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
    methods = {method.label: method for method in bench.variants()}
    if label not in methods:
        assert label in {"GaLore, half-precision weights", "LoRA, bf16 adapters"}
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


@dataclass(frozen=True)
class Killed(LoRA):
    """Ends its process, as the system does where memory is short."""

    def prepare(self, *args: Any, **kwargs: Any) -> Setup:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError


def method_of(bench: Bench, label: str) -> Method:
    (found,) = [method for method in bench.variants() if method.label == label]
    return found


def layer_of(dtype: torch.dtype, *, fused: bool, freeze_A: bool = False) -> nn.Module:
    """A Linear of 8 inputs and 6 outputs with factors of rank 2 in float32."""
    model = LoRA("LoRA", 1e-3, 2).inject(nn.Sequential(nn.Linear(8, 6, bias=False)).to(dtype), ["0"])
    layer: Any = model[0]  # pyright: ignore[reportIndexIssue]
    layer.lora_A["default"].weight.requires_grad_(not freeze_A)
    assert not fused or fuse(layer)
    return model


@pytest.mark.parametrize(
    ("dtype", "fused", "freeze_A", "numbers"),
    [
        # x, x A^T and the output before it is added to: (5, 8), (5, 2) and, being the output, (5, 6).
        (torch.float32, False, False, 4 * 5 * (8 + 2 + 6)),
        (torch.float32, True, False, 4 * 5 * (8 + 2 + 6)),
        # PEFT keeps x in float32, and x A^T; the fused layer both as the base is.
        (torch.bfloat16, False, False, 4 * 5 * (8 + 2) + 2 * 5 * 6),
        (torch.bfloat16, True, False, 2 * 5 * (8 + 2 + 6)),
        # Nothing is kept for a frozen A.
        (torch.float32, True, True, 4 * 5 * (2 + 6)),
        (torch.bfloat16, True, True, 2 * 5 * (2 + 6)),
    ],
)
def test_a_layer_saves_what_its_gradients_need(dtype: torch.dtype, fused: bool, freeze_A: bool, numbers: int):
    layer = layer_of(dtype, fused=fused, freeze_A=freeze_A)
    assert activation_bytes(layer, 5, example=torch.empty(1, 8, dtype=dtype)) == numbers
    saved = Saved()
    with saved:
        saved.keep(layer(torch.ones(5, 8, dtype=dtype)))
    assert saved.bytes(layer.parameters()) == numbers


def test_a_chain_saves_less_than_peft_on_half_precision_and_as_much_on_full(bench: Bench):
    lora, chain = method_of(bench, "LoRA"), method_of(bench, "chain")
    assert bench.bytes(chain).activations < bench.bytes(lora).activations
    full = replace(bench, dtype="fp32")
    assert full.bytes(chain).activations == full.bytes(lora).activations
    assert bench.bytes(method_of(bench, "chain, PEFT's forward")).activations == bench.bytes(lora).activations
    assert bench.bytes(Compiled("chain, compiled", chain)) == bench.bytes(chain)


def test_estimate_of_a_chain_leaves_the_count_of_flops_to_pefts_layers(bench: Bench):
    chain = method_of(bench, "chain")
    model = chain.inject(bench.skeleton(), bench.targets)
    assert {type(layer).__name__ for layer in model.modules() if isinstance(layer, LoraLayer)} == {"Linear"}


def test_a_block_a_link_is_weighed_block_by_block(bench: Bench):
    by_block = ChainOfLoRA("by block", 1e-4, 2, Evenly(2), blocks=Blocks(2))
    row, whole = weigh(bench, by_block), weigh(bench, method_of(bench, "chain"))
    # The first of two blocks needs the backward pass through both, the second the one through itself.
    assert row["mean"] < row["saved"] < whole["saved"]
    assert row["body_mean"] < row["body"]
    assert (row["blocks"], whole["blocks"]) == (2, 1)
    assert row["gradients"] * 2 == whole["gradients"]
    assert row["trained"] == whole["trained"]


def test_blocks_that_had_no_turn_leave_no_mean(bench: Bench):
    """No knot, no second block."""
    by_block = ChainOfLoRA("by block", 1e-4, 2, Never(), blocks=Blocks(2))
    row = weigh(replace(bench, steps=3), by_block)
    assert row["saved"] > row["kept"] > row["body"] > 0
    assert (row["blocks"], row["mean"], row["kept_mean"], row["body_mean"]) == (2, None, None, None)
    facts = {"case": "a case", "base": "tiny", "dtype": "bf16", "targets": "all-linear"}
    case = Weighing({LORA: facts | weigh(bench, method_of(bench, "LoRA")), BY_BLOCK: facts | row})
    cells = dict(zip(page.HEADINGS, page.table(case).rows[1], strict=True))
    assert (cells["kept by autograd [MiB]"], cells["before the logits [MiB]"]) == ("-", "-")
    assert case.ratio(BY_BLOCK, LORA, "kept_mean") is None


@pytest.mark.parametrize("steps", [4, 5, 8])
def test_badam_comes_to_every_block(bench: Bench, steps: int):
    row = weigh(replace(bench, steps=steps), method_of(replace(bench, steps=steps), "BAdam"))
    if row["reason"] is not None:
        pytest.skip(row["reason"])
    assert row["blocks"] == 2
    assert row["mean"] is not None


def test_a_child_that_is_killed_is_a_reason(bench: Bench):
    row = isolated(bench, Killed("killed", 1e-3, 2))
    assert row["reason"] == "its process was killed, as for want of memory"
    assert page.table(Weighing({"killed": {"case": "a case"} | row})).rows[0][1] == row["reason"]


def test_what_is_there_before_the_head_is_without_the_logits(bench: Bench):
    row = weigh(bench, method_of(bench, "LoRA"))
    vocabulary, tokens = 21, 2 * 8
    logits, shifted = 2 * tokens * vocabulary, 4 * (tokens - 2) * vocabulary
    # The logits, their log-softmax in float32, and the tokens that were to be predicted, and a float32 number beside.
    assert row["saved"] - row["body"] - logits - shifted - 8 * (tokens - 2) == 4
    assert row["saved"] - row["kept"] == logits, "autograd needs the loss's copy alone"
    assert row["peak_body"] is None


def test_bytes_before_the_head_are_all_of_them_where_there_is_no_head():
    network, saved = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), Saved()
    with saved, saved.before_head(network):
        network(torch.ones(5, 4))
    assert saved.body_bytes(network.parameters()) == saved.bytes(network.parameters()) == 4 * 5 * (4 + 8)


def test_a_compiled_model_tells_what_it_saves_and_not_where(bench: Bench):
    lora = method_of(bench, "LoRA")
    row = weigh(bench, Compiled("LoRA, compiled", lora, backend="aot_eager"))
    assert 0 < row["saved"] <= weigh(bench, lora)["saved"]
    assert (row["body"], row["body_mean"], row["peak"], row["peak_body"]) == (None, None, None, None)
    cells = page.table(Weighing({"LoRA, compiled": {"case": "a case"} | row})).rows[0]
    assert cells[6:] == ["-", "-", "0.00", "-", "-", "-"]


def test_compiled_models_are_weighed_where_they_are_named(bench: Bench):
    case = Case(bench, "q_proj+v_proj", "a case")
    assert not {"LoRA, compiled", "chain, compiled"} & {method.label for method in weighed(case, (), first=True)}
    named = [method.label for method in weighed(case, ("chain, compiled",), first=False)]
    assert named == ["frozen floor", "LoRA", "chain, compiled"]
    full = Case(replace(bench, dtype="fp32"), "q_proj+v_proj", "a case")
    halves = ("LoRA, bf16 adapters", "chain")
    assert [method.label for method in weighed(full, halves, first=True)] == ["frozen floor", "LoRA", "chain"]
    assert len(weighed(case, halves, first=True)) == 4


def test_the_frozen_floor_saves_least_of_what_reaches_the_embeddings(bench: Bench):
    bench = replace(bench, targets=("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"))
    floor = weigh(bench, method_of(bench, "frozen floor"))
    assert (floor["trained"], floor["gradients"], floor["optimizer"], floor["host"]) == (0, 0, 0, 0)
    assert floor["saved"] < weigh(bench, method_of(bench, "chain"))["saved"] < weigh(bench, method_of(bench, "LoRA"))["saved"]


def test_a_method_that_runs_out_of_memory_has_its_reason_and_no_bytes(bench: Bench, monkeypatch: pytest.MonkeyPatch):
    def prepare(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")

    monkeypatch.setattr(LoRA, "prepare", prepare)
    row = weigh(bench, method_of(bench, "LoRA"))
    assert row["reason"] == "out of memory: CUDA out of memory"
    assert row["peak"] is None
    assert page.table(Weighing({"LoRA": {"case": "a case"} | row})).rows[0][:2] == ["LoRA", row["reason"]]


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
