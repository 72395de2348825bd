"""The study of knot schedules, in small: triggers hear the loss, and the page says what the tests say."""

from __future__ import annotations

import os
import re
from dataclasses import asdict
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.compare import Run, execute
from experiments.errors import UsageError
from experiments.methods import ChainOfLoRA
from experiments.pages import knot_schedules as page
from experiments.pages.knot_trials import TITLES, Trials, collect
from experiments.records import RunFolder
from experiments.studies import knot_schedules as study
from experiments.tasks.metric import ACCURACY
from experiments.tasks.regression import Regression
from experiments.tuning import Choice
from experiments.tying import NEVER, TRIGGERS, grounds, schedules
from fwlora import GapBelow, Plateau

SIZES = {"seeds": 2, "tuning_seeds": 1, "rates": 1, "extensions": 0, "min_steps": 10, "epochs": 1, "matrix_steps": 30}
STEPS = {"epochs": 1, "matrix_steps": 30, "adaptation_steps": 9}
COUNTED = "3 even links"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small study."""
    out = tmp_path_factory.mktemp("knot-schedules")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "environ", os.environ.copy())
        study.run(study.Config(problems=("digits", "regression-rank-2"), **SIZES, workers=1, out=out))
    return out


def test_every_schedule_meets_every_test_seed_on_equal_terms(finished: Path):
    rows = RunFolder(finished).rows("runs.jsonl")
    assert {(row["problem"], row["method"], row["seed"]) for row in rows} == {
        (problem, method, seed) for problem in ("digits", "regression-rank-2") for method in schedules(10) for seed in (1, 2)
    }
    assert len({(row["problem"], row["steps"], row["trainable"]) for row in rows}) == 2
    by_count = {row["method"]: row["knots"] for row in rows if row["problem"] == "regression-rank-2"}
    assert by_count["every 10 steps"] == [*by_count[COUNTED][:2], 30] == [10, 20, 30]


def test_page_has_a_table_and_a_figure_for_each_problem(finished: Path):
    document = (finished / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"(src|href)=\"(?!data:)", document)
    problems = collect(RunFolder(finished))
    assert list(problems) == ["digits", "regression-rank-2"]
    for name, results in problems.items():
        assert TITLES[name] in document
        assert (finished / "figures" / f"{name}.png").exists()
        # A single rate is at the edge of its grid, and table and sentence say so.
        assert all(row[1].endswith("*") for row in results.table().rows)
        assert page.edge_sentence(results).endswith(", ".join(results.rows) + ".")
        # A knot after the last step begins no link.
        assert results.mean_knots("every 10 steps") == (3 if name == "digits" else 2)
    assert repr(Plateau(min_steps=10)) in document
    assert repr(GapBelow(min_steps=10)) in document


@pytest.mark.parametrize("rule", [Plateau(min_steps=50), GapBelow(min_steps=50)], ids=["Plateau", "GapBelow"])
def test_training_loop_tells_a_trigger_what_it_reads(rule):
    row = execute(Run(Regression(true_rank=2, steps=250), ChainOfLoRA("triggered", 1e-2, 2, rule), 0))
    assert row["knots"]
    assert min(row["knots"]) >= 50
    assert max(row["knots"]) <= 200


@given(tuning=st.integers(1, 9), tests=st.integers(1, 9))
def test_no_seed_is_tuned_on_and_tested_on(tuning: int, tests: int):
    sizes = {"seeds": tests, "language_seeds": tests, "tuning_seeds": tuning, "language_tuning_seeds": tuning}
    for ground in grounds("base.pt", **STEPS, **sizes).values():
        chosen_on = {run.seed for run in ground.tuning("never", schedules(10)[NEVER], 1e-2)}
        tested_on = {ground.test("never", schedules(10)[NEVER], 1e-2, number).seed for number in range(ground.seeds)}
        assert (len(chosen_on), len(tested_on)) == (tuning, tests)
        assert not chosen_on & tested_on


def trials(counted: float, plateau: float, gap_below: float, knots: int = 1) -> Trials:
    """Four seeds of a problem: means relative to never tying, with a little spread between seeds."""
    made = Trials()
    for method, gain in {NEVER: 0.0, COUNTED: counted, TRIGGERS[0]: plateau, TRIGGERS[1]: gap_below}.items():
        tied = [] if method == NEVER else [10] * knots
        made.rows[method] = [
            {
                "problem": "digits", "method": method, "seed": seed, "value": 80 + seed + gain * (1 + 0.1 * seed), "steps": 30,
                "metric": asdict(ACCURACY), "trainable": 10, "knots": tied, "lr": 0.1, "schedule": "Never()",
            }
            for seed in range(4)
        ]  # fmt: skip
        made.choices[method] = Choice({0.05: 0.0, 0.1: 1.0, 0.2: 0.0})
    return made


@pytest.mark.parametrize(
    ("on_paying", "on_costing", "conclusion"),
    [(4.0, 0.0, "it tells when"), (4.0, -4.0, "does not tell"), (0.0, 0.0, "does not tell"), (-4.0, 0.0, "does not tell")],
    ids=["gains and spares", "ties everywhere", "ties nowhere", "ties wrongly"],
)
def test_answer_follows_the_numbers(on_paying: float, on_costing: float, conclusion: str):
    problems = {
        "digits": trials(5.0, on_paying, 0.0),
        "regression-rank-2": trials(-5.0, on_costing, 0.0),
    }
    assert conclusion in page.answer(problems, "Plateau")
    assert "does not tell" in page.answer(problems, "GapBelow")


def test_problems_of_one_kind_answer_nothing():
    for counted in (5.0, -5.0):
        assert "cannot say" in page.answer({"digits": trials(counted, 1.0, 1.0)}, "Plateau")


def test_findings_are_sorted_by_the_measured_verdicts():
    found = page.findings({"digits": trials(5.0, 8.0, -3.0)})
    helps, helps_not = found["Where a trigger helps"], found["Where it does not"]
    assert [sentence.split(" (")[0] for sentence in helps] == [
        "Rotated digits: Plateau is better than never",
        "Rotated digits: Plateau is better than 3 even links",
    ]
    assert [sentence.split(" (")[0] for sentence in helps_not] == [
        "Rotated digits: GapBelow is worse than never",
        "Rotated digits: GapBelow is worse than 3 even links",
    ]


def test_trigger_that_ties_nothing_is_said_to_be_lora():
    results = trials(5.0, 0.0, 0.0, knots=0)
    assert results.say("Plateau", NEVER) == f"Plateau ties no knot on any seed, and so is {NEVER}."
    assert page.figure(results, "one").startswith(b"\x89PNG")


def test_an_unknown_problem_is_named(tmp_path: Path):
    with pytest.raises(UsageError, match="--problems digit: choose from digits, regression-rank-16"):
        study.run(study.Config(problems=("digit",), out=tmp_path / "out"))
    assert not (tmp_path / "out").exists()
