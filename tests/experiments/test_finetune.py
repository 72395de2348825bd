"""`finetune`: what it leaves behind, how it goes on, and what it refuses."""

from __future__ import annotations

import math
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from experiments.__main__ import main
from experiments.records import RunFolder
from experiments.tasks.jsonl import evaluate, read_rows, tokenize

Command = Callable[..., int]
SMALL = [
    "--max-steps",
    "12",
    "--batch-size",
    "4",
    "--rank",
    "2",
    "--lr",
    "0.02",
    "--max-length",
    "24",
    "--checkpoint-every",
    "5",
]


@pytest.fixture
def finetune(tiny_model: Path, sentences: list[str], jsonl, tmp_path: Path) -> Command:
    """`finetune(out, *options)`: the exit code of a small run, its train and eval files being there."""
    train = jsonl("train.jsonl", [{"text": text} for text in sentences[:30]])
    held_out = jsonl("eval.jsonl", [{"text": text} for text in sentences[30:]])

    def run(out: str, *options: str) -> int:
        files = ["--model", str(tiny_model), "--train", str(train), "--eval", str(held_out), "--out", str(tmp_path / out)]
        return main(["finetune", *files, *SMALL, *options])

    return run


def results(folder: Path) -> tuple[list[dict], dict[str, torch.Tensor]]:
    """What two equal runs must have in common, to the last bit."""
    return RunFolder(folder).rows("metrics.jsonl"), load_file(folder / "adapter" / "adapter_model.safetensors")


def assert_same(first: Path, second: Path) -> None:
    (metrics, adapter), (metrics_too, adapter_too) = results(first), results(second)
    assert metrics == metrics_too
    assert adapter.keys() == adapter_too.keys()
    assert all(torch.equal(adapter[name], adapter_too[name]) for name in adapter)


def test_a_run_leaves_adapter_ledger_metrics_and_report(finetune: Command, tmp_path: Path, capsys):
    assert finetune("run") == 0
    folder = RunFolder(tmp_path / "run")
    assert [record["step"] for record in folder.rows("ledger.jsonl")] == [4, 8]
    steps = [row["step"] for row in folder.rows("metrics.jsonl") if "loss" in row]
    assert steps == list(range(1, 13))
    assert (folder.path / "adapter" / "adapter_config.json").exists()
    assert list((folder.path / "tensorboard").iterdir())
    assert "data:image/png" in (folder.path / "report.html").read_text(encoding="utf-8")
    assert not list(folder.path.rglob("*.tmp"))
    said = capsys.readouterr().out
    assert "Held-out perplexity" in said
    assert "PeftModel.from_pretrained" in said


def test_training_lowers_the_held_out_perplexity_and_the_adapter_reproduces_it(
    finetune: Command, tiny_model: Path, tmp_path: Path
):
    assert finetune("run", "--max-steps", "40", "--target-modules", "q_proj", "v_proj", "up_proj", "down_proj") == 0
    before, after = [row for row in RunFolder(tmp_path / "run").rows("metrics.jsonl") if "eval_loss" in row]
    assert after["eval_perplexity"] < 0.8 * before["eval_perplexity"]
    base = AutoModelForCausalLM.from_pretrained(tiny_model)
    rows = read_rows(tmp_path / "eval.jsonl", "--eval")
    examples = tokenize(rows, AutoTokenizer.from_pretrained(tiny_model), 24)
    assert evaluate(base, examples, 4) == pytest.approx(before["eval_loss"], rel=1e-6)
    reloaded = PeftModel.from_pretrained(base, str(tmp_path / "run" / "adapter"))
    assert isinstance(reloaded, nn.Module)
    assert evaluate(reloaded, examples, 4) == pytest.approx(after["eval_loss"], rel=1e-5)


VARIANTS = {
    "plain": [],
    "bf16": ["--dtype", "bf16", "--accumulate", "2"],
    "dropout-stepdown": ["--dropout", "0.2", "--rank", "3", "2", "1"],
    "decay-checkpointing": ["--link-lr", "decay", "--link-warmup", "1", "--gradient-checkpointing"],
    "sgd-freeze": ["--inner", "sgd", "--momentum", "0.9", "--freeze-A", "--reset", "orthogonal"],
    "aligned-dropout": ["--reset", "gradient-aligned", "--dropout", "0.2"],
}


@pytest.mark.parametrize("stop", [3, 4, 9])
@pytest.mark.parametrize("options", VARIANTS.values(), ids=list(VARIANTS))
def test_resumed_finetune_is_bitwise_the_uninterrupted_run(finetune: Command, tmp_path: Path, options: list[str], stop: int):
    """Stopped before, at and after knots (steps 4 and 8)."""
    assert finetune("through", *options) == 0
    assert finetune("halted", *options, "--stop-after", str(stop)) == 0
    assert not (tmp_path / "halted" / "adapter").exists()
    assert finetune("halted", *options, "--resume") == 0
    assert_same(tmp_path / "through", tmp_path / "halted")


def test_a_run_that_died_between_checkpoints_goes_on_bitwise(
    finetune: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Death at step 8, the newest checkpoint at 5: steps 6 to 8 are taken again, and their rows are not doubled."""
    assert finetune("through") == 0
    append = RunFolder.append

    def die(self: RunFolder, name: str, row: dict) -> None:
        append(self, name, row)
        if row["step"] == 8:
            raise RuntimeError("power cut")

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "append", die)
        with pytest.raises(RuntimeError, match="power cut"):
            finetune("halted")
    assert finetune("halted", "--resume") == 0
    assert_same(tmp_path / "through", tmp_path / "halted")


def test_an_interrupt_finishes_its_step_and_the_run_goes_on_bitwise(
    finetune: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    assert finetune("through") == 0
    append = RunFolder.append

    def interrupt(self: RunFolder, name: str, row: dict) -> None:
        if row["step"] == 6:
            signal.raise_signal(signal.SIGINT)
        append(self, name, row)

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "append", interrupt)
        assert finetune("halted") == 0
    assert "stopped after step 6 of 12; go on with the same command and --resume" in capsys.readouterr().out
    assert finetune("halted", "--resume") == 0
    assert_same(tmp_path / "through", tmp_path / "halted")


def test_links_on_disk_resume_bitwise(finetune: Command, tmp_path: Path):
    assert finetune("through", "--chain-dir", str(tmp_path / "links-a")) == 0
    assert finetune("halted", "--chain-dir", str(tmp_path / "links-b"), "--stop-after", "6") == 0
    assert finetune("halted", "--chain-dir", str(tmp_path / "links-b"), "--resume") == 0
    assert_same(tmp_path / "through", tmp_path / "halted")


def test_a_finished_run_may_be_resumed_and_changes_nothing(finetune: Command, tmp_path: Path):
    assert finetune("run") == 0
    before = results(tmp_path / "run")
    assert finetune("run", "--resume") == 0
    after = results(tmp_path / "run")
    assert before[0] == after[0]
    assert all(torch.equal(before[1][name], after[1][name]) for name in before[1])


def test_one_link_is_lora_and_ties_nothing(finetune: Command, tmp_path: Path):
    assert finetune("run", "--links", "1") == 0
    assert RunFolder(tmp_path / "run").rows("ledger.jsonl") == []
    assert RunFolder(tmp_path / "run").read_json("export.json")["rank"] == 2


def test_checkpointed_activations_and_smaller_batches_change_no_loss(finetune: Command, tmp_path: Path):
    """The same rows a step, in one pass or in two, with activations kept or computed twice."""
    assert finetune("plain") == 0
    assert finetune("thrifty", "--gradient-checkpointing", "--batch-size", "2", "--accumulate", "2") == 0
    plain, thrifty = ([row["loss"] for row in results(tmp_path / out)[0] if "loss" in row] for out in ("plain", "thrifty"))
    assert thrifty == pytest.approx(plain, rel=1e-4)


def test_prompts_and_completions_train(tiny_model: Path, jsonl, tmp_path: Path):
    rows = [{"prompt": "the cat", "completion": "sat on the mat"}, {"prompt": "a dog", "completion": "ran"}]
    train = jsonl("pairs.jsonl", rows)
    files = ["--model", str(tiny_model), "--train", str(train), "--out", str(tmp_path / "run")]
    assert main(["finetune", *files, *SMALL, "--max-steps", "30"]) == 0
    losses = [row["loss"] for row in RunFolder(tmp_path / "run").rows("metrics.jsonl")]
    assert losses[-1] < 0.7 * losses[0]


def refused(capsys: pytest.CaptureFixture[str], code: int) -> str:
    """The one line that a refusal prints."""
    error = capsys.readouterr().err
    lines = [line for line in error.splitlines() if line.startswith("error: ")]
    assert code == 2
    assert len(lines) == 1
    assert "Traceback" not in error
    return lines[0]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--resume"], "--resume: there is no checkpoint in"),
        (["--links", "2", "--knot-every", "5"], "--links 2 and --knot-every 5 contradict each other"),
        (["--max-length", "64"], "--max-length 64: this model reads at most 32 tokens"),
        (["--target-modules", "nothing_of_that_name"], "nothing_of_that_name"),
        (["--knot-every", "5", "--rank", "2", "4"], "4"),
        (["--batch-size", "0"], "--batch-size 0: give a number of at least 1"),
        (["--lr", "nan"], "--lr nan"),
        (["--epochs", "inf"], "--epochs inf: give a finite number"),
        (["--lr-ratio", "inf"], "--lr-ratio inf: give a finite number"),
        (["--seed", "99999999999999999999"], "--seed 99999999999999999999"),
        (["--export-tolerance", "-1"], "--export-tolerance -1.0"),
        (["--alpha", "0"], "`--alpha=0.0`"),
        (["--momentum", "0.9"], "momentum"),
        (["--model", "./no/such/folder"], "--model ./no/such/folder: there is no such folder"),
        (["--model", "."], "--model .: the folder has no config.json"),
        (["--eval", "missing.jsonl"], "--eval missing.jsonl: there is no such file"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_wrong_option_is_refused_in_one_line_and_writes_nothing(
    finetune: Command, capsys, tmp_path: Path, options: list[str], words: str
):
    assert words in refused(capsys, finetune("run", *options))
    assert not (tmp_path / "run").exists()


def test_folder_that_cannot_be_made_is_one_line(finetune: Command, capsys):
    assert "cannot be made" in refused(capsys, finetune("train.jsonl/run"))


def test_knot_after_the_last_step_begins_no_link(finetune: Command, capsys):
    assert finetune("run", "--max-steps", "4", "--knots-at", "4") == 0
    said = capsys.readouterr().out
    assert "1 link over 4 steps" in said
    assert "from peft import PeftModel" in said


def test_torn_last_row_of_the_metrics_does_not_stop_a_resume(finetune: Command, tmp_path: Path):
    """A power cut tears a line; the checkpoint before it is whole."""
    assert finetune("through") == 0
    assert finetune("halted", "--stop-after", "4") == 0
    with (tmp_path / "halted" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "lo')
    assert finetune("halted", "--resume") == 0
    assert_same(tmp_path / "through", tmp_path / "halted")


def test_a_file_is_no_place_for_a_run(finetune: Command, capsys):
    assert "this is a file" in refused(capsys, finetune("train.jsonl"))


def test_resume_under_other_options_is_refused(finetune: Command, capsys, tmp_path: Path):
    assert finetune("run", "--stop-after", "3") == 0
    capsys.readouterr()
    assert "--lr 0.02 and is now given 0.01" in refused(capsys, finetune("run", "--resume", "--lr", "0.01"))
    assert "a run lies there already" in refused(capsys, finetune("run"))
    train = tmp_path / "train.jsonl"
    train.write_text(train.read_text(encoding="utf-8") + '{"text": "a cat"}\n', encoding="utf-8")
    assert "--train with SHA-256" in refused(capsys, finetune("run", "--resume"))


def test_a_diverging_run_says_so(finetune: Command, capsys):
    # The largest rate that float32 holds: the factors overflow whatever the processor. At 1e30 some give finite losses.
    line = refused(capsys, finetune("run", "--lr", "3e38", "--inner", "sgd", "--max-grad-norm", "0", "--links", "1"))
    assert "give a lower rate" in line


def test_a_real_model_learns_a_real_text(stories: Path, wikitext: Path, jsonl, tmp_path: Path):
    """TinyStories' model on WikiText: 119 is where data of this kind begins."""
    lines = wikitext.read_text(encoding="utf-8").splitlines()
    train, held_out = jsonl("train.jsonl", lines[300:340]), jsonl("eval.jsonl", lines[:12])
    files = ["--model", str(stories), "--train", str(train), "--eval", str(held_out), "--out", str(tmp_path / "run")]
    options = ["--max-steps", "12", "--batch-size", "2", "--rank", "4", "--lr", "3e-3", "--max-length", "128"]
    assert main(["finetune", *files, *options]) == 0
    before, after = [row["eval_perplexity"] for row in RunFolder(tmp_path / "run").rows("metrics.jsonl") if "eval_loss" in row]
    assert after < 0.8 * before
    assert math.isfinite(after)
