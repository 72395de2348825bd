"""Every study runs as a user would run it, at its preset `smoke`: records, page and figures are there at the end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from experiments.__main__ import load, main, names, parse
from experiments.errors import UsageError


@pytest.fixture
def needs(tiny_model, jsonl, sentences, tmp_path):
    """What the studies ask for beside their presets."""
    data = tmp_path / "data"
    labels = ("entailment", "contradiction", "neutral")
    rows = {
        "SST-2": [{"sentence": said, "label": number % 2, "idx": number} for number, said in enumerate(sentences)],
        "CB": [
            {"premise": said, "hypothesis": "it was red", "label": labels[number % 3], "idx": number}
            for number, said in enumerate(sentences)
        ],
    }
    for task, found in rows.items():
        (data / task).mkdir(parents=True)
        for split in ("train", "validation"):
            (data / task / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in found))
    text = str(jsonl("text.jsonl", [{"text": sentence} for sentence in sentences]))
    protocol = ["--model", str(tiny_model), "--data-dir", str(data)]
    return {
        "finetune": ["--model", str(tiny_model), "--train", text, "--eval", text],
        "adaptation": ["--model", str(tiny_model), "--text", text],
        **dict.fromkeys(("table1", "chain-length", "rank-stepdown"), protocol),
    }


@pytest.mark.filterwarnings("ignore::fwlora.errors.ShortLinkWarning")
@pytest.mark.parametrize("name", names())
def test_study_runs_at_its_smoke_preset(name, needs, tmp_path, capsys):
    out = tmp_path / "out"
    assert main([name, "--preset", "smoke", *needs.get(name, []), "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "report" in said.lower()
    assert {"config.json", "environment.json", "report.html"} <= {path.name for path in out.iterdir()}
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert "<script" not in page


@pytest.mark.parametrize("name", names())
def test_preset_changes_defaults_and_an_option_beside_it_stands(name):
    presets = load(name).PRESETS
    assert "smoke" in presets
    required = {"finetune": ["--model", "m", "--train", "t"], "adaptation": ["--model", "m", "--text", "t"]}.get(name, [])
    config = parse(name, ["--preset", "smoke", *required, "--out", "elsewhere"])
    assert config.out == Path("elsewhere")  # pyright: ignore[reportAttributeAccessIssue]
    assert parse(name, [*required, "--preset=smoke", "--out", "elsewhere"]) == config


def test_unknown_preset_is_told_with_those_that_there_are():
    with pytest.raises(UsageError, match=r"^--preset tiyn: choose from opt-1\.3b, llama-2-7b, tiny, smoke\.$"):
        parse("table1", ["--preset", "tiyn"])
