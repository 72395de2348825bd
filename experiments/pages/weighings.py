"""What the records of a case say of memory: one method's bytes over another's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from experiments.records import RunFolder

# As `experiments.accounting` calls them, which a page does not load for it: it loads torch.
FLOOR, LORA, CHAIN, B_ONLY, BY_BLOCK = "frozen floor", "LoRA", "chain", "chain, B only", "chain, one block a link"
# Kinds of bytes that are there whatever the batch, by their headings.
STATE = {"trained": "trained parameters", "gradients": "gradients", "optimizer": "optimizer"}


@dataclass(frozen=True)
class Weighing:
    """All methods of a case.

    Attributes:
        rows: records by label, in the order in which they were made.
    """

    rows: Mapping[str, Mapping[str, Any]]

    @property
    def label(self) -> str:
        """The case's."""
        return self.facts["case"]

    @property
    def facts(self) -> Mapping[str, Any]:
        """Base, dtype, targets and rows."""
        return next(iter(self.rows.values()))

    @property
    def names(self) -> list[str]:
        """The methods'."""
        return list(self.rows)

    def ran(self, name: str) -> bool:
        """Whether a method was weighed."""
        return name in self.rows and self.rows[name]["reason"] is None

    def ratio(self, name: str, other: str, *kinds: str) -> float | None:
        """A method's bytes over another's.

        Args:
            name: the method.
            other: what it is compared with.
            kinds: fields of a record, which are added up.

        Returns:
            The ratio; None where one of them was not weighed or there is nothing to divide by.
        """
        if not (self.ran(name) and self.ran(other)):
            return None
        values = [[self.rows[method][kind] for kind in kinds] for method in (name, other)]
        if any(value is None for row in values for value in row) or not sum(values[1]):
            return None
        return sum(values[0]) / sum(values[1])


def collect(folder: RunFolder) -> list[Weighing]:
    """The cases, in the order in which they were weighed."""
    cases: dict[str, dict[str, Any]] = {}
    for row in folder.rows("weights.jsonl"):
        cases.setdefault(row["case"], {})[row["method"]] = row
    return [Weighing(rows) for rows in cases.values()]
