"""README's code runs as written, and its links lead somewhere."""

from __future__ import annotations

import copy
import re
from pathlib import Path

import pytest
import torch
from peft import PeftModel

from fwlora import ChainLoRAOptimizer
from tests.tables import CASES, output
from theory.bounds import FixedStepBound
from theory.frank_wolfe import frank_wolfe
from theory.problems import Completion
from theory.step_sizes import Fixed

README = Path(__file__).parents[2] / "README.md"


def test_first_code_block_runs_as_written(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code = re.search(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert code is not None
    model = CASES["llama"].model()
    base = copy.deepcopy(model)
    ids = torch.randint(64, (6, 2, 8))
    names = {"model": model, "loader": [{"input_ids": x, "labels": x} for x in ids], "epochs": 2, "torch": torch}
    exec(code[1], names)

    assert "adapter written to out" in capsys.readouterr().out
    assert len(names["optimizer"].chain) == 3  # Evenly(3) ties two; folding the live link in ties the last
    batch = CASES["llama"].batch()
    adapted = PeftModel.from_pretrained(copy.deepcopy(base), "out").eval()
    torch.testing.assert_close(output(adapted, batch), output(names["model"], batch), rtol=1e-5, atol=1e-6)
    assert not torch.allclose(output(base, batch), output(names["model"], batch), atol=1e-4)
    assert torch.load("chain.pt", weights_only=True)["fwlora"]["step"] == 12


def test_gap_block_runs_as_written(capsys):
    _, code, *_ = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    model = CASES["llama"].model()
    optimizer = ChainLoRAOptimizer(model)
    ids = torch.randint(64, (16, 2, 8))
    names = {"model": model, "optimizer": optimizer, "stream": iter([{"input_ids": x, "labels": x} for x in ids])}
    exec(code, names)
    out = capsys.readouterr().out
    assert "at 0.95 confidence, from 8 batches and measured on 8" in out
    assert all(name in out for name in [*optimizer.sites, "total"])


def test_theory_block_runs_as_written_and_prints_what_it_says(capsys):
    _, _, code, *_ = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    exec(code, {})
    fixed, centred, printed = capsys.readouterr().out.splitlines()
    assert "holds=True" in fixed
    assert float(centred) == pytest.approx(0.656, abs=5e-4)
    assert "holds=False" in printed
    assert "measured=4.5, guaranteed=4.0" in printed
    certificate = FixedStepBound().check(frank_wolfe(Completion.draw(seed=0), Fixed(), steps=100))
    assert certificate.ratio == pytest.approx(0.524, abs=5e-4)


def test_links_and_figures_of_readme_exist():
    targets = re.findall(r"\]\((?!https?://)([^)]+)\)", README.read_text())
    assert len(targets) >= 5
    titles = re.findall(r"^#+ (.+)$", README.read_text(), re.MULTILINE)
    headings = {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}
    for target in targets:
        assert target[1:] in headings if target.startswith("#") else (README.parent / target).is_file(), target


def test_figures_of_kept_results_exist():
    pages = sorted((README.parent / "docs" / "results").glob("*/README.md"))
    assert {page.parent.name for page in pages} == {
        "adaptation", "certificates", "completion-speed", "convergence", "demo", "drift", "flops", "gap-tracking",
        "knot-cost", "knot-schedules", "memory", "non-transformer", "resets", "speed", "table1",
    }  # fmt: skip
    for page in pages:
        figures = re.findall(r"\]\((figures/[^)]+)\)", page.read_text())
        assert bool(figures) == (page.parent.name != "flops")  # whose page has tables alone
        assert {page.parent / figure for figure in figures} == set((page.parent / "figures").glob("*"))
