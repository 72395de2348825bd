"""Figures that were set before they were measured, and what became of them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from experiments.report import Table

HEADINGS = ("quantity", "case", "target", "measured", "verdict")


@dataclass(frozen=True)
class Target:
    """A bound on one measured number.

    Attributes:
        quantity: what is measured, with its unit where it is no ratio.
        case: where.
        limit: what the number is to be at most.
        at_least: `limit` and `stretch` bound it from below instead.
        stretch: what would be better still.

    Example:
        >>> Target("step / LoRA's", "bf16", 0.7, stretch=0.6).verdict(0.65)
        'met'
    """

    quantity: str
    case: str
    limit: float
    at_least: bool = False
    stretch: float | None = None

    def verdict(self, value: float | None) -> str:
        """What a measured number makes of it.

        Args:
            value: unrounded; None or NaN where nothing was measured.

        Returns:
            "met", "stretch met", "missed" or "not measured".
        """
        if value is None or math.isnan(value):
            return "not measured"
        if self.stretch is not None and self._holds(value, self.stretch):
            return "stretch met"
        return "met" if self._holds(value, self.limit) else "missed"

    @property
    def bound(self) -> str:
        """The bound in signs."""
        sign = ">=" if self.at_least else "<="
        return f"{sign} {self.limit:g}" + ("" if self.stretch is None else f" (stretch {self.stretch:g})")

    def _holds(self, value: float, bound: float) -> bool:
        return value >= bound if self.at_least else value <= bound


def table(judged: Iterable[tuple[Target, float | None]]) -> Table:
    """Targets with what was measured, a row each.

    Args:
        judged: each with its number, None where there is none.

    Returns:
        The table.
    """
    return Table(
        HEADINGS,
        [
            [target.quantity, target.case, target.bound, "-" if value is None else f"{value:.4g}", target.verdict(value)]
            for target, value in judged
        ],
    )


def findings(judged: Iterable[tuple[Target, float | None]]) -> list[str]:
    """How many targets are met, and which are not.

    Args:
        judged: each with its number, None where there is none.

    Returns:
        Sentences; none without targets.
    """
    judged = list(judged)
    measured = [(target, value) for target, value in judged if target.verdict(value) != "not measured"]
    if not judged:
        return []
    missed = [(target, value) for target, value in measured if target.verdict(value) == "missed"]
    said = [f"targets: {len(measured) - len(missed)} of the {len(measured)} that were measured are met."]
    return said + [f"missed: {t.quantity}, {t.case}: {value:.4g}, where {t.bound} was the target." for t, value in missed]
