"""All methods take turns; what the page says follows from the laps, whatever the clock said."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch._inductor.exc import CppCompileError

from experiments.__main__ import main
from experiments.accounting import bench as benches
from experiments.accounting import timing
from experiments.accounting.bench import Bench, targets_of, tf32
from experiments.accounting.cases import cases_of
from experiments.accounting.refusals import told
from experiments.accounting.timing import AGAIN, WARM_UP, Lap, Runner, order, race
from experiments.errors import UsageError
from experiments.methods import FrozenFloor, LoRA, Method
from experiments.records import RunFolder
from experiments.studies.speed import Config
from experiments.train import Setup, train

FLOOR = "frozen floor"


@pytest.fixture
def bench(tiny_model: Path) -> Bench:
    return Bench(str(tiny_model), "fp32", "cpu", 2, 8, ("q_proj",), 2, 1, WARM_UP + 4)


def some(bench: Bench, *labels: str) -> list[Method]:
    found = {method.label: method for method in bench.variants()}
    return [found[label] for label in labels]


def test_smoke_run_of_the_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(os, "environ", os.environ.copy())
    assert main(["speed", "--preset", "smoke", "--out", str(tmp_path)]) == 0
    rows = {row["method"]: row for row in RunFolder(tmp_path).rows("laps.jsonl")}
    assert list(rows) == [FLOOR, AGAIN, "LoRA", "chain", "full fine-tuning"]
    for row in rows.values():
        assert row["case"] == "small-llama, bf16, q_proj+v_proj"
        assert len(row["laps"]) == len(row["parts"]) == 7
        assert min(wall for wall, _ in row["laps"]) > 0
    # Three knots in 2 + 7 steps: after steps 3, 5 and 7.
    assert rows["chain"]["knots"] == [0, 2, 4]
    assert rows[FLOOR]["parameters"] == 0
    assert rows["full fine-tuning"]["parameters"] > 100 * rows["LoRA"]["parameters"]
    (gradients,) = RunFolder(tmp_path).rows("gradients.jsonl")
    assert 0 < gradients["chain"] < 0.2
    assert 0 < gradients["lora"] < 0.2
    readme = (tmp_path / "README.md").read_text(encoding="utf-8")
    for text in (capsys.readouterr().out, readme):
        assert "a chain's step takes" in text
        assert "steadiness: " in text
        assert "gradients' error / error of LoRA's" in text
    assert "python -m experiments speed --bases small-llama --dtypes bf16" in readme
    assert (tmp_path / "figures" / "rounds.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("size", [1, 2, 5, 6, 17])
def test_each_follows_each_other_equally_often(size: int):
    turns = [order(size, number) for number in range(2 * size)]
    assert all(sorted(turn) == list(range(size)) for turn in turns)
    follows = Counter(pair for turn in turns for pair in pairwise(turn))
    assert len(follows) == size * (size - 1)
    assert set(follows.values()) <= {2}
    assert Counter(turn[0] for turn in turns) == dict.fromkeys(range(size), 2)


def test_every_round_has_a_step_of_each_and_two_of_the_floor(bench: Bench, monkeypatch: pytest.MonkeyPatch):
    taken: list[str] = []

    class Noted(Runner):
        def step(self) -> Lap:
            taken.append(self.method.label)
            return super().step()

    monkeypatch.setattr(timing, "Runner", Noted)
    done: list[None] = []
    methods = some(bench, FLOOR, "LoRA", "chain")
    rows = race(bench, methods, rounds=4, on_round=lambda: done.append(None))
    entries = [FLOOR, AGAIN, "LoRA", "chain"]
    assert [row["method"] for row in rows] == entries
    expected = [entries[place].replace(AGAIN, FLOOR) for number in range(WARM_UP + 4) for place in order(4, number)]
    assert taken == expected
    assert len(done) == WARM_UP + 4
    assert [len(row["laps"]) for row in rows] == [4] * 4
    # Two links in six steps: a knot after the third.
    assert rows[3]["knots"] == [0]


def test_a_runner_trains_as_the_loop_does(bench: Bench):
    """A step at a time or all at once: the same weights."""
    (chain,) = some(bench, "chain")
    runner = Runner.ready(bench, chain)
    for _ in range(5):
        runner.step()
    whole = Runner.ready(bench, chain).setup
    train(whole, bench.task(), steps=5)
    for mine, theirs in zip(runner.setup.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    assert list(runner.knots()) == [3]


def test_parts_of_the_model_that_take_turns_are_noted(bench: Bench):
    methods = some(bench, FLOOR, "LoRA", "chain, one block a link", "BAdam", "ReLoRA")
    rows = {row["method"]: row for row in race(bench, methods, rounds=4)}
    assert rows["LoRA"]["parts"] == [0] * 4
    assert rows["chain, one block a link"]["parts"] == [0, 1, 1, 1]
    # From the last block; the first time it is left a step early.
    assert rows["BAdam"]["parts"] == [0, 0, 0, 1]
    assert [row["blocks"] for row in rows.values()] == [1, 1, 1, 2, 2, 1]
    assert rows["ReLoRA"]["knots"] == [0]


@dataclass(frozen=True)
class Failing(LoRA):
    """Refuses itself when it is made, or at a step."""

    at: int = 0

    def prepare(self, *args, **kwargs) -> Setup:
        if self.at == 0:
            raise UsageError("it cannot be made.\nMore lines.")
        setup = super().prepare(*args, **kwargs)

        def fail(step: int) -> None:
            if step == self.at:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")

        setup.after_step = fail
        return setup


def test_a_fault_is_no_reason():
    assert told(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")) == (
        "out of memory: CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"
    )
    assert told(CppCompileError(["g++", "x.cpp"], "no such header")).startswith("C++ compile error")
    with pytest.raises(RuntimeError, match="shapes do not match"):
        told(RuntimeError("shapes do not match"))


@pytest.mark.parametrize(("at", "reason"), [(0, "it cannot be made"), (4, "out of memory: CUDA out of memory")])
def test_a_variant_that_cannot_run_has_a_reason_and_the_others_go_on(bench: Bench, at: int, reason: str):
    rows = race(bench, [*some(bench, FLOOR, "LoRA"), Failing("failing", 1e-3, 2, at=at)], rounds=4)
    assert rows[-1]["reason"] == reason
    assert rows[-1]["laps"] == []
    assert [len(row["laps"]) for row in rows[:-1]] == [4, 4, 4]


def test_a_method_that_does_not_fit_beside_the_others_has_a_reason(bench: Bench, monkeypatch: pytest.MonkeyPatch):
    methods = some(bench, FLOOR, "full fine-tuning", "LoRA")
    floor, full, lora = (bench.bytes(method) for method in methods)
    # The largest activations are there once, beside all states.
    room = floor.state + full.state + full.activations
    monkeypatch.setattr(benches, "memory_of", lambda device: float(room))
    rows = race(bench, methods, rounds=1)
    assert [row["reason"] is None for row in rows] == [True, True, True, False]
    free = f"{(room - floor.state - full.state - max(full.activations - lora.activations, 0)) / 1e9:.4g} GB"
    assert f"; beside the others the device has {free}: take a smaller batch" in rows[-1]["reason"]
    monkeypatch.setattr(benches, "memory_of", lambda device: float(room + lora.state))
    assert all(row["reason"] is None for row in race(bench, methods, rounds=1))


@pytest.mark.parametrize("options", [{"autocast": True}, {"checkpointing": True}], ids=str)
def test_autocast_and_checkpointing_reach_the_step(bench: Bench, options: dict[str, bool]):
    changed = replace(bench, **options)
    (lora,) = some(changed, "LoRA")
    # On meta tensors autocast is not counted.
    assert (changed.bytes(lora).activations < bench.bytes(lora).activations) == changed.checkpointing
    losses = [one.task().loss(one.model(), one.task().batches(0)[0]).item() for one in (bench, changed)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-2)
    assert (losses[1] == losses[0]) == (not changed.autocast)
    rows = race(changed, [FrozenFloor(FLOOR), lora], rounds=1)
    assert all(row["reason"] is None for row in rows)


def test_tf32_is_put_back():
    before = torch.get_float32_matmul_precision()
    with tf32(True):
        assert torch.get_float32_matmul_precision() == "high"
    assert torch.get_float32_matmul_precision() == before


def test_all_linear_layers_are_all_but_the_head():
    assert targets_of("opt-512", ("all-linear",)) == ("k_proj", "v_proj", "q_proj", "out_proj", "fc1", "fc2")
    assert targets_of("opt-512", ("q_proj", "v_proj")) == ("q_proj", "v_proj")


def test_grid_has_few_methods_but_for_its_first_case():
    cases = cases_of(Config(device="cpu"), steps=22)
    assert len(cases) == 16
    assert [case.label for case in cases[:3]] == [
        "llama-512, bf16, all-linear", "llama-512, bf16, q_proj+v_proj", "llama-512, fp32, all-linear"
    ]  # fmt: skip
    first, other = ([method.label for method in case.methods((), first=case is cases[0])] for case in cases[:2])
    assert other == [FLOOR, "LoRA", "LoRA, fused AdamW", "chain", "chain, B only"]
    assert first[:2] == [FLOOR, "LoRA"]
    assert {"LoRA, bf16 adapters", "ReLoRA", "GaLore", "GaLore, half-precision weights", "BAdam"} < set(first)
    assert "DoRA" not in first
    # All linear layers of a bf16 base have targets for some more.
    with_more = [case.label for case in cases if "chain, compiled" in [m.label for m in case.methods((), first=False)]]
    assert with_more == [f"{base}, bf16, all-linear" for base in Config().bases]
    more = {"chain, one block a link", "LoRA, compiled", "chain, compiled"}
    assert {method.label for method in cases[0].methods((), first=False)} == {*other, *more}
    asked = ("DoRA", "LoRA, bf16 adapters")
    assert [method.label for method in cases[0].methods(asked, first=True)] == [FLOOR, "LoRA", "LoRA, bf16 adapters", "DoRA"]
    assert [method.label for method in cases[2].methods(asked, first=False)] == [FLOOR, "LoRA", "DoRA"]
