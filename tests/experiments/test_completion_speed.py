"""Completion at scale, in small: every contender is measured, and the page says what was measured."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from experiments import completion_contenders as contenders
from experiments.completion_contenders import CONTENDERS, COPT, LANCZOS, SVDS, SWEPT, Missing, isolated, measure
from experiments.errors import UsageError
from experiments.pages import completion_speed as page
from experiments.records import RunFolder
from experiments.studies import completion_speed as study

SMALL = study.Config(rows=60, columns=40, entries=500, rank=3, iterations=25, copt_iterations=25, repeats=2)
PLAN = {contest.contender: contest for contest in study.plan(replace(SMALL, repeats=1))}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small run, contenders measured in this process."""
    out = tmp_path_factory.mktemp("completion-speed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "environ", os.environ.copy())
        patch.setattr(contenders, "isolated", measure)
        study.run(replace(SMALL, out=out))
    return out


def test_contenders_take_turns_and_every_one_is_measured(finished: Path):
    rows = RunFolder(finished).rows("runs.jsonl")
    assert [row["contender"] for row in rows] == [*CONTENDERS] * 2
    for row in rows:
        if row["reason"] is None:
            assert len(row["laps"]) == len(row["losses"]) == len(row["gaps"]) == 25
            assert min(min(lap) for lap in row["laps"]) >= 0


def test_contenders_with_the_same_vertices_have_the_same_losses(finished: Path):
    """Short steps to exact vertices: copt's dense run and ours agree; Lanczos follows within its eps."""
    rows = {row["contender"]: row for row in RunFolder(finished).rows("runs.jsonl")}
    if rows[COPT]["reason"] is None:
        assert np.allclose(rows[COPT]["losses"], rows[SVDS]["losses"], rtol=1e-6)
        assert np.allclose(rows[COPT]["gaps"], rows[SVDS]["gaps"], rtol=1e-4)
    assert np.allclose(rows[LANCZOS]["losses"], rows[SVDS]["losses"], rtol=0.05)
    assert rows[SWEPT]["losses"][-1] < rows[LANCZOS]["losses"][-1]


def test_page_tells_every_contender_and_its_ratio(finished: Path):
    document, readme = ((finished / name).read_text(encoding="utf-8") for name in ("report.html", "README.md"))
    for text in (document, readme):
        assert all(name in text for name in CONTENDERS)
        assert "times the seconds of Lanczos for an iteration" in text
    assert (finished / "figures" / "loss-against-seconds.png").read_bytes().startswith(b"\x89PNG")


def test_a_child_process_measures_its_own_memory():
    record = isolated(replace(PLAN[LANCZOS], iterations=3))
    assert record["reason"] is None
    assert len(record["laps"]) == 3
    if Path("/proc/self/status").exists():
        assert 0 <= record["above"] < 100 < record["imported"] + 100


def test_a_contender_that_is_not_installed_leaves_its_reason_in_a_cell(monkeypatch: pytest.MonkeyPatch):
    def absent() -> None:
        raise Missing("copt cannot be imported (gone): pip install copt")

    monkeypatch.setattr(contenders, "_copt", absent)
    results = page.collect([measure(PLAN[name]) for name in (LANCZOS, COPT)])
    assert results[COPT].reason == "copt cannot be imported (gone): pip install copt"
    assert results[COPT].reason in page.table(results).to_text()
    assert page.findings(results)[-1].startswith("copt TraceBall: not measured")
    assert page.loss_against_seconds(results).startswith(b"\x89PNG")


def test_sentences_follow_the_numbers():
    """Twice the seconds is twice the ratio, whatever the first iteration took."""

    def row(name: str, first: float, second: float) -> dict:
        laps = [[first, first], [second, second], [second, second]]
        measured = {"laps": laps, "losses": [9.0, 4.0, 2.0], "gaps": [9.0, 6.0, 4.0], "above": 50.0}
        return {"contender": name, "entries": 10, "reason": None, **measured}

    results = page.collect([row(LANCZOS, 1.0, 0.5), row(LANCZOS, 1.0, 0.5), row(SVDS, 7.0, 1.5)])
    assert results[SVDS].seconds / results[LANCZOS].seconds == 3.0
    assert page.findings(results) == [
        "Lanczos: 3 iterations in 2.0 s and 50 MB above the imports, the instance's making included.",
        "scipy svds: 3.0 times the seconds of Lanczos for an iteration; "
        "its loss per entry was 0.2000 after 10.0 s, and Lanczos came that far in 2.0 s.",
    ]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"rows": 0}, "--rows 0"),
        ({"copt_iterations": 1}, "--copt-iterations 1: give at least 2"),
        ({"entries": 601}, "--entries 601: give at most a quarter of 60 x 40"),
        ({"noise": -1.0}, "--noise -1.0"),
        ({"seed": -1}, "--seed -1"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_wrong_sizes_are_told_by_the_option(change: dict, words: str):
    with pytest.raises(UsageError, match=words):
        study.run(replace(SMALL, **change))
