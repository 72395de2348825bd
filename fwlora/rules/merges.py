"""How a retired link is folded into the chain."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass


class MergeRule(ABC):
    """Says what a knot does to the sum of the earlier links and to the new one: ``sum <- shrink * sum + scale * link``."""

    @abstractmethod
    def plan(self, link_norm: float, gap: float | None, knot: int) -> tuple[float, float]:
        """``(shrink, scale)`` for the link that `knot` retires.

        Args:
            link_norm: Frobenius norm of the link over all sites.
            gap: the Frank-Wolfe gap, where the rule needs one.
            knot: knots tied before.
        """


@dataclass(frozen=True)
class Add(MergeRule):
    """Algorithm 1 of the paper (arXiv 2401.04151), what users run: ``W <- W + s B A``.

    The forward pass is the same function before and after.

    Example:
        >>> Add().plan(link_norm=0.3, gap=None, knot=2)
        (1.0, 1.0)
    """

    def plan(self, link_norm: float, gap: float | None, knot: int) -> tuple[float, float]:
        """Earlier links stay, the new one is added whole."""
        return 1.0, 1.0
