"""What the page on speed says follows from the laps, whatever the clock said."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from experiments.__main__ import main
from experiments.accounting import bench as benches
from experiments.accounting.timing import AGAIN
from experiments.pages import speed as page
from experiments.pages.laps import Race
from experiments.pages.running import command_of
from experiments.pages.step_targets import judged
from experiments.records import plain
from experiments.studies.speed import Config

FLOOR = "frozen floor"


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
