"""What a merge holds for a while, what arrives of it, what the page makes of laps, and the study as a user runs it."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft.tuners.lora import LoraLayer
from torch import nn

from experiments.__main__ import main
from experiments.accounting import bench as benches
from experiments.accounting.bench import Bench
from experiments.accounting.gains import gains, realised
from experiments.accounting.knotting import CHAIN, FIRST, MERGE, PLAIN, SAFE_MERGE, STEP, add, fill, race
from experiments.accounting.transient import transient_bytes
from experiments.methods import LoRA
from experiments.pages import knot_cost as page
from experiments.pages import ties
from experiments.pages.knot_targets import judged
from experiments.pages.ties import Ties
from experiments.records import RunFolder, plain
from experiments.studies.knot_cost import Config
from fwlora import ChainLoRAOptimizer

WAYS = [STEP, CHAIN, FIRST, PLAIN, MERGE, SAFE_MERGE]


@pytest.fixture
def bench(tiny_model: Path) -> Bench:
    """Two rows on a two-layer Llama in bfloat16."""
    return Bench(str(tiny_model), "bf16", "cpu", 2, 8, ("q_proj", "v_proj"), 2, 3, 10)


CONFIG = plain(Config())


def rows_of(dtype: str = "bf16", *, chain: float = 0.1) -> dict[str, dict[str, Any]]:
    """A case with a lap of each way; a step of LoRA takes one second."""
    base, seconds = "llama-512", {STEP: 1.0, CHAIN: chain, PLAIN: 0.01}
    facts = {
        "case": f"{base}, {dtype}, all-linear", "base": base, "dtype": dtype, "targets": "all-linear", "rows": 4, "reason": None
    }  # fmt: skip
    return {
        way: facts | {"way": way, "laps": [(9.0, seconds.get(way, 0.1))], "transient": 2**20, "largest": 2**21} for way in WAYS
    }


def test_what_is_gone_at_the_same_time_counts_and_what_stays_does_not():
    x, kept = torch.ones(256), []

    def work() -> None:
        one = x + 1
        two = one * 2
        kept.append(two + one)

    assert transient_bytes(work, "cpu") == 2 * 1024


def test_one_after_the_other_counts_once():
    x = torch.ones(256)

    def work() -> None:
        for _ in range(5):
            (x + 1).sum()

    assert transient_bytes(work, "cpu") == 1024 + 4


def test_work_in_place_and_views_hold_nothing():
    x = torch.ones(16, 16)
    assert transient_bytes(lambda: x.add_(1).t()[3:].mul_(2), "cpu") == 0


def test_what_was_there_before_does_not_count_when_it_goes():
    held = [torch.ones(256)]

    def work() -> None:
        held[0].add_(1)
        held.clear()

    assert transient_bytes(work, "cpu") == 0


def test_other_devices_do_not_count():
    assert transient_bytes(lambda: torch.ones(256, device="meta").add(1).sum(), "cpu") == 0


def test_peft_holds_its_product_twice_and_a_merge_in_place_holds_nothing():
    layer: Any = LoRA("LoRA", 1e-3, 2).inject(nn.Sequential(nn.Linear(32, 16, bias=False)), ["0"])[0]  # pyright: ignore[reportIndexIssue]
    factors = [(layer.base_layer.weight, layer.lora_A["default"].weight, layer.lora_B["default"].weight, 2.0)]
    assert transient_bytes(layer.merge, "cpu") == 2 * 4 * 32 * 16
    assert transient_bytes(lambda: add(factors), "cpu") == 0


def test_a_merge_in_place_is_the_product_added():
    W, A, B = torch.randn(6, 5), torch.randn(2, 5), torch.randn(6, 2)
    expected = W + 0.5 * B @ A
    add([(W, A, B, 0.5)])
    assert torch.allclose(W, expected)


def test_factors_are_filled_to_a_thousandth_of_the_weight():
    W, A, B = torch.randn(300, 200), torch.randn(8, 200), torch.empty(300, 8)
    fill([(W, A, B, 2.0)], torch.Generator().manual_seed(0))
    assert float((2.0 * B @ A).norm() / W.norm()) == pytest.approx(1e-3, rel=0.1)


def test_an_exactly_representable_merge_arrives_whole():
    before, asked = torch.full((4, 4), 2.0, dtype=torch.float64), torch.full((4, 4), 0.25, dtype=torch.float64)
    weight = before.to(torch.bfloat16) + asked.to(torch.bfloat16)
    assert realised(before, weight.double(), asked) == {"gain": 1.0, "error": 0.0}


def test_a_merge_below_the_last_place_is_lost():
    before, asked = torch.full((4, 4), 2.0, dtype=torch.float64), torch.full((4, 4), 1e-3, dtype=torch.float64)
    weight = before.to(torch.bfloat16) + asked.to(torch.bfloat16)
    assert realised(before, weight.double(), asked) == {"gain": 0.0, "error": 1.0}


def test_the_first_merge_of_a_chain_rounds_as_pefts_and_later_ones_give_back_what_was_lost():
    found = {(row["way"], row["merges"]): row["gain"] for row in gains(128, 4, (1, 30), (1e-3,))}
    assert found["chain", 1] == pytest.approx(found[MERGE, 1], abs=1e-3)
    assert found["chain", 30] > 0.97
    assert found[MERGE, 30] < 0.65


def test_float32_weights_take_every_merge_whole():
    for row in gains(32, 2, (1, 3), (1e-3,), torch.float32):
        assert row["gain"] == pytest.approx(1, abs=1e-4)


def test_every_way_has_its_laps_and_its_bytes(bench: Bench):
    rounds = []
    rows = race(bench, 3, 2, on_round=lambda: rounds.append(1))
    assert [row["way"] for row in rows] == WAYS
    assert [len(row["laps"]) for row in rows] == [3, 3, 2, 3, 3, 3]
    assert len(rounds) == 3 + 2
    found = {row["way"]: row for row in rows}
    assert found[STEP]["transient"] is None
    # q is 16 x 16; its product is float32, and so is the scaled one.
    assert found[MERGE]["transient"] >= 2 * 4 * 16 * 16
    assert found[MERGE]["largest"] == 2 * 16 * 16
    assert found[PLAIN]["transient"] == 2 * (2 * 16 + 16 * 2)  # both factors in the weight's precision


def test_merges_of_the_race_leave_pefts_layers_unmerged(bench: Bench, monkeypatch: pytest.MonkeyPatch):
    seen: list[LoraLayer] = []
    inject = LoRA._inject

    def watched(self, model, *rest, **options):
        model = inject(self, model, *rest, **options)
        seen.extend(layer for layer in model.modules() if isinstance(layer, LoraLayer))
        return model

    monkeypatch.setattr(LoRA, "_inject", watched)
    race(bench, 1, 1)
    assert seen
    assert not any(layer.merged for layer in seen)  # pyright: ignore[reportAttributeAccessIssue]


def test_two_models_that_do_not_fit_leave_the_reason_with_every_way(bench: Bench, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(benches, "memory_of", lambda device: 1e3)
    rows = race(bench, 1, 1)
    assert [row["way"] for row in rows] == WAYS
    assert all("needs" in row["reason"] for row in rows)
    facts = {"case": "a case", "base": "tiny", "dtype": "bf16", "targets": "all-linear", "rows": 4}
    case = {row["way"]: facts | row for row in rows}
    assert page.table(Ties(case, 1)).rows[1][:2] == [CHAIN, rows[0]["reason"]]
    assert page.findings([Ties(case, 1)], []) == [f"a case: not measured; {rows[0]['reason']}."]
    assert [target.verdict(value) for target, value in judged([Ties(case, 1)], [], CONFIG)] == ["not measured"]


@pytest.mark.parametrize(
    ("dtype", "chain", "verdicts"),
    [
        # A knot without feedback is nothing that the library has, whatever a merge in place takes.
        ("bf16", 0.15, ["not measured", "met", "met"]),
        ("bf16", 0.17, ["not measured", "missed", "met"]),
        ("fp32", 0.02, ["met", "met"]),
        ("fp32", 0.03, ["missed", "met"]),
    ],
)
def test_verdicts_follow_from_the_laps(dtype: str, chain: float, verdicts: list[str]):
    found = judged([Ties(rows_of(dtype, chain=chain), 1)], [], CONFIG)
    assert [target.verdict(value) for target, value in found] == verdicts


@pytest.mark.parametrize("options", [{"rank": 64}, {"length": 128}, {"autocast": True}, {"checkpointing": True}], ids=str)
def test_times_are_judged_where_the_targets_were_set_for_alone(options: dict):
    assert [target.limit for target, _ in judged([Ties(rows_of(), 1)], [], CONFIG | options)] == [4.0]


def test_a_knot_finds_a_state_of_adam_to_forget(bench: Bench, monkeypatch: pytest.MonkeyPatch):
    remembered: list[bool] = []
    tie = ChainLoRAOptimizer.tie_knot

    def watched(self: ChainLoRAOptimizer, *args: Any, **kwargs: Any) -> Any:
        states = [value for state in self.state.values() for value in state.values() if torch.is_tensor(value)]
        remembered.append(any(bool(value.any()) for value in states))
        return tie(self, *args, **kwargs)

    monkeypatch.setattr(ChainLoRAOptimizer, "tie_knot", watched)
    race(bench, 2, 1)
    assert len(remembered) > 2
    assert all(remembered)


def test_the_first_knot_counts_for_the_memory_target():
    rows = rows_of()
    rows[FIRST]["transient"] = 5 * 2**20
    assert [target.verdict(value) for target, value in judged([Ties(rows, 1)], [], CONFIG)][-1] == "missed"


def test_times_are_aimed_at_on_a_cpu_alone():
    assert [target.quantity for target, _ in judged([Ties(rows_of(), 0)], [], CONFIG)] == [
        "transient memory of a knot, the retired link apart [MiB]"
    ]


@pytest.mark.parametrize(("gain", "verdict"), [(0.99, "met"), (0.55, "missed")])
def test_the_gain_of_thirty_merges_is_judged(gain: float, verdict: str):
    rows = [{"way": CHAIN, "relative": 1e-3, "merges": merges, "gain": gain} for merges in (10, 30)]
    assert [target.verdict(value) for target, value in judged([], rows, CONFIG)] == [verdict]


def test_knots_are_told_in_steps_of_their_round_and_first_ones_in_median_steps():
    rows = rows_of()
    rows[STEP] = rows[STEP] | {"laps": [(0, 1.0), (0, 4.0), (0, 2.0)]}
    rows[CHAIN] = rows[CHAIN] | {"laps": [(0, 0.5), (0, 1.0), (0, 1.0)]}
    case = Ties(rows, 1)
    assert list(case.steps(CHAIN)) == [0.5, 0.25, 0.5]
    assert case.typical(CHAIN) == 0.5
    assert case.typical(FIRST) == 0.1 / 2


def test_smoke_run_of_the_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(os, "environ", os.environ.copy())
    assert main(["knot-cost", "--preset", "smoke", "--knots", "2", "--out", str(tmp_path)]) == 0
    folder = RunFolder(tmp_path)
    (case,) = ties.collect(folder)
    assert case.ways == WAYS[1:]
    assert len(folder.rows("gains.jsonl")) == 2 * 3 * 3
    readme, said = (tmp_path / "README.md").read_text(encoding="utf-8"), capsys.readouterr().out
    for text in (said, readme):
        assert "small-llama, bf16, all-linear: a knot takes" in text
        assert "realised gain of 30 merges in bf16" in text
        assert "steps and holds 1.34 MiB." in text
    for figure in ("knots", "gains"):
        assert (tmp_path / "figures" / f"{figure}.png").read_bytes().startswith(b"\x89PNG")


def test_models_that_fit_nowhere_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(os, "environ", os.environ.copy())
    monkeypatch.setattr(benches, "memory_of", lambda device: 1e6)
    assert main(["knot-cost", "--preset", "smoke", "--out", str(tmp_path / "out")]) == 2
    assert "--bases small-llama: a model under LoRA beside one under a chain needs" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_weight_smaller_than_the_rank_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(os, "environ", os.environ.copy())
    assert main(["knot-cost", "--preset", "smoke", "--size", "4", "--out", str(tmp_path / "out")]) == 2
    assert "--size 4: give at least the rank, 8." in capsys.readouterr().err


def test_half_and_full_precision_are_cases_of_their_own(bench: Bench):
    rows = race(replace(bench, dtype="fp32"), 1, 1)
    assert {row["reason"] for row in rows} == {None}
    assert {row["way"]: row["transient"] for row in rows}[PLAIN] == 0
