"""Methods take turns with LoRA; what the page says follows from the laps, whatever the clock said."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from experiments.__main__ import main
from experiments.accounting import bench as benches
from experiments.accounting import timing
from experiments.accounting.bench import Bench
from experiments.accounting.timing import Runner, race
from experiments.pages import speed as page
from experiments.pages.speed import Race
from experiments.records import RunFolder


def test_smoke_run_of_the_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(os, "environ", os.environ.copy())
    assert main(["speed", "--preset", "smoke", "--out", str(tmp_path)]) == 0
    rows = {row["method"]: row for row in RunFolder(tmp_path).rows("races.jsonl")}
    assert list(rows) == ["LoRA", "chain", "full fine-tuning"]
    for row in rows.values():
        assert len(row["rounds"]) == 7
        assert all(len(laps) == 3 and min(min(lap) for lap in laps) >= 0 for laps in row["rounds"])
    # Three knots in 2 + 7 steps: after steps 3, 5 and 7.
    assert rows["chain"]["knots"] == [0, 2, 4]
    assert rows["full fine-tuning"]["parameters"] > 100 * rows["LoRA"]["parameters"]
    readme = (tmp_path / "README.md").read_text(encoding="utf-8")
    for text in (capsys.readouterr().out, readme):
        assert "chain: a step takes" in text
        assert "with its 3 knots" in text
    assert (tmp_path / "figures" / "step-ratios.png").read_bytes().startswith(b"\x89PNG")


def test_runners_take_turns_and_each_does_every_step(tiny_model: Path, monkeypatch: pytest.MonkeyPatch):
    order: list[int] = []

    class Noted(Runner):
        def step(self) -> timing.Lap:
            order.append(id(self))
            return super().step()

    monkeypatch.setattr(timing, "Runner", Noted)
    bench = Bench(str(tiny_model), "fp32", "cpu", 2, 8, ("q_proj",), 2, 1, 4)
    lora, chain = bench.methods(("chain",))
    done: list[None] = []
    row = race(bench, lora, chain, on_round=lambda: done.append(None))
    first, other, second = order[:3]
    assert len({first, other, second}) == 3
    assert order == [first, other, second] * 6
    assert len(row["rounds"]) == len(done) == 4
    assert row["knots"] == [0]


def test_a_runner_trains_as_the_loop_does(tiny_model: Path):
    """A step at a time or all at once: the same weights."""
    from experiments.train import train

    bench = Bench(str(tiny_model), "fp32", "cpu", 2, 8, ("q_proj",), 2, 1, 4)
    _, chain = bench.methods(("chain",))
    runner = Runner.ready(bench, chain)
    for _ in range(5):
        runner.step()
    whole = Runner.ready(bench, chain).setup
    train(whole, bench.task(), steps=5)
    for mine, theirs in zip(runner.setup.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    assert list(runner.knots()) == [3]


def laps(method: str, seconds: list[tuple[float, float, float]], knots: list[int] | None = None) -> dict:
    rounds = [[(wall, 2 * wall) for wall in lap] for lap in seconds]
    return {"method": method, "reason": None, "rounds": rounds, "knots": knots or [], "parameters": 10}


def test_ratios_drift_and_knots_follow_from_the_laps():
    won = Race(laps("chain", [(1, 2, 3), (1, 9, 3), (2, 6, 2)], knots=[1]), clock=0)
    assert won.lora.tolist() == [2, 2, 2]
    assert won.ratios.tolist() == [1.0, 3.0]  # the round with the knot is left out
    assert won.drift == 3.0
    assert won.knot == (9 - 4) / 2
    assert won.whole == 17 / 6
    assert Race(won.row, clock=1).ratios.tolist() == [1.0, 3.0]
    assert Race(won.row, clock=1).lora.tolist() == [4, 4, 4]


def test_sentences_follow_the_numbers():
    races = [
        Race(laps("LoRA", [(1, 1, 1)] * 4), 0),
        Race(laps("chain", [(1, 1, 1)] * 3 + [(1, 1.5, 1)], knots=[3]), 0),
        Race(laps("DoRA", [(1, 2, 1)] * 4), 0),
        Race({"method": "GaLore", "reason": "it is not installed", "rounds": [], "knots": [], "parameters": None}, 0),
    ]
    assert page.findings(races)[1:] == [
        "chain: a step takes 1.00 of LoRA's, half of the rounds between 1.00 and 1.00; a knot takes 0.50 steps of LoRA's, and "
        "the run with its 1 knots 1.12 of LoRA's.",
        "DoRA: a step takes 2.00 of LoRA's, half of the rounds between 2.00 and 2.00.",
        "GaLore: not measured; it is not installed.",
    ]
    assert page.table(races).rows[3][1] == "it is not installed"
    assert page.ratios(races).startswith(b"\x89PNG")


def test_a_method_that_does_not_fit_beside_lora_has_a_reason(tiny_model: Path, monkeypatch: pytest.MonkeyPatch):
    bench = Bench(str(tiny_model), "fp32", "cpu", 2, 8, ("q_proj",), 2, 1, 4)
    lora, full = bench.methods(("full fine-tuning",))
    room = 2 * bench.bytes(lora).total + bench.bytes(full).state
    monkeypatch.setattr(benches, "memory_of", lambda device: float(room))
    assert race(bench, lora, lora)["reason"] is None
    row = race(bench, lora, full)
    assert row["reason"].startswith("needs 0 GB, 0 GB of them for activations")
    assert row["rounds"] == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--steps", "6"], "--steps 6: 3 knots need at least 7 steps"),
        (["--device", "tpu"], "--device tpu"),
        (["--batch-size", "0"], "--batch-size 0: give a number of at least 1"),
        (["--base", "nowhere"], "base 'nowhere' is no folder"),
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


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_a_missing_cuda_device_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "environ", os.environ.copy())
    assert main(["speed", "--preset", "opt-1.3b", "--out", str(tmp_path / "out")]) == 2
    assert "--device cuda: torch sees no CUDA device here; give cpu or auto" in capsys.readouterr().err
