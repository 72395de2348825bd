"""Adaptation to another text: how its rows are split, who meets, and that the page says what the tests say."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from experiments.__main__ import main
from experiments.adapting import contenders
from experiments.errors import UsageError
from experiments.methods import ChainOfLoRA
from experiments.pages import adaptation as page
from experiments.records import RunFolder
from experiments.tasks.adaptation import Adaptation
from experiments.tasks.jsonl import evaluate


@pytest.fixture
def text(jsonl, sentences):
    return jsonl("text.jsonl", [{"text": sentence} for sentence in sentences])


@pytest.fixture
def problem(tiny_model, text) -> Adaptation:
    return Adaptation(str(tiny_model), str(text), steps=5, batch_size=3, max_length=16, held_out=8)


@pytest.fixture
def command(tiny_model, text, tmp_path):
    return ["adaptation", "--preset", "smoke", "--model", str(tiny_model), "--text", str(text), "--out", str(tmp_path / "out")]


def test_test_training_and_validation_are_the_rows_of_the_file_in_this_order(problem):
    parts = [problem.rows(split) for split in ("test", "train", "validation")]
    assert [len(part) for part in parts] == [8, len(problem.rows("train")), 8]
    everything = replace(problem, held_out=1)
    whole = [everything.rows(split) for split in ("test", "train", "validation")]
    assert [row for part in parts for row in part] == [row for part in whole for row in part]


def test_value_is_the_exponential_of_the_loss_on_the_test_rows(problem):
    model = problem.model()
    assert problem.evaluate(model) == pytest.approx(math.exp(evaluate(model, problem.rows("test"), 4)), rel=1e-6)
    assert problem.validate(model) == pytest.approx(math.exp(evaluate(model, problem.rows("validation"), 4)), rel=1e-6)


def test_extent_counts_what_training_reads(problem):
    task = problem.task(seed=1)
    batches = [batch for step in range(problem.steps) for batch in task.batches(step)]
    extent = problem.extent(seed=1)
    assert extent.examples == 15
    assert extent.tokens == sum(batch.input_ids.numel() for batch in batches)
    assert extent.squares == sum(batch.input_ids.numel() * batch.input_ids.shape[1] for batch in batches)


def test_models_have_nothing_in_common(problem):
    first, second = problem.model(), problem.model()
    with torch.no_grad():
        for parameter in first.parameters():
            parameter.zero_()
    assert problem.evaluate(second) != problem.evaluate(first)


def test_chains_train_what_lora_trains():
    methods = contenders(rank=4)
    assert methods[0].label == "LoRA"
    assert len({method.label for method in methods}) == len(methods)
    chains = [method for method in methods if isinstance(method, ChainOfLoRA)]
    assert {len(chain.planned_knots(300)) for chain in chains} == {1, 2, 4}
    stepped = next(chain for chain in chains if not isinstance(chain.rank, int))
    assert [stepped.rank.rank(knot) for knot in range(4)] == [4, 2, 1, 1]  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.filterwarnings("ignore::fwlora.errors.ShortLinkWarning")
def test_tests_use_no_seed_that_a_rate_was_chosen_on_and_the_page_says_what_they_say(command, tmp_path, capsys):
    assert main(command) == 0
    folder = RunFolder(tmp_path / "out")
    rows = folder.rows("runs.jsonl")
    assert {row["seed"] for row in rows} == {1, 2, 3}  # seed 0 chose
    results = page.collect(folder)
    said = capsys.readouterr().out
    assert all(sentence in said for sentence in page.findings(results))
    for (_, method), test in results.tests.items():
        values = results.standings.values(method)
        differences = [a - b for a, b in zip(values, results.standings.values("LoRA"), strict=True)]
        assert test.comparison.difference.mean == pytest.approx(sum(differences) / 3)
    assert {path.name for path in (tmp_path / "out" / "figures").iterdir()} == {"values.png", "losses.png", "spectra.png"}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (["--held-out", "20"], "are too few to hold out twice 20; lower --held-out"),
        (["--text", "nowhere.jsonl"], "--text nowhere.jsonl: there is no such file"),
        (["--max-length", "64"], "--max-length 64: this model reads at most 32 tokens"),
        (["--target-modules", "query"], "has no layer 'query'"),
        (["--steps", "3"], "--steps 3: give a number of at least 15"),
        (["--model", "./nowhere"], "--model nowhere: there is no such folder"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_bad_input_is_one_line_and_nothing_is_written(change, words, command, tmp_path, capsys):
    assert main([*command, *change]) == 2
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_text_with_too_few_rows_is_refused(problem):
    with pytest.raises(UsageError, match="lower --held-out"):
        replace(problem, held_out=30).rows("train")
