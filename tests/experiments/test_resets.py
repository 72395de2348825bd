"""The study of resets, in small: rates are chosen on validation data, and the page says what the tests say."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from experiments.errors import UsageError
from experiments.methods import ChainOfLoRA
from experiments.pages import resets as page
from experiments.records import RunFolder
from experiments.reset_contenders import FULL, contests
from experiments.statistics import compare, holm
from experiments.studies import resets
from experiments.tasks.digits import Digits
from experiments.tasks.new_labels import NewLabels
from experiments.tasks.pydoc_text import Source
from experiments.train import train
from experiments.tuning import Choice, grid, tune
from fwlora import ChainLoRAOptimizer, Evenly, Orthogonal

SIZES = {"seeds": 2, "language_seeds": 2, "tuning_seeds": 1, "rates": 1, "extensions": 0, "epochs": 2}
STEPS = {"pretraining_steps": 3, "adaptation_steps": 27, "repeats": 1}
LEAST = {"epochs": 2, "seeds": 2, "adaptation_steps": 27, "attention_steps": 45, "language_seeds": 2}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small study on one problem; the Llama is timed in it too."""
    out = tmp_path_factory.mktemp("resets")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "environ", os.environ.copy())
        resets.run(resets.Config(**SIZES, **STEPS, problems=("new-labels",), workers=1, out=out))
    return out


def test_every_method_meets_every_test_seed_on_every_problem(finished: Path):
    rows = RunFolder(finished).rows("runs.jsonl")
    runs = {(row["problem"], row["method"], row["seed"]) for row in rows}
    assert len(runs) == len(rows) == 2 * 14
    assert {row["seed"] for row in rows} == {1, 2}
    for row in rows:
        links = re.match(r"chain of (\d+)", row["method"])
        assert len(row["knots"]) == (int(links[1]) - 1 if links else 0)


def test_methods_on_a_problem_take_equally_many_steps(finished: Path):
    steps = {(row["problem"], row["steps"]) for row in RunFolder(finished).rows("runs.jsonl")}
    assert steps == {("new-labels", 50)}


def test_page_has_a_table_and_a_figure_for_each_problem(finished: Path):
    document = (finished / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"(src|href)=\"(?!data:)", document)
    problems = page.collect(RunFolder(finished))
    assert list(problems) == ["new-labels"]
    for name, results in problems.items():
        assert page.TITLES[name] in document
        assert (finished / "figures" / f"{name}.png").exists()
        assert len(results.table().rows) == len(results.rows)
        # A single rate is at the edge of its grid, and the table says so.
        assert all(row[1].endswith("*") for row in results.table().rows)


def test_sentences_go_by_corrected_p_values(finished: Path):
    results = page.collect(RunFolder(finished))["new-labels"]
    alone = compare(results.values(FULL), results.values(results.reference))
    assert results.against(FULL).p >= alone.p
    assert results.against(FULL).difference == alone.difference
    assert len(results.tests) == 13 + 6 + 2


def test_an_unknown_problem_is_named(tmp_path: Path):
    with pytest.raises(UsageError, match="--problems digits: choose from new-labels"):
        resets.run(resets.Config(problems=("digits",), out=tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_probe_steps_are_counted_and_timed(finished: Path):
    cost = RunFolder(finished).read_json("cost.json")
    assert cost["probes"] == 3 * 2
    assert cost["step_ratio"] > 0.2
    assert f"{cost['run_ratio']:.3f} times" in (finished / "README.md").read_text(encoding="utf-8")


@given(st.integers(1, 50), st.integers(0, 50))
def test_no_seed_is_tuned_on_and_tested_on(tuning: int, testing: int):
    chosen_on, tested_on = resets.split_seeds(tuning, testing)
    assert (len(chosen_on), len(tested_on)) == (tuning, testing)
    assert not set(chosen_on) & set(tested_on)


def parabola(best: float):
    """A score that is largest at `best`, and what was asked of it."""
    asked: list[float] = []

    def score(wanted: Sequence[tuple[str, float]]) -> list[float]:
        asked.extend(rate for _, rate in wanted)
        return [-((math.log2(rate / best)) ** 2) for _, rate in wanted]

    return score, asked


@pytest.mark.parametrize(
    ("best", "extensions", "rate", "at_edge", "asked"),
    [
        (1.0, 2, 1.0, False, [0.25, 0.5, 1.0, 2.0, 4.0]),
        (4.0, 2, 4.0, False, [0.25, 0.5, 1.0, 2.0, 4.0, 8.0]),
        (0.125, 2, 0.125, False, [0.25, 0.5, 1.0, 2.0, 4.0, 0.125, 0.0625]),
        (64.0, 2, 16.0, True, [0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0]),
        (64.0, 0, 4.0, True, [0.25, 0.5, 1.0, 2.0, 4.0]),
    ],
)
def test_the_best_rate_is_chosen_and_a_grid_grows_where_it_lies_at_the_edge(best, extensions, rate, at_edge, asked):
    score, seen = parabola(best)
    choice = tune({"method": grid(1.0, 5)}, score, extensions=extensions)["method"]
    assert (choice.rate, choice.at_edge) == (rate, at_edge)
    assert seen == asked


def test_only_the_grids_at_whose_edge_the_best_lies_grow():
    rounds: list[list[str]] = []

    def score(wanted: Sequence[tuple[str, float]]) -> list[float]:
        rounds.append([key for key, _ in wanted])
        return [rate if key == "more" else -abs(rate - 1) for key, rate in wanted]

    choices = tune({"more": grid(1.0, 3), "enough": grid(1.0, 3)}, score, extensions=1)
    assert rounds == [["more"] * 3 + ["enough"] * 3, ["more"]]
    assert (choices["more"].rate, choices["enough"].rate) == (4.0, 1.0)


def test_of_equal_rates_the_middle_one_is_chosen():
    assert Choice({0.1: 1.0, 0.2: 5.0, 0.4: 5.0, 0.8: 5.0, 1.6: 2.0}).rate == 0.4


def test_a_rate_at_which_training_came_to_nothing_is_not_chosen():
    assert Choice({0.1: math.nan, 0.2: -3.0, 0.4: math.nan}).rate == 0.2


@given(st.lists(st.floats(0, 1), min_size=1, max_size=9))
def test_holm_rejects_what_its_step_down_procedure_rejects(p: list[float]):
    level, rejected = 0.05, set()
    for place, index in enumerate(sorted(range(len(p)), key=lambda index: p[index])):
        if p[index] * (len(p) - place) > level:
            break
        rejected.add(index)
    assert {index for index, value in enumerate(holm(p)) if value <= level} == rejected


def test_holm_passes_over_tests_that_could_not_be_made():
    assert holm([0.02, math.nan, 0.01]) == pytest.approx([0.02, math.nan, 0.02], nan_ok=True)


def test_a_verdict_needs_the_corrected_p():
    sure = compare([1.0, 2.1, 3.0], [0.0, 1.0, 2.1])
    assert (sure.verdict, replace(sure, p=0.2).verdict) == ("better", "no clear difference")


def test_new_labels_are_five_to_nine_and_no_image_is_in_two_splits():
    splits = {split: NewLabels().data(split) for split in ("train", "validation", "test")}
    assert {split: len(labels) for split, (_, labels) in splits.items()} == {"train": 400, "validation": 200, "test": 296}
    assert all(set(labels.tolist()) == {5, 6, 7, 8, 9} for _, labels in splits.values())
    images = {tuple(image) for images, _ in splits.values() for image in images.tolist()}
    assert len(images) == 896
    assert not torch.equal(splits["validation"][0][:9], splits["test"][0][:9])


def test_the_base_of_the_new_labels_knows_the_old_ones_only():
    problem = NewLabels()
    guesses = problem.outputs(problem.model()).argmax(1)
    assert set(guesses.tolist()) <= {0, 1, 2, 3, 4}
    assert problem.evaluate(problem.model()) == 0.0
    assert (problem.steps, Digits().steps) == (500, 620)


def test_rates_are_chosen_on_other_windows_than_the_tests():
    starts = {}
    for split in ("validation", "test"):
        windows = Source("", split=split)._held_out("source")
        starts[split] = {tuple(window) for window in windows.unfold(1, 33, 1).flatten(0, 1).tolist()}
    # Any 33 characters in a row: source repeats itself, but two overlapping cuts of it would share half and more.
    shared = len(starts["validation"] & starts["test"]) / len(starts["test"])
    assert shared < 0.1


def test_each_contest_begins_with_lora_and_has_each_label_once():
    for contest in contests("base.pt", **LEAST).values():
        labels = [method.label for method in contest.methods]
        assert labels[0].startswith("LoRA r=")
        assert len(set(labels)) == len(labels)


def test_every_method_has_room_for_its_probe_steps_in_the_shortest_study(finished: Path):
    """Preparing a chain whose links are too short for them is an error, and so is a first step."""
    made = contests(str(finished / "base.pt"), **LEAST)
    assert set(made) == set(page.TITLES)
    for contest in made.values():
        for method in contest.methods:
            run = contest.run(method.label, 1e-3, 0, "validation")
            assert (run.problem.name, run.method.label) == (contest.problem.name, method.label)
            setup = run.method.prepare(run.problem.model(), run.problem.targets, steps=run.problem.steps, seed=0)
            assert len(train(setup, run.problem.task(0), steps=1)) == 1


def test_a_chain_hands_its_reset_and_frozen_factor_on():
    problem = Digits(epochs=1)
    method = ChainOfLoRA("chain", 1e-2, 2, Evenly(2), reset=Orthogonal(), freeze_A=True)
    optimizer = method.prepare(problem.model(), problem.targets, steps=problem.steps, seed=0).optimizer
    assert isinstance(optimizer, ChainLoRAOptimizer)
    assert optimizer.reset == Orthogonal()
    assert all(not site.A.requires_grad for site in optimizer.sites.values())
