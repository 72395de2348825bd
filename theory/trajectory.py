"""What a run leaves behind: one record per iteration, and the constants under which it ran."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from theory.errors import ArgumentError, at_least_zero
from theory.points import Array


@dataclass(frozen=True)
class Constants:
    """The numbers that the theorems speak of.

    Attributes:
        beta: upper smoothness, ``L(Y) <= L(X) + <grad L(X), Y - X> + beta/2 |Y - X|^2`` on the set (0 for a concave loss).
        diameter: D of the set.
        radius: R, the circumradius.
        initial_gap: M, at least ``L(W_1) - min L``.
        oscillation: at least ``L(W) - min L`` for every W of the set.
        start_distance: ``|W_1 - c|`` from the circumcentre.
        lowest: min L where it is known, else nan.
    """

    beta: float
    diameter: float
    radius: float
    initial_gap: float
    oscillation: float
    start_distance: float
    lowest: float = float("nan")

    def __post_init__(self) -> None:
        for name in ("beta", "diameter", "radius", "initial_gap", "oscillation", "start_distance"):
            at_least_zero(f"Constants({name}=...)", getattr(self, name))

    @property
    def curvature(self) -> float:
        """``C = beta D^2``, an upper bound of the curvature constant of the Frank-Wolfe literature."""
        return self.beta * self.diameter**2


@dataclass(frozen=True)
class Drift:
    """How the loss moved between two iterations, ``L_{t+1} - L_t``.

    Attributes:
        up: ``sup_K (L_{t+1} - L_t)^+``.
        down: ``sup_K (L_t - L_{t+1})^+``.
        here: ``(L_{t+1} - L_t)(W_{t+1})``, where the run stood.
    """

    up: float = 0.0
    down: float = 0.0
    here: float = 0.0


@dataclass(frozen=True)
class Iteration:
    """One iteration.

    Attributes:
        t: its number, from 1.
        loss: ``L_t(W_t)``, before the step.
        gap: ``g_t = max_K <G_t, W_t - V>``; nan for a chain, which has no set.
        eps: how much the vertex played falls short, ``<V_t, G_t> - min_K <V, G_t>``; for a chain, Theorem F's shortfall.
        eta: the step size.
        distance: ``|V_t - W_t|``; for a chain, the length of the link.
        seconds: wall time of the iteration.
        lmo_calls: exact or inexact minimisations that it asked for.
        rank: of ``W_t``: fewest atoms that can make it up.
        gradient_norm: ``|G_t|_{F,r}`` of a chain of rank r; else nan.
        drift: how the loss moved after the step.
    """

    t: int
    loss: float
    gap: float
    eps: float
    eta: float
    distance: float
    seconds: float
    lmo_calls: int
    rank: int
    gradient_norm: float = float("nan")
    drift: Drift = field(default_factory=Drift)


@dataclass
class Trajectory:
    """A run: its iterations, its end, and what it ran under.

    Attributes:
        method: the algorithm's name.
        problem: the testbed.
        step_size: the rule; for a chain, the link solver.
        constants: the problem's, from this start.
        iterations: one record each.
        final: ``W_{T+1}``.
        final_loss: ``L_T(W_{T+1})``.
        corrected: whether a correction lowered the loss further after some steps.
        start_rank: rank of ``W_1``.
    """

    method: str
    problem: Any
    step_size: Any
    constants: Constants
    iterations: list[Iteration] = field(default_factory=list)
    final: Any = None
    final_loss: float = float("nan")
    corrected: bool = False
    start_rank: int = 0

    def __len__(self) -> int:
        return len(self.iterations)

    def __iter__(self) -> Iterator[Iteration]:
        return iter(self.iterations)

    def column(self, name: str) -> Array:
        """One quantity over the iterations; ``drift.up`` and its like reach inside.

        Args:
            name: a field of `Iteration`.

        Returns:
            An array of T numbers.
        """
        head, _, tail = name.partition(".")
        return np.array([getattr(getattr(i, head), tail) if tail else getattr(i, head) for i in self.iterations], dtype=float)

    def losses_after(self) -> Array:
        """``L_t(W_{t+1})`` for t = 1..T: after each step, the loss had moved by `drift.here` before it was recorded."""
        following = np.append(self.column("loss")[1:], self.final_loss)
        return following - np.append(self.column("drift.here")[:-1], 0.0)

    def running_mean(self, name: str) -> Array:
        """The mean of the first t entries of a column, for every t."""
        return self.column(name).cumsum() / np.arange(1, len(self) + 1)

    def altered(self, t: int, **changes: Any) -> Trajectory:
        """A copy whose iteration t is forged: what a checker has to find.

        Args:
            t: the iteration, from 1.
            **changes: fields of `Iteration`.

        Returns:
            The copy.

        Raises:
            ArgumentError: there is no such iteration.
        """
        iterations = list(self.iterations)
        if not 1 <= t <= len(iterations):
            raise ArgumentError(f"`altered(t=...)` must be an iteration of the run, from 1 to {len(iterations)}, and is {t!r}.")
        iterations[t - 1] = replace(iterations[t - 1], **changes)
        return replace(self, iterations=iterations)

    def rows(self) -> list[dict[str, Any]]:
        """The iterations as plain data."""
        return [asdict(iteration) for iteration in self.iterations]
