"""Pages stand alone, and their sentences follow the numbers."""

from __future__ import annotations

import re
from dataclasses import asdict

import numpy as np
import pytest

from experiments import plots
from experiments.pages import demo as page
from experiments.records import RunFolder
from experiments.report import Page, Table
from experiments.tasks.metric import ACCURACY

PNG = b"\x89PNG\r\n\x1a\n"


def row(method: str, seed: int, value: float) -> dict:
    return {
        "problem": "digits", "method": method, "seed": seed, "value": value, "metric": asdict(ACCURACY), "steps": 3,
        "trainable": 10, "losses": [3.0, 2.0, 1.0], "knots": [2] if "chain" in method else [], "watched": "second",
        "spectrum": [2.0, 1.0], "export": None, "seconds": 1.0,
    }  # fmt: skip


def rows(gain: float) -> list[dict]:
    lora = [row("LoRA r=1", seed, 80 + seed) for seed in range(4)]
    return lora + [row("chain of 3", seed, 80 + seed + gain * (1 + 0.1 * seed)) for seed in range(4)]


def test_page_refers_to_nothing_outside_itself():
    page_ = Page("A <title>", "lead")
    page_.figure("spectrum", plots.spectra({"a": [[2.0, 1.0]]}, shown=2), "caption")
    document = page_.to_html("foot")
    assert "data:image/png;base64," in document
    assert not re.search(r"(src|href)=\"(?!data:)", document)
    assert not re.search(r"https?://|@import|url\(", document)
    assert "A &lt;title&gt;" in document


def test_readme_has_what_the_page_has_with_its_figures_beside_it(tmp_path):
    page_ = Page("Title", "lead")
    page_.heading("Part")
    page_.findings(["digits: better."])
    page_.table(Table(["method", "|x|"], [["a", "1"]]))
    page_.figure("spectrum", plots.spectra({"a": [[2.0, 1.0]]}, shown=2), "caption")
    page_.publish(RunFolder(tmp_path), "foot")
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    for part in (
        "# Title",
        "## Part",
        "- digits: better.",
        "| method | \\|x\\| |",
        "![caption](figures/spectrum.png)",
        "*foot*",
    ):
        assert part in text
    assert (tmp_path / "figures" / "spectrum.png").read_bytes().startswith(PNG)
    assert (tmp_path / "report.html").exists()


def test_text_table_is_aligned():
    lines = Table(["method", "value"], [["a", "1"], ["longer", "12345"]]).to_text().splitlines()
    assert {len(line) for line in lines} == {len(lines[0])}


@pytest.mark.parametrize(("gain", "verdict", "wins"), [(5.0, "is better than", True), (-5.0, "is worse than", False)])
def test_findings_follow_the_numbers(gain: float, verdict: str, wins: bool):
    won, others = page.findings(page.collect(rows(gain)))
    assert [verdict in sentence for sentence in (won if wins else others)] == [True]
    assert (others if wins else won) == []


def test_a_difference_within_the_noise_is_not_called_a_win():
    noisy = rows(0.0)
    for index, record in enumerate(noisy[4:]):
        record["value"] += (-1) ** index
    won, others = page.findings(page.collect(noisy))
    assert won == []
    assert "no clear difference" in others[0]


def test_methods_are_paired_by_seed_whatever_order_the_runs_came_in():
    straight, shuffled = rows(5.0), rows(5.0)[::-1]
    results = page.collect(shuffled)["digits"]
    assert results.values("chain of 3") == page.collect(straight)["digits"].values("chain of 3")


def test_figures_are_pngs_for_one_seed_and_for_many():
    for results in (page.collect(rows(5.0)), page.collect([record for record in rows(5.0) if record["seed"] == 0])):
        assert all(png.startswith(PNG) for _, png, _ in page.figures("digits", results["digits"]))


def test_smoothing_invents_nothing():
    values = np.array([3.0] * 40 + [1.0] * 60)
    smooth = plots._smooth(values, share=0.1)
    assert smooth[0] == 3.0
    assert smooth[-1] == 1.0
    assert smooth.min() >= 1.0
    assert smooth.max() <= 3.0
