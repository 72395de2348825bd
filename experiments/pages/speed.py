"""The page on speed: steps and knots of each method against LoRA's in the same rounds, from records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from experiments.plots import COLOURS, canvas, png
from experiments.records import RunFolder
from experiments.report import Page, Table, describe

LORA = "LoRA"
HEADINGS = (
    "method", "trained parameters", "LoRA's step [ms]", "step [ms]", "step of LoRA's", "quartiles", "drift", "a knot [steps]",
    "whole run of LoRA's",
)  # fmt: skip


@dataclass(frozen=True)
class Race:
    """A method and LoRA in turns.

    Attributes:
        row: its record.
        clock: which of a lap's seconds count: 0 for wall, 1 for processor time.
    """

    row: Mapping[str, Any]
    clock: int

    @property
    def name(self) -> str:
        """The method's."""
        return self.row["method"]

    @property
    def reason(self) -> str | None:
        """Why nothing was measured."""
        return self.row["reason"]

    @property
    def laps(self) -> np.ndarray:
        """Seconds of LoRA, the method and LoRA again, a row a round."""
        return np.asarray(self.row["rounds"], dtype=float)[:, :, self.clock]

    @property
    def ordinary(self) -> np.ndarray:
        """Which rounds tied no knot."""
        tied = np.zeros(len(self.laps), dtype=bool)
        tied[self.row["knots"]] = True
        return ~tied

    @property
    def lora(self) -> np.ndarray:
        """LoRA's seconds a round, the mean of its two steps."""
        return (self.laps[:, 0] + self.laps[:, 2]) / 2

    @property
    def ratios(self) -> np.ndarray:
        """The method's step over LoRA's, in rounds without a knot."""
        return (self.laps[:, 1] / self.lora)[self.ordinary]

    @property
    def drift(self) -> float:
        """LoRA's second step over its first: the median; 1 where the machine is steady."""
        return float(np.median(self.laps[:, 2] / self.laps[:, 0]))

    @property
    def knot(self) -> float | None:
        """What a knot takes beside its step, in steps of LoRA; the median."""
        if self.ordinary.all():
            return None
        own = float(np.median(self.laps[self.ordinary, 1]))
        return float(np.median(self.laps[~self.ordinary, 1]) - own) / float(np.median(self.lora))

    @property
    def whole(self) -> float:
        """All the method's seconds, knots and all, over LoRA's."""
        return float(self.laps[:, 1].sum() / self.lora.sum())


def collect(folder: RunFolder) -> list[Race]:
    """The races, in the order in which they were run."""
    clock = 0 if folder.read_json("machine.json")["device"].startswith("cuda") else 1
    return [Race(row, clock) for row in folder.rows("races.jsonl")]


def table(races: Sequence[Race]) -> Table:
    """All methods; one that could not run has its reason in a cell."""
    rows = []
    for race in races:
        if race.reason is not None:
            rows.append([race.name, race.reason, *["-"] * (len(HEADINGS) - 2)])
            continue
        low, middle, high = np.quantile(race.ratios, (0.25, 0.5, 0.75))
        rows.append([
            race.name, f"{race.row['parameters']:,}", f"{1e3 * np.median(race.lora):.1f}",
            f"{1e3 * np.median(race.laps[race.ordinary, 1]):.1f}", f"{middle:.3f}", f"{low:.3f} to {high:.3f}",
            f"{race.drift:.3f}", "-" if race.knot is None else f"{race.knot:.2f}", f"{race.whole:.3f}",
        ])  # fmt: skip
    return Table(HEADINGS, rows)


def findings(races: Sequence[Race]) -> list[str]:
    """What the numbers say: how far the machine lets ratios be told apart, and then each method's."""
    said = []
    for race in races:
        if race.reason is not None:
            said.append(f"{race.name}: not measured; {race.reason}.")
            continue
        low, middle, high = np.quantile(race.ratios, (0.25, 0.5, 0.75))
        spread = f"{middle:.2f} of LoRA's, half of the rounds between {low:.2f} and {high:.2f}"
        if race.name == LORA:
            said.append(
                f"LoRA against itself: a step takes {spread}; what differs from LoRA by no more is not told apart here."
            )
            continue
        knots = "" if race.knot is None else f"; a knot takes {race.knot:.2f} steps of LoRA's, and"
        whole = f" the run with its {len(race.row['knots'])} knots {race.whole:.2f} of LoRA's" if knots else ""
        said.append(f"{race.name}: a step takes {spread}{knots}{whole}.")
    return said


def build(folder: RunFolder) -> str:
    """Publishes the page from the folder's records.

    Args:
        folder: where the study wrote them.

    Returns:
        The page.
    """
    races, config, machine = collect(folder), folder.read_json("config.json"), folder.read_json("machine.json")
    page = Page("How fast is a step?", f"{sizes(config)}; {config['steps']} rounds on {machine['name']}.")
    page.findings(findings(races))
    page.table(table(races))
    page.figure("step-ratios", ratios(races), "A step's time over LoRA's in the same round; knots left out. Line: median.")
    page.heading("How to read this")
    clock = "wall time, the device waited for" if races[0].clock == 0 else "processor time on one thread"
    page.paragraph(
        f"Weights and tokens are random; times are {clock}. In each round LoRA takes a step, the method takes one, and LoRA "
        "takes one in a run of its own, so that each step follows one of another model. The ratio is the method's over the "
        "mean of LoRA's two: what slows the machine slows both. Drift is LoRA's second step over its first. A knot's cost is a "
        "step with a knot less the median step without. In the whole run, GaLore's new subspaces and BAdam's new blocks, as "
        "many as a chain has links, are counted too."
    )
    page.code("python -m experiments speed")
    return page.publish(folder, describe(folder.read_json("environment.json")))


def sizes(config: Mapping[str, Any]) -> str:
    """What was run, in words."""
    batch = f"{config['batch_size']} rows of {config['length']} tokens"
    return f"{config['base']} in {config['dtype']}, {batch}, rank {config['rank']}"


def ratios(races: Sequence[Race]) -> bytes:
    """Every round's ratio as a dot, one line a method.

    Args:
        races: those that were run are drawn.

    Returns:
        A PNG.
    """
    shown = [race for race in races if race.reason is None]
    figure, axes = canvas(7.2, 0.32 * len(shown) + 1.1)
    axes.axvline(1.0, color="#9aa1a9", linewidth=1, linestyle="--")
    for place, race in enumerate(shown):
        offsets = 0.12 * (np.arange(len(race.ratios)) % 3 - 1)
        axes.plot(race.ratios, place + offsets, "o", color=COLOURS[0], alpha=0.3, markersize=3.5, markeredgewidth=0)
        axes.plot([np.median(race.ratios)] * 2, [place - 0.3, place + 0.3], color=COLOURS[1], linewidth=2)
    axes.set_yticks(range(len(shown)), [race.name for race in shown])
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.set(xlabel="step time / LoRA's")
    return png(figure)
