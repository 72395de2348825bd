"""What a measurement of the gap says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from fwlora.confidence import Interval


@dataclass(frozen=True)
class SiteGap:
    """What was measured at a site, or in total over the product of the sites' sets.

    Attributes:
        gap: ``max_V <G, W - V>``; in total the sum.
        gradient_norm: ``|G|_F`` of the full gradient, without the minibatches' noise; in total the root of the sum of squares.
        truncated_norm: ``|G|_{F,r}``, r the rank of the set's atoms; in total likewise.
        eps: shortfall of the live link's vertex ``V = c + tau s B A/|s B A|``, ``<G, V> - min <G, .>``. A link that is zero
            does not move, V = W, and falls short by the whole gap.
        alignment: ``-<G, s B A>/(|s B A| |G|*)``, at most 1, in total the sum above over the sum below; None where the link is
            zero or the gradient is lost in the noise.
    """

    gap: Interval
    gradient_norm: Interval
    truncated_norm: Interval
    eps: Interval
    alignment: Interval | None

    def document(self) -> dict[str, list[float] | None]:
        """Each interval as a list."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: None if value is None else list(value) for name, value in values.items()}


@dataclass(frozen=True)
class GapReport:
    """The gap at every site and in total; `str()` is a table.

    Attributes:
        sites: by name.
        total: over the product set.
        confidence: with which each interval holds what it is about, one at a time.
        batches: how many found the vertex and how many measured it, over all ranks.
    """

    sites: Mapping[str, SiteGap]
    total: SiteGap
    confidence: float
    batches: tuple[int, int]

    @property
    def ghat(self) -> float:
        """``<G, W - V>`` of the live link's own vertex, which a short step needs: ``gap - eps``, from the same batches."""
        return self.total.gap.point - self.total.eps.point

    def document(self) -> dict[str, Any]:
        """Plain containers, for the ledger."""
        return {
            "confidence": self.confidence,
            "batches": list(self.batches),
            "total": self.total.document(),
            "sites": {name: site.document() for name, site in self.sites.items()},
        }

    def __str__(self) -> str:
        rows = {**self.sites, "total": self.total}
        width = max(map(len, rows))
        lines = [
            f"{name:<{width}}  {row.gap!s:>26}  {row.eps!s:>26}  "
            f"{'-' if row.alignment is None else format(row.alignment.point, '.3f'):>9}  {row.gradient_norm.point:>9.3g}"
            for name, row in rows.items()
        ]
        head = f"{'site':<{width}}  {'gap':>26}  {'eps of the link':>26}  {'alignment':>9}  {'|G|_F':>9}"
        found, measured = self.batches
        title = f"point [lower, upper] at {self.confidence:.4g} confidence, from {found} batches and measured on {measured}"
        return "\n".join([title, head, *lines])
