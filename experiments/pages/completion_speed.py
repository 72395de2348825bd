"""The report on completion at scale: seconds, memory and loss of each contender, from records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from experiments.completion_contenders import LANCZOS
from experiments.plots import COLOURS, canvas, logarithmic, png
from experiments.records import RunFolder
from experiments.report import Page, Table, describe


@dataclass(frozen=True)
class Result:
    """One contender's repetitions.

    Attributes:
        rows: their records.
    """

    rows: Sequence[Mapping[str, Any]]

    @property
    def reason(self) -> str | None:
        """Why there are no measurements."""
        return self.rows[0]["reason"]

    @property
    def first(self) -> float:
        """Seconds of the first iteration, with what precedes it; the median of the repetitions."""
        return float(np.median([row["laps"][0][0] for row in self.rows]))

    @property
    def seconds(self) -> float:
        """Wall seconds of an iteration after the first: the mean over a run, as corrections come at times; median of runs."""
        return self._mean(0)

    @property
    def processor(self) -> float:
        """The same in processor time."""
        return self._mean(1)

    @property
    def total(self) -> float:
        """Wall seconds of a run; the median of the repetitions."""
        return float(np.median([sum(wall for wall, _ in row["laps"]) for row in self.rows]))

    @property
    def above(self) -> float | None:
        """The largest peak of memory above the imports, in MB."""
        peaks = [row["above"] for row in self.rows if row["above"] is not None]
        return max(peaks, default=None)

    @property
    def iterations(self) -> int:
        """Of one run."""
        return len(self.rows[0]["laps"])

    def last(self, name: str) -> float:
        """A quantity of the last iteration, per observed entry: its gap, or the loss after it."""
        return self.rows[0][name][-1] / self.rows[0]["entries"]

    def curve(self) -> tuple[np.ndarray, np.ndarray]:
        """Seconds and loss per entry after each iteration of the first repetition."""
        row = self.rows[0]
        return np.cumsum([wall for wall, _ in row["laps"]]), np.asarray(row["losses"]) / row["entries"]

    def _mean(self, clock: int) -> float:
        return float(np.median([np.mean([lap[clock] for lap in row["laps"][1:]]) for row in self.rows]))


def collect(rows: Sequence[Mapping[str, Any]]) -> dict[str, Result]:
    """Sorts records by contender, in the order of the runs."""
    return {
        name: Result([row for row in rows if row["contender"] == name])
        for name in dict.fromkeys(row["contender"] for row in rows)
    }


def table(results: Mapping[str, Result]) -> Table:
    """All contenders; one that could not run has its reason in a cell."""
    headings = [
        "contender", "iterations", "first [s]", "each further [s]", "its CPU time [s]", f"of {LANCZOS}", "whole run [s]",
        "peak above imports [MB]", "loss/entry", "gap/entry",
    ]  # fmt: skip
    rows = []
    for name, result in results.items():
        if result.reason is not None:
            rows.append([name, result.reason, *["-"] * (len(headings) - 2)])
            continue
        ratio = result.seconds / results[LANCZOS].seconds
        rows.append([
            name, str(result.iterations), f"{result.first:.3f}", f"{result.seconds:.4f}", f"{result.processor:.4f}",
            f"{ratio:.1f}x", f"{result.total:.1f}",
            "-" if result.above is None else f"{result.above:.0f}", f"{result.last('losses'):.4f}",
            f"{result.last('gaps'):.4f}",
        ])  # fmt: skip
    return Table(headings, rows)


def findings(results: Mapping[str, Result]) -> list[str]:
    """What the numbers say of each contender against `Lanczos`."""
    ours = results[LANCZOS]
    memory = "" if ours.above is None else f" and {ours.above:.0f} MB above the imports, the instance's making included"
    sentences = [f"{LANCZOS}: {ours.iterations} iterations in {ours.total:.1f} s{memory}."]
    for name, result in results.items():
        if result.reason is not None:
            sentences.append(f"{name}: not measured; {result.reason}.")
        elif name != LANCZOS:
            ratio = result.seconds / ours.seconds
            sentences.append(f"{name}: {ratio:.1f} times the seconds of {LANCZOS} for an iteration; {_reached(result, ours)}.")
    return sentences


def build(folder: RunFolder) -> str:
    """Publishes the page from the folder's records.

    Args:
        folder: where the study wrote them.

    Returns:
        The page.
    """
    results, config = collect(folder.rows("runs.jsonl")), folder.read_json("config.json")
    size = f"{config['rows']:,} x {config['columns']:,}, {config['entries']:,} observed entries"
    page = Page(
        "How fast does Frank-Wolfe complete a large matrix?", f"{size}, skewed by rows and columns; short steps on one thread."
    )
    page.findings(findings(results))
    page.table(table(results))
    page.figure(
        "loss-against-seconds",
        loss_against_seconds(results),
        "Half the mean squared residual against wall time, first repetition.",
    )
    page.heading("How to read this")
    page.paragraph(
        "All contenders start from 0 in the same nuclear ball. The first three run the same loop, with the point in factors "
        "and on the observed entries; copt keeps dense points and gradients. Each run has a process of its own; contenders "
        "take turns; times are means over a run after its first iteration, medians over repetitions. "
        f"The gap of {LANCZOS} is an upper bound, its vertex's gap plus the eps that it reports; the others' trust ARPACK."
    )
    page.code("python -m experiments completion-speed")
    return page.publish(folder, describe(folder.read_json("environment.json")))


def loss_against_seconds(results: Mapping[str, Result]) -> bytes:
    """Loss per entry against wall seconds, both logarithmic, one line a contender.

    Args:
        results: the contenders.

    Returns:
        A PNG.
    """
    figure, axes = canvas(7.2, 3.8)
    for colour, (name, result) in zip(COLOURS, results.items(), strict=False):
        if result.reason is None:
            axes.plot(*result.curve(), ".-", color=colour, label=name, linewidth=1.4, markersize=4)
    axes.set_xscale("log")
    logarithmic(axes)
    axes.set(xlabel="seconds", ylabel="loss per observed entry")
    axes.legend()
    return png(figure)


def _reached(result: Result, ours: Result) -> str:
    """When `ours` had about the loss with which another contender ended."""
    (seconds, losses), end = ours.curve(), result.last("losses")
    # Two runs with vertices that differ by rounding end with losses that do.
    below = np.flatnonzero(losses <= 1.001 * end)
    there = f"came that far in {seconds[below[0]]:.1f} s" if len(below) else f"ended at {losses[-1]:.4f}"
    return f"its loss per entry was {end:.4f} after {result.total:.1f} s, and {LANCZOS} {there}"
