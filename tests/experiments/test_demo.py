"""The demo, in small: from training to a page that stands alone."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
import torch

from experiments.records import RunFolder
from experiments.studies import demo
from experiments.tasks import pydoc_text

SIZES = {"seeds": 2, "language_seeds": 2, "epochs": 1, "matrix_steps": 20, "pretraining_steps": 6, "adaptation_steps": 6}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small demo."""
    out = tmp_path_factory.mktemp("demo")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "environ", os.environ.copy())
        demo.run(demo.Config(**SIZES, workers=1, out=out))
    return out


def test_demo_runs_every_method_on_every_seed(finished: Path):
    rows = RunFolder(finished).rows("runs.jsonl")
    runs = {(row["problem"], row["method"], row["seed"]) for row in rows}
    assert len(runs) == len(rows) == 2 * 2 + 2 * 8 + 2 * 2 * 3
    assert {row["problem"] for row in rows} == {"digits", "source", "regression-rank-2", "regression-rank-16"}


def test_exported_adapter_gives_the_trained_logits_on_an_untouched_base(finished: Path):
    (export,) = [row["export"] for row in RunFolder(finished).rows("runs.jsonl") if row["export"]]
    assert export["largest_difference"] <= 2e-6 * export["largest_output"]
    assert export["base_difference"] > 1e3 * export["largest_difference"]
    assert export["knots"] == 2
    assert (finished / "adapter" / "adapter_config.json").exists()


def test_report_stands_alone_and_tells_every_problem(finished: Path):
    document = (finished / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"(src|href)=\"(?!data:)", document)
    for title in ("Rotated digits", "Regression, rank is enough", "English to Python source", "Where it does not"):
        assert title in document
    assert document.count("data:image/png") == len(list((finished / "figures").glob("*.png"))) == 12


def test_demo_asks_no_network_and_leaves_no_machine_path_in_its_records(finished: Path):
    texts = [(finished / name).read_text(encoding="utf-8") for name in ("report.html", "environment.json", "runs.jsonl")]
    assert not any(str(Path.home()) in text or str(finished) in text for text in texts)


@pytest.mark.parametrize("text", ["english", "source"])
def test_held_out_text_is_cut_from_what_is_trained_on(text: str):
    """Training and held-out blocks, put back together, are the whole text: every eighth block is held out."""
    content = pydoc_text._english() if text == "english" else pydoc_text._source()
    train, held_out = pydoc_text._ids(text)
    assert len(train) + len(held_out) == len(content)
    assert len(held_out) / len(content) == pytest.approx(1 / pydoc_text.HELD_OUT, rel=0.1)
    block = pydoc_text.BLOCK
    decoded = "".join(map(chr, held_out[:block].tolist()))
    assert decoded == content[:block].encode("ascii", "replace").decode("ascii")
    assert "".join(map(chr, train[:50].tolist())) == content[block : block + 50].encode("ascii", "replace").decode("ascii")


def test_windows_are_a_function_of_the_step():
    windows = pydoc_text.Windows("english", seed=1, batch_size=3, length=8)
    assert torch.equal(windows.batches(5)[0], windows.batches(5)[0])
    assert not torch.equal(windows.batches(5)[0], windows.batches(6)[0])
    assert windows.batches(5)[0].shape == (3, 9)
