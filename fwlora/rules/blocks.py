"""Which sites learn in a link."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass


class BlockRule(ABC):
    """Chooses the sites that are active in a link."""

    @abstractmethod
    def active(self, knot: int, sites: Sequence[str]) -> Sequence[str]:
        """Names of the sites that learn after `knot` knots."""


@dataclass(frozen=True)
class AllSites(BlockRule):
    """Every site in every link.

    Example:
        >>> AllSites().active(knot=3, sites=["q_proj", "v_proj"])
        ['q_proj', 'v_proj']
    """

    def active(self, knot: int, sites: Sequence[str]) -> Sequence[str]:
        """All of them."""
        return sites
