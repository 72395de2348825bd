"""How fast a link learns: a factor on the user's own learning rate."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from fwlora.errors import ArgumentError
from fwlora.rules.progress import Progress


class LinkLR(ABC):
    """A factor in [0, 1] on every group's learning rate, for the one step about to be taken."""

    def __post_init__(self) -> None:
        warmup = getattr(self, "warmup", 0)
        if isinstance(warmup, bool) or not isinstance(warmup, int) or warmup < 0:
            raise ArgumentError(
                f"`{type(self).__name__}(warmup=...)` takes a whole number of steps, at least 0, and got {warmup!r}."
            )

    @abstractmethod
    def factor(self, progress: Progress) -> float:
        """The factor on step ``progress.link_step + 1`` of the live link."""


@dataclass(frozen=True)
class Flat(LinkLR):
    """The user's own schedule, with a linear warm-up after each knot; the first link is left alone.

    Args:
        warmup: steps of the warm-up; 0 for none.

    Example:
        >>> [Flat(warmup=4).factor(Progress(knot=1, link_step=j)) for j in range(5)]
        [0.25, 0.5, 0.75, 1.0, 1.0]
        >>> Flat(warmup=4).factor(Progress(knot=0, link_step=0))
        1.0
    """

    warmup: int = 10

    def factor(self, progress: Progress) -> float:
        """``min(1, (j + 1) / warmup)`` at the link's j-th step, 1 in the first link."""
        return 1.0 if progress.knot == 0 else _warm(progress.link_step, self.warmup)


@dataclass(frozen=True)
class Decay(LinkLR):
    """Warm-up, then a linear decay to zero, afresh in every link, the first included.

    For a loop that has no scheduler of its own. It must know where the link ends, so it takes the schedules that count steps
    and refuses those that decide by data.

    Args:
        warmup: steps of the warm-up, shortened to half the link where the link is that short.

    Example:
        >>> [Decay(warmup=2).factor(Progress(step=j, link_step=j, link_end=6)) for j in range(6)]
        [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]
    """

    warmup: int = 10

    def factor(self, progress: Progress) -> float:
        """``(j + 1) / w`` while ``j < w``, then ``(L - j) / (L - w)`` in a link of L steps; 0 beyond the run's end."""
        if progress.link_end is None:
            raise ArgumentError(
                "`link_lr=Decay(...)` decays over a link and was not told where this one ends: set "
                "`optimizer.total_steps = ...` before the first step, or use `link_lr=Flat()`."
            )
        length = progress.link_end - progress.link_start
        warmup = min(self.warmup, length // 2)
        j = progress.link_step
        if j >= length:
            return 0.0
        return _warm(j, warmup) if j < warmup else (length - j) / (length - warmup)


def _warm(j: int, warmup: int) -> float:
    return min(1.0, (j + 1) / warmup) if warmup else 1.0
