"""The study of memory runs, and its page and verdicts follow from what was weighed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from experiments.__main__ import main
from experiments.accounting import bench as benches
from experiments.pages import memory as page
from experiments.pages.memory_targets import judged, why
from experiments.pages.weighings import B_ONLY, CHAIN, FLOOR, LORA, Weighing, collect
from experiments.records import RunFolder, plain
from experiments.studies.memory import Config

LABELS = [
    "LoRA", "frozen floor", "LoRA, fused AdamW", "LoRA, bf16 adapters", "chain", "chain, B only", "chain, one block a link",
    "chain, PEFT's forward", "ReLoRA", "LoRA+", "LoRA-FA", "rsLoRA", "DoRA", "PiSSA", "prefix tuning", "bottleneck adapters",
    "full fine-tuning", "GaLore", "GaLore, half-precision weights", "BAdam",
]  # fmt: skip


CONFIG = plain(Config())


def weighing(base: str, dtype: str = "bf16", targets: str = "all-linear", **saved: int | None) -> Weighing:
    """A case with what each method saves, out of LoRA's 100; None for one that could not run."""
    facts = {"case": f"{base}, {dtype}, {targets}", "base": base, "dtype": dtype, "targets": targets, "rows": 4}
    labels = {"floor": FLOOR, "lora": LORA, "chain": CHAIN, "b_only": B_ONLY}
    rows = {}
    for name, value in ({"lora": 100} | saved).items():
        row = facts | {"method": labels[name], "reason": None if value is not None else "needs 9 GB", "peak_body": None}
        rows[labels[name]] = row | {
            **dict.fromkeys(("kept", "kept_mean"), value),
            # The logits beside, which no target counts.
            **dict.fromkeys(("saved", "mean"), None if value is None else value + 50),
            "body_mean": None if value is None else value - 10,
        }
    return Weighing(rows)


@pytest.mark.parametrize(
    ("case", "verdicts"),
    [
        (weighing("llama-512", floor=60, chain=66, b_only=60), ["met", "met"]),
        (weighing("llama-512", floor=60, chain=67, b_only=61), ["missed", "missed"]),
        (weighing("opt-512", floor=40, chain=48, b_only=None), ["met", "not measured"]),
        (weighing("llama-1024", floor=40), ["not measured", "not measured"]),
        (weighing("opt-1024", floor=40, chain=49, b_only=40), ["missed", "met"]),
        (weighing("llama-512", "fp32", floor=76, chain=100, b_only=76), ["met", "met", "met"]),
        (weighing("llama-512", "fp32", floor=76, chain=101, b_only=79), ["missed", "missed", "missed"]),
        (weighing("opt-512", targets="q_proj+v_proj", floor=80, chain=87), ["met"]),
        (weighing("llama-512", "fp32", "q_proj+v_proj", floor=80, chain=100), []),
        (weighing("small-llama", floor=60, chain=66), []),
    ],
)
def test_verdicts_follow_from_what_is_saved(case: Weighing, verdicts: list[str]):
    assert [target.verdict(value) for target, value in judged([case], CONFIG)] == verdicts


def test_verdict_and_table_are_of_the_same_number():
    case = weighing("llama-512", floor=60, chain=67, b_only=61)
    (target, value), *_ = judged([case], CONFIG)
    assert target.quantity == "kept by autograd / LoRA's"
    kept, before = page.HEADINGS.index("kept by autograd [MiB]"), page.HEADINGS.index("before the logits [MiB]")
    for row in case.rows.values():
        row |= {"trained": 1, "gradients": 1, "optimizer": 1, "host": 0, "peak": None, "body": None}  # pyright: ignore
    cells = {line[0]: line for line in page.table(case).rows}[CHAIN]
    assert page.HEADINGS[kept + 1] == page.HEADINGS[before + 1] == "of LoRA's"
    assert float(cells[kept + 1]) == value == 0.67
    assert cells[before + 1] == f"{57 / 90:.3f}"


@pytest.mark.parametrize("options", [{"autocast": True}, {"checkpointing": True}, {"rank": 64}, {"length": 128}], ids=str)
def test_nothing_is_judged_under_other_options_than_the_targets_were_set_for(options: dict):
    assert judged([weighing("llama-512", floor=60, chain=66, b_only=60)], CONFIG | options) == []


def test_a_target_below_the_floor_is_told_so():
    (sentence,) = why([weighing("opt-512", "fp32", floor=86, chain=100, b_only=85)], CONFIG)
    assert sentence == (
        "kept by autograd with B only / LoRA's, opt-512, fp32, all-linear: under the frozen floor alone it is 0.860 of LoRA's."
    )


def test_a_target_that_the_logits_alone_miss_is_told_so():
    # Before the logits, which are 10, LoRA saves 90 and the chain 39.
    (sentence,) = why([weighing("opt-512", floor=40, chain=49, b_only=40)], CONFIG)
    assert sentence == (
        "kept by autograd / LoRA's, opt-512, bf16, all-linear: before the logits, of which both hold the same, it is 0.433."
    )
    assert not why([weighing("opt-512", floor=40, chain=60, b_only=40)], CONFIG)


def test_the_peak_on_cuda_is_judged_before_the_logits():
    case = weighing("llama-1b", chain=60)
    for label, value in ((LORA, 100), (CHAIN, 71)):
        case.rows[label]["peak_body"] = value  # pyright: ignore[reportIndexIssue]
    ((target, value),) = judged([case], CONFIG)
    assert (target.quantity, value, target.verdict(value)) == ("peak above weights before the logits / LoRA's", 0.71, "missed")


def test_smoke_run_of_the_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(os, "environ", os.environ.copy())
    assert main(["memory", "--preset", "smoke", "--out", str(tmp_path)]) == 0
    (case,) = collect(RunFolder(tmp_path))
    assert case.names == [FLOOR, LORA, CHAIN, "full fine-tuning"]
    assert {page.agreement(row) for row in case.rows.values()} == {"1.000"}
    readme = (tmp_path / "README.md").read_text(encoding="utf-8")
    for text in (capsys.readouterr().out, readme):
        assert "a chain holds 1.00 of LoRA's trained parameters, gradients and optimizer, 0.86 of what autograd keeps" in text
    assert (tmp_path / "figures" / "memory.png").read_bytes().startswith(b"\x89PNG")


def test_cases_of_a_grid_stand_one_after_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_model: Path):
    monkeypatch.setattr(os, "environ", os.environ.copy())
    options = ["--bases", str(tiny_model), "--length", "8", "--device", "cpu", "--in-process", "--methods", "chain"]
    assert main(["memory", *options, "--out", str(tmp_path)]) == 0
    cases = collect(RunFolder(tmp_path))
    assert [(case.facts["dtype"], case.facts["targets"]) for case in cases] == [
        ("bf16", "all-linear"), ("bf16", "q_proj+v_proj"), ("fp32", "all-linear"), ("fp32", "q_proj+v_proj"),
    ]  # fmt: skip
    assert all(case.ran(CHAIN) for case in cases)
    assert (tmp_path / "figures" / "saved.png").is_file()


def test_a_method_that_cannot_run_leaves_its_reason_in_a_cell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_model: Path
):
    monkeypatch.setattr(os, "environ", os.environ.copy())
    gone = "galore-torch is not installed: pip install --group peers"
    monkeypatch.setattr(benches, "unavailable", lambda method: gone if method.label == "GaLore" else None)
    options = ["--bases", str(tiny_model), "--length", "8", "--device", "cpu", "--in-process", "--methods", "GaLore"]
    assert main(["memory", *options, "--dtypes", "fp32", "--targets", "q_proj+v_proj", "--out", str(tmp_path)]) == 0
    (case,) = collect(RunFolder(tmp_path))
    assert [row["reason"] for row in case.rows.values()] == [None, None, gone]
    assert gone in (tmp_path / "README.md").read_text(encoding="utf-8")
    assert page.findings([case])[-1] == f"GaLore, {case.label}: not measured; {gone}."


def test_a_base_that_does_not_fit_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(os, "environ", os.environ.copy())
    monkeypatch.setattr(benches, "memory_of", lambda device: 1e6)
    assert main(["memory", "--preset", "smoke", "--out", str(tmp_path / "out")]) == 2
    assert "--bases small-llama: LoRA itself needs" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
