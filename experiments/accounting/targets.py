"""Figures that were set before they were measured, and what became of them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from experiments.report import Table

HEADINGS = ("quantity", "case", "target", "measured", "verdict")

ALL, QV = "all-linear", "q_proj+v_proj"
# The shapes that figures for a CPU were set for, at this rank and with as many tokens in a step.
FAMILIES = {"llama-512": "llama", "llama-1024": "llama", "opt-512": "opt", "opt-1024": "opt"}
RANK, TOKENS = 8, 1024
MIB = 2**20


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


Judged = list[tuple[Target, float | None]]


def is_plain(config: Mapping[str, Any]) -> bool:
    """Whether a run is as figures were set for it, on whatever base and batch.

    Args:
        config: the run's.

    Returns:
        Whether its rank is theirs, and it has neither autocast nor checkpointing.
    """
    return config["rank"] == RANK and not (config["autocast"] or config["checkpointing"])


def as_set_for(facts: Mapping[str, Any], config: Mapping[str, Any]) -> bool:
    """Whether a case is one that figures for a CPU were set for; no run has dropout.

    Args:
        facts: its base and rows.
        config: the run's.

    Returns:
        Whether base, rank and tokens are theirs, and there is neither autocast nor checkpointing.
    """
    return facts["base"] in FAMILIES and facts["rows"] * config["length"] == TOKENS and is_plain(config)


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
    """How many targets are met, which are missed, and how many were not measured.

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
    met = f"{len(measured) - len(missed)} of {len(judged)} met, " if measured else ""
    said = [f"targets: {met}{len(missed)} missed, {len(judged) - len(measured)} not measured."]
    return said + [f"missed: {t.quantity}, {t.case}: {value:.4g}, where {t.bound} was the target." for t, value in missed]
