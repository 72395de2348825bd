"""All methods take turns; what the page says follows from the laps, whatever the clock said."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

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
from experiments.pages import speed as page
from experiments.pages.laps import Race
from experiments.pages.running import command_of
from experiments.pages.step_targets import judged
from experiments.records import RunFolder, plain
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


def row(
    method: str, seconds: list[float], knots: tuple[int, ...] = (), parts: list[int] | None = None, blocks: int = 1
) -> dict[str, Any]:
    """A record whose processor time is twice its wall time."""
    return {
        "case": "llama-512, bf16, all-linear", "base": "llama-512", "dtype": "bf16", "targets": "all-linear", "rows": 4,
        "method": method, "reason": None, "laps": [(wall, 2 * wall) for wall in seconds], "knots": list(knots),
        "parts": parts or [0] * len(seconds), "blocks": blocks, "parameters": 10,
    }  # fmt: skip


def given(*rows: dict, clock: int = 1) -> Race:
    return Race({one["method"]: one for one in rows}, clock)


FLOORS = (row(FLOOR, [1, 2, 1, 1]), row(AGAIN, [3, 2, 1, 1]))
LORA = row("LoRA", [4, 4, 2, 4])


def test_ratios_are_taken_within_rounds_and_without_knots():
    raced = given(*FLOORS, LORA, row("chain", [2, 9, 1, 3], knots=(1,)))
    ratios = raced.ratios("chain", "LoRA")
    assert ratios is not None
    assert ratios.values.tolist() == [0.5, 0.5, 0.75]
    assert ratios.typical == 0.5
    assert ratios.quartiles == (0.5, 0.625)
    assert raced.seconds(FLOOR).tolist() == [4, 4, 2, 2]  # the means of two laps each, in processor time
    assert raced.ratios("chain", FLOOR).values.tolist() == [1.0, 1.0, 3.0]  # pyright: ignore[reportOptionalMemberAccess]
    assert raced.drift.values.tolist() == [3.0, 1.0, 1.0, 1.0]  # pyright: ignore[reportOptionalMemberAccess]
    assert raced.knot("chain") == pytest.approx((9 - 2) / 4)
    assert raced.knot("LoRA") is None
    assert replace(raced, clock=0).seconds("LoRA").tolist() == [4, 4, 2, 4]


def test_parts_count_equally_however_long_each_was_trained():
    raced = given(*FLOORS, row("LoRA", [1, 1, 1, 1]), row("BAdam", [1, 1, 1, 3], parts=[1, 1, 1, 0], blocks=2))
    assert raced.typical("BAdam", "LoRA") == 2.0
    (cells,) = [line for line in page.table(raced).rows if line[0] == "BAdam"]
    assert cells[3:5] == ["2.000", "-"], "quartiles of steps that are not alike say nothing"


@pytest.mark.parametrize(
    ("knots", "blocks"), [((), 3), ((3,), 2)], ids=["a part had no turn", "a part had no round without a knot"]
)
def test_a_mean_that_misses_a_part_is_none(knots: tuple[int, ...], blocks: int):
    by_block = row("chain, one block a link", [1, 1, 1, 3], knots=knots, parts=[0, 0, 0, 1], blocks=blocks)
    raced = given(*FLOORS, LORA, row("chain", [2, 2, 1, 3]), by_block)
    assert raced.typical("chain, one block a link", "LoRA") is None
    judgement = {target.quantity: target.verdict(value) for target, value in judged([raced], [], plain(Config()))}
    assert judgement["step with one block a link, mean over blocks / LoRA's"] == "not measured"
    assert page.findings([raced])[2].startswith("chain, one block a link: no mean, llama-512, bf16, all-linear")
    (cells,) = [line for line in page.table(raced).rows if line[0] == "chain, one block a link"]
    assert cells[3:7] == ["-"] * 4
    assert "chain, one block a link" not in page.methods_of(raced)


def test_sentences_and_cells_follow_the_numbers():
    failed = row("GaLore", []) | {"reason": "it is not installed"}
    raced = given(*FLOORS, LORA, row("chain", [2, 2, 1, 3]), row("DoRA", [8, 8, 4, 8]), failed)
    assert page.findings([raced]) == [
        "llama-512, bf16, all-linear: a chain's step takes 0.50 of LoRA's and 1.00 of the frozen floor's; LoRA's takes 2.00.",
        "a step in LoRA's steps, llama-512, bf16, all-linear: frozen floor 0.50, chain 0.50, DoRA 2.00.",
        "GaLore: not measured, llama-512, bf16, all-linear; it is not installed.",
        "steadiness: the floor's second lap of a round over its first has medians of 1.000 to 1.000 over the cases; where it "
        "varies most, llama-512, bf16, all-linear, half of the rounds lie between 1.000 and 1.500.",
    ]
    cells = {line[0]: line[1:] for line in page.table(raced).rows}
    assert list(cells) == [FLOOR, "LoRA", "chain", "DoRA", "GaLore"]
    assert cells["chain"][:5] == ["10", "4000.0", "0.500", "0.500 to 0.562", "1.000"]
    assert cells["GaLore"][0] == "it is not installed"
    assert page.dots(page.methods_of(raced)).startswith(b"\x89PNG")


@pytest.mark.parametrize("missing", ["LoRA", FLOOR, "chain"])
def test_a_case_without_what_is_compared_with_says_why(missing: str):
    rows = [*FLOORS, LORA, row("chain", [2, 2, 1, 3])]
    raced = given(*[one | {"laps": [], "reason": "needs 99 GB"} if one["method"] == missing else one for one in rows])
    assert page.findings([raced])[0] == f"llama-512, bf16, all-linear: {missing} is not measured; needs 99 GB."
    assert [line[0] for line in page.table(raced).rows] == [FLOOR, "LoRA", "chain"]
    verdicts = [target.verdict(value) for target, value in judged([raced], [], plain(Config()))]
    ratios = {"LoRA": ["not measured", "stretch met"], FLOOR: ["stretch met", "not measured"], "chain": ["not measured"] * 2}
    assert verdicts == [*ratios[missing], "not measured", "not measured"]


@pytest.mark.parametrize(
    ("facts", "clock", "bounds"),
    [
        ({}, 1, ["<= 0.7 (stretch 0.6)", "<= 1.25 (stretch 1.1)", "<= 0.9", "<= 0.45"]),
        ({"base": "opt-1024"}, 1, ["<= 0.6 (stretch 0.5)", "<= 1.25 (stretch 1.1)", "<= 0.9", "<= 0.45"]),
        ({"dtype": "fp32"}, 1, ["<= 0.92", "<= 1.12"]),
        ({"targets": "q_proj+v_proj"}, 1, ["<= 0.92", "<= 1.07"]),
        ({"dtype": "fp32", "targets": "q_proj+v_proj"}, 1, ["<= 1", "<= 1.02"]),
        ({"base": "small-llama"}, 1, []),
        ({"targets": "k_proj"}, 1, []),
        ({"base": "llama-1b"}, 0, ["<= 0.75"]),
        ({"base": "llama-1b", "dtype": "fp32"}, 0, []),
    ],
)
def test_targets_are_those_of_the_case(facts: dict[str, str], clock: int, bounds: list[str]):
    rows = [*FLOORS, LORA, row("chain", [2, 2, 1, 3])]
    raced = given(*[one | facts for one in rows], clock=clock)
    found = judged([raced], [], plain(Config()))
    assert [target.bound for target, _ in found] == bounds
    assert [value for _, value in found] == [0.5, 1.0, None, None][: len(bounds)]


@pytest.mark.parametrize("options", [{"autocast": True}, {"checkpointing": True}, {"rank": 64}, {"length": 128}], ids=str)
def test_no_step_is_judged_under_other_options_than_the_targets_were_set_for(options: dict):
    raced = given(*FLOORS, LORA, row("chain", [2, 2, 1, 3]))
    assert judged([raced], [], plain(replace(Config(), **options))) == []


def test_compiled_is_judged_beside_compiled_and_blocks_by_their_mean():
    raced = given(
        *FLOORS, LORA, row("LoRA, compiled", [2, 2, 2, 2]), row("chain, compiled", [1, 1, 1, 1]),
        row("chain, one block a link", [1, 1, 0.5, 3], parts=[0, 0, 0, 1], blocks=2),
    )  # fmt: skip
    measured = {target.quantity: value for target, value in judged([raced], [], plain(Config()))}
    assert measured == {
        "step / LoRA's": None,
        "step / frozen floor's": None,
        "compiled step / LoRA's compiled": 0.5,
        "step with one block a link, mean over blocks / LoRA's": 0.5,
    }


def test_gradients_are_judged_by_their_dtype():
    rows = [
        {"case": "a", "dtype": "fp32", "reason": None, "difference": 8e-7, "largest": 2e-6, "chain": None, "lora": None},
        {
            "case": "b",
            "dtype": "bf16",
            "reason": None,
            "difference": 1e-2,
            "largest": 2e-2,
            "chain": 0.0126,
            "lora": 0.012,
            "paired": 1.02,
        },
        {
            "case": "c",
            "dtype": "bf16",
            "reason": "needs 99 GB",
            "difference": None,
            "largest": None,
            "chain": None,
            "lora": None,
        },
    ]
    found = judged([], rows, plain(Config()))
    assert [(target.case, target.limit, target.verdict(value)) for target, value in found] == [
        ("a", 1e-6, "met"), ("a", 1e-6, "missed"), ("b", 1.05, "met"), ("c", 1.05, "not measured")
    ]  # fmt: skip
    assert page.exactness(rows).rows == [
        ["a", "8.0e-07", "2.0e-06", "-", "-", "-", "-"],
        ["b", "1.0e-02", "2.0e-02", "1.26e-02", "1.20e-02", "1.050", "1.020"],
        ["c", "needs 99 GB", "-", "-", "-", "-", "-"],
    ]


def test_command_repeats_what_differs_from_the_defaults():
    config = Config(bases=("llama-1b",), methods=("chain, B only",), autocast=True, rank=64, out=Path("elsewhere"))
    assert command_of("speed", plain(config), Config()) == (
        'python -m experiments speed --bases llama-1b --methods "chain, B only" --rank 64 --autocast'
    )
    assert command_of("speed", plain(Config()), Config()) == "python -m experiments speed"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--rounds", "6"], "--rounds 6: 3 knots need at least 7 rounds"),
        (["--device", "tpu"], "--device tpu"),
        (["--device", "cuda:1"], "--device cuda:1: choose from auto, cpu, cuda; CUDA_VISIBLE_DEVICES says which"),
        (["--device", "cpu", "--tf32"], "--tf32: a CPU has no TF32; leave it out, or give --device cuda"),
        (["--batch-sizes", "0"], "--batch-sizes 0: give numbers of at least 1"),
        (["--bases", "nowhere"], "base 'nowhere' is no folder"),
        (["--dtypes", "fp8"], "--dtypes fp8: choose from fp32, bf16, fp16"),
        (["--targets", "q_proj+qproj"], "--targets qproj: llama-512 has no layer of that name"),
        (["--methods", "lore"], "--methods 'lore': choose from 'LoRA', 'frozen floor'"),
        (["--bases", "opt-512", "opt-512"], "--bases opt-512 opt-512: give one or more, each once"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_wrong_options_are_told_in_one_line(
    arguments: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(os, "environ", os.environ.copy())
    assert main(["speed", *arguments, "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_base_that_lora_does_not_fit_on_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(os, "environ", os.environ.copy())
    monkeypatch.setattr(benches, "memory_of", lambda device: 1e6)
    assert main(["speed", "--preset", "smoke", "--out", str(tmp_path / "out")]) == 2
    assert "--bases small-llama: LoRA itself needs" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_a_missing_cuda_device_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "environ", os.environ.copy())
    assert main(["speed", "--preset", "opt-1.3b", "--out", str(tmp_path / "out")]) == 2
    assert "--device cuda: torch sees no CUDA device here; give cpu or auto" in capsys.readouterr().err
