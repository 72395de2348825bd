"""The paper's protocol: what is planned, what cannot be, what is chosen by validation, and what bad input says."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from experiments.__main__ import main
from experiments.errors import UsageError
from experiments.pages import standings as pages_standings
from experiments.pages.paper_results import choose, collect
from experiments.paper import carry_out
from experiments.paper_contenders import chains, chosen, contenders, step_downs
from experiments.planning import plan
from experiments.protocol import PRESETS, SEVEN, ProtocolOptions
from experiments.records import RunFolder
from experiments.studies import rank_stepdown, table1
from experiments.tasks.language.source import names
from fwlora import Never

LABELS = ("entailment", "not_entailment")


def write(path: Path, rows: list) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture
def data(tmp_path, sentences) -> Path:
    """RTE in the official form, a task of completions and a multiple choice."""
    folder = tmp_path / "data"
    found = {
        "RTE": [
            {"premise": said, "hypothesis": "it ran", "label": LABELS[n % 2], "idx": n} for n, said in enumerate(sentences)
        ],
        "endings": [{"prompt": said, "completion": "the mat"} for said in sentences],
        "places": [
            {"question": said, "choices": ["on", "under", "a tree"], "answer": n % 3} for n, said in enumerate(sentences)
        ],
    }
    for task, rows in found.items():
        for split in ("train", "validation"):
            write(folder / task / f"{split}.jsonl", rows)
    return folder


@pytest.fixture
def options(tiny_model, data) -> ProtocolOptions:
    return replace(PRESETS["smoke"], model=str(tiny_model), data_dir=data, tasks=("RTE",))


@pytest.fixture
def command(tiny_model, data, tmp_path):
    """The command line of a small table 1."""
    return ["table1", "--preset", "smoke", "--model", str(tiny_model), "--data-dir", str(data), "--out", str(tmp_path / "out")]


def test_the_seven_tasks_are_those_that_there_are():
    assert sorted(SEVEN) == sorted(names())


def test_presets_are_the_papers():
    for name in ("opt-1.3b", "llama-2-7b"):
        preset = PRESETS[name]
        assert preset.tasks == SEVEN
        assert preset.lrs == (1e-3, 8e-4, 5e-4, 1e-4, 5e-5)
        assert (preset.epochs, preset.seeds, preset.rank, preset.alpha, preset.links) == (5, 5, 8, 16.0, 3)
        assert preset.examples == (1000, 500, 1000)
        assert preset.batch_size in {4, 8}
        assert preset.target_modules == ("q_proj", "v_proj")
        assert preset.lora_bias == (name == "opt-1.3b")


def test_plan_without_data_says_what_cannot_fit(capsys):
    """Llama-2-7B: AdamW on fp32 weights needs 16 bytes for each of 6.74e9 numbers, 108 GB."""
    options = replace(PRESETS["llama-2-7b"], tasks=("RTE",), dry_run=True)
    carry_out(table1.Config(options), lambda o, _: chosen(contenders(o), ("chain", "full"), "--methods"), title="", lead="")
    said = capsys.readouterr().out
    assert "not run: full fine-tuning on RTE: needs 108 GB" in said
    assert "the device has 80 GB" in said
    assert "lengths of prompts are assumed" in said
    # 2 methods that fit, 5 rates, 5 seeds.
    assert re.search(r"^50 runs, ", said, re.MULTILINE)


def test_dry_run_writes_nothing(command, tmp_path, capsys):
    assert main([*command, "--tasks", "RTE", "--dry-run"]) == 0
    assert not (tmp_path / "out").exists()
    assert "\n6 runs, " in capsys.readouterr().out  # 3 methods, 1 rate, 2 seeds


def test_step_down_begins_after_three_fifths_of_the_run(options):
    cells = plan(replace(options, max_steps=10), lambda o, steps: step_downs(o, (1, 2), math.ceil(rank_stepdown.FIRST * steps)))
    assert [cell.method.planned_knots(10) for cell in cells] == [[], [6], [6]]


def test_chain_of_one_link_is_lora_and_longer_ones_differ_in_knots_alone(options):
    made = chains(options, (1, 2, 3, 5))
    assert list(made) == ["lora", "chain-of-2", "chain-of-3", "chain-of-5"]
    assert [len(method.planned_knots(60)) for method in made.values()] == [0, 1, 2, 4]
    alone = contenders(replace(options, links=1))["chain"]
    assert alone.knots == Never()  # pyright: ignore[reportAttributeAccessIssue]


def test_chain_costs_lora_and_its_knots(options):
    lora, chain = plan(options, lambda o, _: chosen(contenders(o), ("chain",), "--methods"))
    # 2 r in out a site and knot; the tiny model's q is 16 x 16 and its v 8 x 16, in two layers.
    assert chain.flops - lora.flops == 2 * 2 * 2 * (2 * (16 * 16 + 16 * 8))
    assert chain.memory == lora.memory
    assert chain.parameters == lora.parameters == 2 * 2 * ((16 + 16) + (16 + 8))  # layers x rank x (in + out) of q and of v


@pytest.mark.filterwarnings("ignore::fwlora.errors.ShortLinkWarning")
def test_rate_is_chosen_by_validation_and_the_test_reported_at_it(command, tmp_path):
    assert main([*command, "--tasks", "RTE", "--lrs", "1e-3", "1e-1", "--methods", "chain"]) == 0
    folder = RunFolder(tmp_path / "out")
    rows = folder.rows("runs.jsonl")
    assert len(rows) == 2 * 2 * 2
    standings = collect(folder).tasks["RTE"]
    for method, choice in standings.choices.items():
        mine = [row for row in rows if row["label"] == method]
        means = {lr: sum(row["validation"] for row in mine if row["lr"] == lr) / 2 for lr in choice.scores}
        assert dict(choice.scores) == means
        assert standings.values(method) == [row["value"] for row in mine if row["lr"] == choice.rate]
    assert (tmp_path / "out" / "figures" / "rte-losses.png").is_file()


@pytest.mark.filterwarnings("ignore::fwlora.errors.ShortLinkWarning")
def test_second_call_trains_nothing_and_gives_the_same_page(command, tmp_path, monkeypatch):
    arguments = [*command, "--tasks", "RTE", "places", "--methods", "chain", "full"]
    assert main(arguments) == 0
    page_, figures = (tmp_path / "out" / "README.md").read_text(), sorted((tmp_path / "out" / "figures").iterdir())
    assert len(figures) == 5
    monkeypatch.setattr("experiments.sweep.execute", lambda run: pytest.fail("a finished run was made again"))
    assert main(arguments) == 0
    assert (tmp_path / "out" / "README.md").read_text() == page_


@pytest.mark.filterwarnings("ignore::fwlora.errors.ShortLinkWarning")
def test_completions_are_measured_by_what_is_written(command, tmp_path):
    assert main([*command, "--tasks", "endings", "--max-new-tokens", "4"]) == 0
    (row, *_) = RunFolder(tmp_path / "out").rows("runs.jsonl")
    assert "ROUGE-L" in row["metric"]["name"]
    assert {"validation loss", "test exact match (%)"} <= set(row["details"])


def test_method_that_does_not_fit_is_a_cell_with_its_reason(command, tmp_path):
    lora, full = plan_of(command)
    limit = (lora + full) / 2 / 1e9
    assert main([*command, "--tasks", "RTE", "--methods", "full", "--memory-gb", f"{limit:.9f}"]) == 0
    text = (tmp_path / "out" / "README.md").read_text()
    assert "## Not run" in text
    assert "full fine-tuning on RTE: needs" in text


def plan_of(command) -> tuple[float, float]:
    model, data = command[command.index("--model") + 1], command[command.index("--data-dir") + 1]
    options = replace(PRESETS["smoke"], model=model, data_dir=Path(data), tasks=("RTE",))
    lora, full = plan(options, lambda o, _: chosen(contenders(o), ("full",), "--methods"))
    return lora.memory.total, full.memory.total


def test_rate_at_which_training_came_to_nothing_is_not_chosen():
    """A validation score of nan is the worst there is."""
    rows = [
        {"lr": lr, "validation": value, "metric": {"higher_is_better": True}} for lr, value in ((1e-3, 50.0), (1e-1, math.nan))
    ]  # fmt: skip
    assert choose(rows).rate == 1e-3


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--tasks", "RTE", "RTE"], "--tasks RTE RTE: give one or more, each once"),
        (["--tasks", "rte"], "did you mean RTE"),
        (["--tasks", "WiC"], "WiC"),
        (["--lrs", "0"], "--lrs 0.0: give a finite number above 0"),
        (["--lrs", "1e-3", "nan"], "--lrs nan: give a finite number above 0"),
        (["--tasks", "RTE", "--lora-bias"], "--lora-bias: q_proj of"),
        (
            ["--tasks", "RTE", "--links", "7", "--max-steps", "6"],
            "chain of 7 on RTE: a run has 6 steps; give more, or fewer links",
        ),
        (["--tasks", "RTE", "--scheduler", "nowhere"], "--scheduler nowhere: no Dask scheduler answers"),
        (["--methods", "lora", "chian"], "--methods chian: choose from lora, chain"),
        (["--examples", "0", "1", "1"], "--examples 0: give a number of at least 1"),
        (["--tasks", "RTE", "--examples", "41", "1", "1"], "--examples"),
        (["--max-length", "4"], "--max-length 4"),
        (["--tasks", "RTE", "--max-length", "64"], "--max-length 64: this model reads at most 32 tokens"),
        (["--tasks", "RTE", "--target-modules", "query"], "--target-modules query"),
        (["--tasks", "RTE", "--device", "cuda"], "--device cuda"),
        (["--tasks", "RTE", "--model", "nobody/nothing"], "nobody/nothing"),
        (["--tasks", "RTE", "--model", "./nowhere"], "./nowhere"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_bad_option_is_one_line_and_nothing_is_written(arguments, words, command, tmp_path, capsys, monkeypatch):
    if "cuda" in arguments and torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    gone = "experiments.language.loading._hub_config"
    monkeypatch.setattr(gone, lambda model: UsageError(f"--model {model}: the hub cannot be reached."))
    assert main([*command, *arguments]) == 2
    (error,) = [line for line in capsys.readouterr().err.splitlines() if line and not line.startswith("plan:")]
    assert error.startswith("error: ")
    assert words in error
    assert not (tmp_path / "out").exists()


@pytest.mark.filterwarnings("ignore::fwlora.errors.ShortLinkWarning")
def test_study_whose_every_cell_is_left_out_still_has_its_page(command, tmp_path, capsys):
    assert main([*command, "--tasks", "RTE", "--memory-gb", "1e-6"]) == 0
    assert (tmp_path / "out" / "README.md").read_text().count("on RTE: needs") == 3
    assert "there is no chain among the runs" in capsys.readouterr().out


def test_without_lora_there_are_no_comparisons():
    """What comes first in its stead is not called LoRA's."""
    row = {"seed": 0, "value": 50.0, "metric": {"name": "accuracy", "unit": "", "higher_is_better": True, "digits": 2}}
    found = pages_standings.Standings({"chain of 3": [row], "full fine-tuning": [row]}, baseline="LoRA")
    assert pages_standings.tests({"RTE": found}) == {}
    found.rows["LoRA"] = [row]
    assert set(pages_standings.tests({"RTE": found})) == {("RTE", "chain of 3"), ("RTE", "full fine-tuning")}
    assert found.reference == "LoRA"


def test_prefix_that_leaves_rows_no_room_is_a_cell_with_its_reason(options):
    """20 virtual tokens before rows of up to the model's 32."""
    (_, prefix) = plan(options, lambda o, _: chosen(contenders(o), ("prefix",), "--methods"))
    assert prefix.reason is not None
    assert re.fullmatch(
        r"20 tokens before rows of \d+ are more than the 32 that the model reads; lower --max-length", prefix.reason
    )


def test_folder_that_is_a_file_is_refused_before_anything_is_read(command, tmp_path, capsys):
    (tmp_path / "out").write_text("mine")
    assert main(command) == 2
    assert "this is a file; give a folder" in capsys.readouterr().err
    assert (tmp_path / "out").read_text() == "mine"


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([], "no rows"),
        (["{not JSON\n"], "train.jsonl, line 1: not JSON"),
        ([{"premise": "a cat sat", "label": "entailment"}], "train.jsonl, line 1"),
        (
            [{"premise": "a cat sat", "hypothesis": "it sat", "label": "perhaps"}],
            "line 1: 'label' is \"perhaps\", which is no label",
        ),
        (None, "train.jsonl: there is no such file"),
    ],
    ids=["empty split", "not JSON", "missing field", "unknown label", "missing file"],
)
def test_bad_data_are_one_line_with_their_place_and_nothing_is_written(rows, words, command, data, tmp_path, capsys):
    file = data / "RTE" / "train.jsonl"
    file.unlink()
    if rows is not None:
        write(file, rows)
    assert main([*command, "--tasks", "RTE"]) == 2
    # Beside it there may be the plan's bar.
    (error,) = [line for line in capsys.readouterr().err.splitlines() if line and not line.startswith("plan:")]
    assert error.startswith("error: ")
    assert words in error
    assert not (tmp_path / "out").exists()
