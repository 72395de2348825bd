"""When to tie a knot."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from fwlora.errors import ArgumentError
from fwlora.rules.progress import Progress


class KnotSchedule(ABC):
    """Says whether a knot is due now.

    A schedule that decides by data names what it reads in `reads` (``"loss"``, ``"descent"``); the optimizer then measures
    just that, averages it over the ranks and keeps its history.
    """

    reads: ClassVar[frozenset[str]] = frozenset()

    @abstractmethod
    def due(self, progress: Progress) -> bool:
        """Whether to tie a knot after the step that `progress` has just counted."""


class CountedKnots(KnotSchedule):
    """A schedule that decides by counting steps alone, and so knows when the live link ends."""

    @abstractmethod
    def next_knot(self, step: int, total_steps: int | None) -> int | None:
        """The first due step after `step`; None when no knot will follow."""

    def due(self, progress: Progress) -> bool:
        """Whether the step just counted is the first due one after its predecessor."""
        return progress.step > 0 and self.next_knot(progress.step - 1, progress.total_steps) == progress.step


@dataclass(frozen=True)
class Every(CountedKnots):
    """A knot after every `steps` optimizer steps.

    Args:
        steps: length of a link, at least 1. Links under about 100 steps were measured not to pay.

    Example:
        >>> [step for step in range(1, 10) if Every(3).due(Progress(step=step))]
        [3, 6, 9]
    """

    steps: int

    def __post_init__(self) -> None:
        _positive("Every(steps=...)", self.steps)

    def next_knot(self, step: int, total_steps: int | None) -> int | None:
        """The next multiple of `steps`."""
        return (step // self.steps + 1) * self.steps


@dataclass(frozen=True)
class Evenly(CountedKnots):
    """`links` links of equal length: a knot after step ``ceil(k T / links)``, ``0 < k < links``, and none at T.

    Args:
        links: number of links, at least 1 (1 is LoRA); a run of fewer steps has fewer.
            The paper's chains have 2 or 3 (arXiv 2401.04151, section 5).
        total_steps: T, the optimizer steps of the whole run; it may be left open and bound later by
            `optimizer.total_steps = T`, as `ChainCallback` does.

    Example:
        >>> [step for step in range(1, 11) if Evenly(3, total_steps=10).due(Progress(step=step))]
        [4, 7]
    """

    links: int = 3
    total_steps: int | None = None

    def __post_init__(self) -> None:
        _positive("Evenly(links=...)", self.links)
        if self.total_steps is not None:
            _positive("Evenly(total_steps=...)", self.total_steps)

    def next_knot(self, step: int, total_steps: int | None) -> int | None:
        """The first of ``ceil(k T / links)`` beyond `step`."""
        T = self.total_steps if self.total_steps is not None else total_steps
        if T is None:
            raise ArgumentError(
                f"`knots=Evenly(links={self.links})` needs the length of the run and was not told it: give "
                f"`Evenly(links={self.links}, total_steps=...)` or set `optimizer.total_steps = ...` before the first step."
            )
        ends = (-(-k * T // self.links) for k in range(1, self.links))
        return next((end for end in ends if step < end < T), None)


@dataclass(frozen=True)
class At(CountedKnots):
    """A knot after each of the given steps.

    Args:
        steps: positive step numbers, in any order.

    Example:
        >>> At([300, 100]).next_knot(100, None)
        300
    """

    steps: tuple[int, ...]

    def __init__(self, steps: Iterable[int]) -> None:
        if not isinstance(steps, Iterable):
            raise ArgumentError(f"`At(steps={steps!r})`: give a list of step numbers.")
        chosen = tuple(sorted(set(steps)))
        for step in chosen:
            _positive("At(steps=[...])", step)
        object.__setattr__(self, "steps", chosen)

    def next_knot(self, step: int, total_steps: int | None) -> int | None:
        """The first given step beyond `step`."""
        return next((due for due in self.steps if due > step), None)


@dataclass(frozen=True)
class Never(CountedKnots):
    """No knot: the chain of one link, which is LoRA.

    Example:
        >>> Never().due(Progress(step=500))
        False
    """

    def next_knot(self, step: int, total_steps: int | None) -> int | None:
        """None, always."""
        return None


def _positive(argument: str, value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ArgumentError(f"`{argument}` takes whole numbers of optimizer steps or links, at least 1, and got {value!r}.")
