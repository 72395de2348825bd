"""The certificates' study, in small: from the semidefinite programs to a page that stands alone."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from experiments.__main__ import main
from experiments.errors import Refuted
from experiments.pages import certificates as page
from experiments.records import RunFolder
from experiments.studies import certificates

pytest.importorskip("PEPit", reason="PEPit is not installed (dependency group certify)")
SIZES = {"horizons": 3, "drifting_horizons": 2, "gaps": (0.5, 0.1), "exact": (1, 3)}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """The folder of a small study."""
    out = tmp_path_factory.mktemp("certificates")
    certificates.run(certificates.Config(**SIZES, out=out))
    return RunFolder(out)


def test_study_holds_every_theorem_against_its_worst_case(finished: RunFolder):
    rows = finished.rows("rows.jsonl")
    solved = {(row["theorem"], row["M"], row["T"]) for row in rows if row["average"] is not None}
    horizons = dict.fromkeys(("A", "B", "C", "C anywhere"), 3) | {"E": 2, "D": 1}
    assert solved == {(name, M, T) for name, most in horizons.items() for M in SIZES["gaps"] for T in range(1, most + 1)}
    for row in rows:
        if row["average"] is not None:
            assert row["smooth_minimum"] - 1e-5 <= min(row["minimum"], row["smooth_average"])
            assert max(row["minimum"], row["smooth_average"]) <= row["average"] + 1e-5
    assert all(0.5 < row["ratio"] < 1 + 1e-5 for row in rows if row["ratio"] is not None)
    attained = [row["ratio"] for row in rows if row["theorem"] in {"A", "D", "E"} and row["T"] == 1]
    assert attained == pytest.approx([1] * 6, abs=1e-5)


def test_study_verifies_every_proof(finished: RunFolder):
    proofs = finished.rows("exact.jsonl")
    assert {(row["theorem"], row["T"]) for row in proofs} == {
        (name, T) for name in certificates.proofs() for T in SIZES["exact"]
    }
    assert all(row["holds"] for row in proofs)


def test_report_stands_alone_and_shows_every_theorem(finished: RunFolder):
    document = (finished.path / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"(src|href)=\"(?!data:)", document)
    for title in (*page.TITLES.values(), page.SHORT_STEP, "Exact proofs", "Theorem C in the limit"):
        assert title in document
    assert document.count("data:image/png") == len(list((finished.path / "figures").glob("*.png"))) == 2
    assert (finished.path / "README.md").exists()


def test_records_name_the_solver(finished: RunFolder):
    assert {"PEPit", "cvxpy", "clarabel"} <= set(finished.read_json("environment.json")["packages"])


def test_tables_show_the_numbers_of_the_records(finished: RunFolder):
    (table,) = [table for title, table in page.tables(finished) if title.startswith(page.TITLES["C"])]
    rows = page.select(finished.rows("rows.jsonl"), "C", page.shown(finished.rows("rows.jsonl")))
    assert [line[3] for line in table.rows] == [f"{row['average']:.5f}" for row in rows]
    assert "-" not in [cell for line in table.rows for cell in line]


def test_worst_case_above_a_bound_ends_the_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    small = {**certificates.settings(0.5, 1, 0.02, drifting=True)}
    worst = small["A"][1]
    monkeypatch.setattr(certificates, "settings", lambda *_, **__: small | {"A": (0.9, worst)})
    with pytest.raises(Refuted, match=r"A at M = 0.5, T = 1: 1\.0\d* > 0.9"):
        certificates.run(certificates.Config(horizons=1, gaps=(0.5,), exact=(1,), out=tmp_path))


def test_proof_that_fails_ends_the_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from theory.certificates import anytime_step

    proofs = certificates.proofs() | {"B": lambda T: anytime_step(["1/3", "1/2"])}
    monkeypatch.setattr(certificates, "proofs", lambda: proofs)
    with pytest.raises(Refuted, match="the proof of B at T = 1"):
        certificates.run(certificates.Config(horizons=1, drifting_horizons=1, gaps=(0.5,), exact=(1,), out=tmp_path))
    assert "REFUSED" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_missing_solver_is_one_line_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setitem(sys.modules, "clarabel", None)
    assert main(["certificates", "--out", str(tmp_path / "out")]) == 2
    assert "--group certify" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_size_that_is_not_positive_is_a_wrong_option(capsys: pytest.CaptureFixture[str]):
    assert main(["certificates", "--gaps", "0.5", "0"]) == 2
    assert "--gaps 0.5 0.0: give numbers above 0." in capsys.readouterr().err
