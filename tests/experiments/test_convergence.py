"""The convergence and drift studies, in small: they find what they look for, and refuse to call a violation a result."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from experiments import convergence, drifting
from experiments.__main__ import main
from experiments.pages import convergence as page
from experiments.pages import drift as drift_page
from experiments.records import RunFolder
from experiments.studies import convergence as study
from theory.bounds import FixedStepBound
from theory.problems import Completion, DriftingCompletion, WorstCase
from theory.step_sizes import Fixed, OpenLoop, ShortStep

TESTBEDS = ("Completion", "DriftingCompletion")


def work(rule=None, testbed=WorstCase, horizons=(2, 5)) -> convergence.Work:
    return convergence.Work(testbed, rule or Fixed(), horizons, seed=0)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a short convergence study over two testbeds."""
    out = tmp_path_factory.mktemp("convergence")
    study.run(study.Config(horizons=(2, 8), links=(2,), testbeds=TESTBEDS, workers=1, out=out))
    return out


def test_the_study_covers_every_testbed_with_every_rule():
    works = convergence.plan((2,), (2,), 0)
    testbeds = {work.testbed for work in works}
    assert len(testbeds) >= 14
    assert len([work for work in works if work.rule in convergence.RULES]) == 6 * len(testbeds)


def test_every_testbed_that_is_asked_for_has_its_rows_and_its_figure(finished: Path):
    rows = RunFolder(finished).rows("runs.jsonl")
    assert sorted(page.names(rows)) == sorted(TESTBEDS)
    assert len([row for row in rows if not row["chain"]]) == 6 * len(TESTBEDS)
    assert {file.stem for file in (finished / "figures").glob("*.png")} == set(TESTBEDS)
    document = (finished / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"(src|href)=\"(?!data:)", document)
    assert "Violations: none" in (finished / "README.md").read_text(encoding="utf-8")
    assert page.violations(rows) == []


def test_every_theorem_is_measured_somewhere(finished: Path):
    measured = {name for row in RunFolder(finished).rows("runs.jsonl") for name in row["theorems"]}
    assert len(measured) == 9


def test_prefixes_of_a_long_run_are_the_short_runs():
    """Rules that do not know the horizon are run once: the ratio at T = 2 is that of a run of 2."""
    long, short = (convergence.execute(work(ShortStep(), Completion, h)) for h in ((2, 5), (2,)))
    name = "Theorem D (short step)"
    assert long["theorems"][name]["ratios"]["2"] == pytest.approx(short["theorems"][name]["ratios"]["2"], rel=1e-12)


def test_a_ratio_is_that_of_its_own_horizon():
    row = convergence.execute(work(Fixed(), WorstCase, (1, 4)))
    ratios = row["theorems"][FixedStepBound.name]["ratios"]
    assert ratios["1"] == pytest.approx(1.0)
    assert ratios["4"] < 0.9


def test_a_violation_is_named_and_ends_the_study_with_exit_code_1(tmp_path, monkeypatch, capsys):
    """A planted one: Theorem A with a value that is too small."""
    monkeypatch.setattr(FixedStepBound, "guaranteed", lambda self, run: 0.5 * self.on_trajectory(run))
    monkeypatch.setattr(convergence, "plan", lambda *_: [work(Fixed(), WorstCase, (1,))])
    assert main(["convergence", "--workers", "1", "--out", str(tmp_path)]) == 1
    said = capsys.readouterr()
    assert "refuted: WorstCase, Fixed: Theorem A (fixed step) is violated at T = 1, t = 1" in said.err
    assert "Violations: WorstCase" in (tmp_path / "README.md").read_text(encoding="utf-8")


def test_a_wrong_constant_is_a_violation_too():
    row = convergence.execute(work())
    row["audit"]["holds"] = False
    assert page.violations([row]) == ["WorstCase: its constants do not hold"]
    row["invariants"] = ["the gap is negative at t = 3"]
    assert page.violations([row])[0] == "WorstCase, Fixed: the gap is negative at t = 3"


def test_the_printed_theorem_is_reported_and_not_counted():
    row = convergence.execute(work(Fixed(), next(k for k in page_testbeds() if k.__name__ == "Concave"), (3,)))
    assert row["theorems"][page.PRINTED]["violations"]
    assert page.violations([row]) == []
    assert any("violated on Concave" in sentence for sentence in page.findings([row]))


def page_testbeds() -> list:
    return [w.testbed for w in convergence.plan((1,), (1,), 0)]


def test_rules_without_a_theorem_leave_their_cells_empty():
    row = convergence.execute(work(OpenLoop(), DriftingCompletion, (3,)))
    assert row["theorems"] == {}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["convergence", "--horizons", "0", "5"], "--horizons 0 5: give numbers of at least 1"),
        (["convergence", "--testbeds", "Complexion"], "--testbeds Complexion: there is none; choose from Completion"),
        (["convergence", "--workers", "0"], "--workers 0: give numbers of at least 1"),
        (["drift", "--horizons", "5", "5"], "--horizons 5 5: give two different numbers"),
        (["drift", "--exponents", "-1.0"], "--exponents -1.0: give numbers of at least 0"),
        (["drift", "--workers", "0"], "--workers 0: give a number of at least 1"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_sizes_without_meaning_are_refused(arguments, words, capsys):
    assert main(arguments) == 2
    assert words in capsys.readouterr().err


# ---------------------------------------------------------------- drift


def test_sublinear_drift_defeats_a_step_that_is_not_tuned_to_it():
    """``Delta ~ T^(3/4) = o(T)``: the printed remark promises a gap that vanishes; with eta ~ 1/sqrt T it does not."""
    rows = [drifting.execute(drifting.Work(0.25, rule, T, 0)) for T in (30, 300) for rule in drifting.RULES]
    untuned, tuned, short = (drift_page.slope(rows, 0.25, rule) for rule in drifting.RULES)
    assert untuned > 0
    assert tuned < -0.1
    assert short < -0.1
    assert drift_page.violations(rows) == []
    assert f"T^{untuned:+.2f} (fixed, tuned to M)" in drift_page.findings(rows)[1]


def test_the_drift_of_a_run_grows_as_its_exponent_says():
    sums = {T: sum(drifting.target(0.5, T, 0).total_drift(T)) for T in (100, 400)}
    assert sums[400] / sums[100] == pytest.approx(2.0, rel=0.3)


def test_a_violated_drift_bound_ends_the_study_with_exit_code_1(tmp_path, monkeypatch, capsys):
    honest = drifting.execute

    def planted(work: drifting.Work) -> dict:
        return honest(replace(work, horizon=3)) | {"T": work.horizon, "violations": ["Theorem E at t = 2"]}

    monkeypatch.setattr(drifting, "execute", planted)
    arguments = ["drift", "--exponents", "0.5", "--horizons", "3", "4", "--workers", "1", "--out", str(tmp_path)]
    assert main(arguments) == 1
    assert "refuted: a = 0.5, fixed, tuned to M, T = 4: Theorem E at t = 2" in capsys.readouterr().err
    assert (tmp_path / "figures" / "drift.png").exists()
