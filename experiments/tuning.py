"""Learning rates chosen on validation data: a grid for each method, extended where the best rate lies at its edge."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

Key = TypeVar("Key")

STEP = 2.0  # between neighbours of a grid


@dataclass(frozen=True)
class Choice:
    """The rate that was chosen, and what it was chosen from.

    Attributes:
        scores: of every rate tried, the largest being the best; nan where training came to nothing.
    """

    scores: Mapping[float, float]

    @property
    def rate(self) -> float:
        """The rate with the best score, the middle one of equals: accuracies on few images tie."""
        best = max(map(_rank, self.scores.values()))
        equals = sorted(rate for rate, score in self.scores.items() if _rank(score) == best)
        return equals[len(equals) // 2]

    @property
    def at_edge(self) -> bool:
        """Whether a better rate may lie outside the rates tried."""
        return self.beyond() is not None

    def beyond(self) -> float | None:
        """The rate next to the best one if that lies at an edge of the rates tried, outwards; None if it is bracketed."""
        lowest, highest = min(self.scores), max(self.scores)
        if self.rate == highest:
            return highest * STEP
        return lowest / STEP if self.rate == lowest else None


def grid(centre: float, rates: int) -> list[float]:
    """That many rates around a centre, each twice the one before.

    Args:
        centre: in the middle; above it, where the number is even.
        rates: how many.

    Returns:
        The rates.

    Example:
        >>> grid(0.5, 5)
        [0.125, 0.25, 0.5, 1.0, 2.0]
    """
    return [centre * STEP ** (index - rates // 2) for index in range(rates)]


def tune(
    grids: Mapping[Key, Sequence[float]],
    score: Callable[[Sequence[tuple[Key, float]]], Sequence[float]],
    *,
    extensions: int,
) -> dict[Key, Choice]:
    """Scores every grid, and extends by one rate at a time those whose best rate lies at an edge.

    Args:
        grids: the rates of each contender.
        score: the score of each (contender, rate), the larger the better; asked for many at once so that it can train them
            side by side.
        extensions: how often a grid may be extended.

    Returns:
        Each contender's choice.
    """
    scores: dict[Key, dict[float, float]] = {key: {} for key in grids}
    wanted = [(key, rate) for key, rates in grids.items() for rate in rates]
    for _ in range(extensions + 1):
        for (key, rate), value in zip(wanted, score(wanted), strict=True):
            scores[key][rate] = value
        outwards = {key: Choice(tried).beyond() for key, tried in scores.items()}
        wanted = [(key, rate) for key, rate in outwards.items() if rate is not None]
        if not wanted:
            break
    return {key: Choice(tried) for key, tried in scores.items()}


def mean_scores(
    groups: Sequence[Sequence[Any]],
    execute: Callable[[Any], Mapping[str, Any]],
    *,
    workers: int,
    on_done: Callable[[Any], object],
) -> list[float]:
    """The mean of each group's runs by their problem's metric, the larger the better.

    Args:
        groups: runs of one method at one rate over seeds.
        execute: gives a run's row.
        workers: processes.
        on_done: called after each run.

    Returns:
        One score a group.
    """
    from experiments.workers import spread

    rows = spread(execute, [run for group in groups for run in group], workers=workers, on_done=on_done)
    return means(rows, [len(group) for group in groups], "value")


def means(rows: Sequence[Mapping[str, Any]], sizes: Sequence[int], name: str) -> list[float]:
    """The mean of each group of rows by their metric, the larger the better.

    Args:
        rows: of all groups, one after the other.
        sizes: rows of each group.
        name: of the measure in a row.

    Returns:
        One score a group.
    """
    remaining, scores = iter(rows), []
    for size in sizes:
        signed = [row[name] if row["metric"].higher_is_better else -row[name] for row in islice(remaining, size)]
        scores.append(sum(signed) / size)
    return scores


def _rank(score: float) -> float:
    return -math.inf if math.isnan(score) else score
