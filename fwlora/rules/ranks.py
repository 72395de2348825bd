"""How wide each link is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

from fwlora.errors import ArgumentError


class RankSchedule(ABC):
    """Says the rank of each link; the width of the first is the width that is allocated."""

    @abstractmethod
    def rank(self, knot: int) -> int:
        """Rank of the link that begins after `knot` knots."""


@dataclass(frozen=True)
class Constant(RankSchedule):
    """Every link has the same rank.

    Args:
        width: the rank, at least 1.

    Example:
        >>> Constant(8).rank(knot=5)
        8
    """

    width: int = 8

    def __post_init__(self) -> None:
        _check("Constant(width=...)", self.width)

    def rank(self, knot: int) -> int:
        """`width`."""
        return self.width


@dataclass(frozen=True)
class StepDown(RankSchedule):
    """Ranks that never grow, one a link; the last one repeats (arXiv 2401.04151, section 5.3).

    The narrower link is masked: zero rows of A and zero columns of B in the factors as allocated, which have zero
    gradients and stay zero, so that Parameters, checkpoints and DDP never change. ``alpha / r`` stays that of the first link.

    Args:
        widths: the ranks in order, never increasing.

    Example:
        >>> [StepDown([8, 4, 2]).rank(knot) for knot in range(5)]
        [8, 4, 2, 2, 2]
    """

    widths: tuple[int, ...]

    def __init__(self, widths: Iterable[int]) -> None:
        if not isinstance(widths, Iterable):
            raise ArgumentError(f"`StepDown(widths={widths!r})`: give a list of ranks.")
        chosen = tuple(widths)
        if not chosen:
            raise ArgumentError("`StepDown(widths=[...])` takes at least one rank and got none.")
        for width in chosen:
            _check("StepDown(widths=[...])", width)
        if any(later > earlier for earlier, later in pairwise(chosen)):
            raise ArgumentError(
                f"`StepDown(widths={list(chosen)})` grows; ranks may only fall, for the first link's width is what is "
                "allocated. Sort them in falling order."
            )
        object.__setattr__(self, "widths", chosen)

    def rank(self, knot: int) -> int:
        """The rank at `knot`, the last one from there on."""
        return self.widths[min(knot, len(self.widths) - 1)]


def _check(argument: str, width: int) -> None:
    if isinstance(width, bool) or not isinstance(width, int) or width < 1:
        raise ArgumentError(f"`{argument}` takes ranks, whole numbers of at least 1, and got {width!r}.")
