"""What the laps of a case say: ratios within rounds, and what is typical of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from experiments.records import RunFolder

# As `experiments.accounting` calls them, which a page does not load for it: it loads torch.
FLOOR, AGAIN, LORA = "frozen floor", "frozen floor, again", "LoRA"


@dataclass(frozen=True)
class Ratios:
    """A variant's step over another's, a number for each round in which neither tied a knot.

    Attributes:
        values: the ratios.
        parts: which part of the model the variant trained in each; one number where it is always the same.
        blocks: how many parts there are.
    """

    values: np.ndarray
    parts: np.ndarray
    blocks: int = 1

    @property
    def typical(self) -> float | None:
        """The median; of parts that are trained by turns the mean of their medians, None if one has no round here."""
        seen = np.unique(self.parts)
        if len(seen) < self.blocks or not len(seen):
            return None
        return float(np.mean([np.median(self.values[self.parts == part]) for part in seen]))

    @property
    def quartiles(self) -> tuple[float, float] | None:
        """Half of the rounds lie between; None of parts that are trained by turns, whose steps are not alike."""
        if self.blocks > 1 or not len(self.values):
            return None
        low, high = np.quantile(self.values, (0.25, 0.75))
        return float(low), float(high)


@dataclass(frozen=True)
class Race:
    """All variants of a case.

    Attributes:
        rows: records by label, in the order in which they were made.
        clock: which of a lap's seconds count: 0 for wall, 1 for processor time.
    """

    rows: Mapping[str, Mapping[str, Any]]
    clock: int

    @property
    def label(self) -> str:
        """The case's."""
        return next(iter(self.rows.values()))["case"]

    @property
    def facts(self) -> Mapping[str, Any]:
        """Base, dtype, targets and rows."""
        return next(iter(self.rows.values()))

    @property
    def names(self) -> list[str]:
        """The variants, the floor's second lap apart."""
        return [name for name in self.rows if name != AGAIN]

    def ran(self, name: str) -> bool:
        """Whether there are laps of it; of the floor, of both."""
        return self.reason(name) is None and name in self.rows

    def reason(self, name: str) -> str | None:
        """Why there are no laps of it."""
        said = [self.rows[one]["reason"] for one in ((FLOOR, AGAIN) if name == FLOOR else (name,)) if one in self.rows]
        return next((reason for reason in said if reason is not None), None)

    def seconds(self, name: str) -> np.ndarray:
        """Of each round; the floor's are the mean of its two."""
        laps = np.asarray(self.rows[name]["laps"], dtype=float)[:, self.clock]
        return (laps + np.asarray(self.rows[AGAIN]["laps"], dtype=float)[:, self.clock]) / 2 if name == FLOOR else laps

    def ordinary(self, name: str) -> np.ndarray:
        """Which rounds tied no knot."""
        tied = np.zeros(len(self.rows[name]["laps"]), dtype=bool)
        tied[self.rows[name]["knots"]] = True
        return ~tied

    def step(self, name: str) -> float:
        """The median seconds of a step without a knot."""
        return float(np.median(self.seconds(name)[self.ordinary(name)]))

    def ratios(self, name: str, to: str) -> Ratios | None:
        """A variant's step over another's in the same round; None where one of them did not run."""
        if not (self.ran(name) and self.ran(to)):
            return None
        rounds = self.ordinary(name) & self.ordinary(to)
        parts = np.asarray(self.rows[name]["parts"])[rounds]
        return Ratios((self.seconds(name) / self.seconds(to))[rounds], parts, self.rows[name]["blocks"])

    def typical(self, name: str, to: str) -> float | None:
        """What is typical of `ratios`."""
        found = self.ratios(name, to)
        return None if found is None else found.typical

    def knot(self, name: str) -> float | None:
        """What a knot takes beside its step, in steps of LoRA; the median."""
        ordinary = self.ordinary(name)
        if ordinary.all() or not self.ran(LORA):
            return None
        return (float(np.median(self.seconds(name)[~ordinary])) - self.step(name)) / self.step(LORA)

    @property
    def drift(self) -> Ratios | None:
        """The floor's second lap of a round over its first: 1 where the machine is steady."""
        if not self.ran(FLOOR):
            return None
        first, second = (np.asarray(self.rows[name]["laps"], dtype=float)[:, self.clock] for name in (FLOOR, AGAIN))
        return Ratios(second / first, np.zeros(len(first)))


def collect(folder: RunFolder) -> list[Race]:
    """The cases, in the order in which they were run."""
    clock = 0 if folder.read_json("machine.json")["device"].startswith("cuda") else 1
    cases: dict[str, dict[str, Mapping[str, Any]]] = {}
    for row in folder.rows("laps.jsonl"):
        cases.setdefault(row["case"], {})[row["method"]] = row
    return [Race(rows, clock) for rows in cases.values()]


def accuracies(folder: RunFolder) -> Sequence[Mapping[str, Any]]:
    """The gradients' errors, a row a case."""
    return folder.rows("gradients.jsonl")
