"""What the records of a case say of merges: their times in steps of LoRA, and their memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from experiments.records import RunFolder

# As `experiments.accounting` calls them, which a page does not load for it: it loads torch.
STEP, CHAIN, FIRST, PLAIN, MERGE = (
    "a step of LoRA", "chain", "chain, the first knot", "addmm_, no feedback", "PEFT's merge()"
)  # fmt: skip


@dataclass(frozen=True)
class Ties:
    """All ways of a case.

    Attributes:
        rows: records by way.
        clock: which of a lap's seconds count: 0 for wall, 1 for processor time.
    """

    rows: Mapping[str, Mapping[str, Any]]
    clock: int

    @property
    def facts(self) -> Mapping[str, Any]:
        """Base, dtype, targets and rows."""
        return next(iter(self.rows.values()))

    @property
    def label(self) -> str:
        """The case's."""
        return self.facts["case"]

    @property
    def reason(self) -> str | None:
        """Why nothing was measured."""
        return self.facts["reason"]

    @property
    def ways(self) -> list[str]:
        """The ways to merge."""
        return [way for way in self.rows if way != STEP]

    def seconds(self, way: str) -> np.ndarray:
        """A number for each lap."""
        return np.asarray(self.rows[way]["laps"], dtype=float)[:, self.clock]

    def steps(self, way: str) -> np.ndarray:
        """The laps in steps of LoRA: of the same round, or of the median step for first knots, which have no rounds."""
        step = self.seconds(STEP)
        return self.seconds(way) / (np.median(step) if way == FIRST else step)

    def typical(self, way: str) -> float:
        """The median of the laps in steps."""
        return float(np.median(self.steps(way)))

    def transient(self, way: str) -> float:
        """Bytes held for a while."""
        return float(self.rows[way]["transient"])


def collect(folder: RunFolder) -> list[Ties]:
    """The cases, in the order in which they were run."""
    clock = 0 if folder.read_json("machine.json")["device"].startswith("cuda") else 1
    cases: dict[str, dict[str, Any]] = {}
    for row in folder.rows("knots.jsonl"):
        cases.setdefault(row["case"], {})[row["way"]] = row
    return [Ties(rows, clock) for rows in cases.values()]
