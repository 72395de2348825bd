"""How far a Frank-Wolfe step of a chain goes towards its vertex."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from fwlora.errors import ArgumentError


@dataclass(frozen=True)
class Retiring:
    """What a merge rule may know of the link that a knot retires.

    Attributes:
        knot: knots tied before.
        norms: of the link at each site, in the rule's ball; Frobenius where the rule has none.
        gap: ``<G, W - V>`` over all sites, V the link's own vertex; None unless the rule asks for it.
        distance: ``|V - W|_F`` over all sites; None unless the rule asks for it.
    """

    knot: int
    norms: Mapping[str, float]
    gap: float | None = None
    distance: float | None = None


class StepSize(ABC):
    """A rule for eta in [0, 1], how far a Frank-Wolfe step goes towards its vertex."""

    needs_gap: ClassVar[bool] = False
    """Whether eta depends on the gap and the distance."""

    @abstractmethod
    def eta(self, retiring: Retiring, radius: float) -> float:
        """The step size.

        Args:
            retiring: the link, and where the run stands.
            radius: Frobenius circumradius of the product of the sites' sets.
        """


@dataclass(frozen=True)
class Fixed(StepSize):
    """The same eta at every knot.

    Args:
        value: eta, from 0 to 1.

    Example:
        >>> Fixed(0.2).eta(Retiring(knot=7, norms={}), radius=1.0)
        0.2
    """

    value: float

    def __post_init__(self) -> None:
        value = self.value
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
            raise ArgumentError(f"`Fixed(value=...)` takes a number from 0 to 1, and got {value!r}.")

    def eta(self, retiring: Retiring, radius: float) -> float:
        """`value`."""
        return self.value


@dataclass(frozen=True)
class OpenLoop(StepSize):
    """``eta = 2/(knot + 2)``, which needs no constant (Jaggi 2013); its first step goes all the way to the vertex.

    Example:
        >>> [OpenLoop().eta(Retiring(knot=knot, norms={}), radius=1.0) for knot in range(3)]
        [1.0, 0.6666666666666666, 0.5]
    """

    def eta(self, retiring: Retiring, radius: float) -> float:
        """1, 2/3, 1/2, 2/5, ..."""
        return 2 / (retiring.knot + 2)


@dataclass(frozen=True)
class Centred(StepSize):
    """``eta = 1/(1 + R sqrt(beta T/(2 M)))``, the best fixed step from the balls' centre, where a fresh chain is.

    It minimises the bound ``mean gap <= M/(eta T) + beta R^2 eta/(2 (1 - eta)) + mean eps`` of the circumradius theorem, whose
    least value is ``R sqrt(2 M beta/T) + M/T + mean eps``.

    Args:
        beta: smoothness of the loss on the set, in Frobenius norm.
        initial_gap: M, at least ``L(W_0) - min L``.
        links: T, the knots of the whole run that retire a link.

    Example:
        >>> Centred(beta=2.0, initial_gap=1.0, links=9).eta(Retiring(knot=0, norms={}), radius=1.0)
        0.25
    """

    beta: float
    initial_gap: float
    links: int

    def __post_init__(self) -> None:
        _positive("Centred(beta=...)", self.beta)
        _positive("Centred(initial_gap=...)", self.initial_gap)
        if isinstance(self.links, bool) or not isinstance(self.links, int) or self.links < 1:
            raise ArgumentError(f"`Centred(links=...)` takes a whole number of links, at least 1, and got {self.links!r}.")

    def eta(self, retiring: Retiring, radius: float) -> float:
        """The same at every knot."""
        return 1 / (1 + radius * math.sqrt(self.beta * self.links / (2 * self.initial_gap)))


@dataclass(frozen=True)
class ShortStep(StepSize):
    """``eta = clip(gap/(beta |V - W|^2), 0, 1)``, the minimiser of ``-eta gap + eta^2 beta |V - W|^2/2``: a true descent step.

    The gap is measured at every knot, in the direction of the link's own vertex; a link that does not descend is dropped.

    Args:
        beta: smoothness of the loss on the set, in Frobenius norm. Too large a number makes steps short, never wrong.

    Example:
        >>> ShortStep(beta=2.0).eta(Retiring(knot=0, norms={}, gap=4.0, distance=2.0), radius=1.0)
        0.5
    """

    beta: float
    needs_gap: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _positive("ShortStep(beta=...)", self.beta)

    def eta(self, retiring: Retiring, radius: float) -> float:
        """0 where the gap is negative, 1 where the vertex lies near."""
        gap, distance = retiring.gap, retiring.distance
        if gap is None or distance is None:
            raise ArgumentError(
                f"`ShortStep(beta={self.beta!r})` needs the gap at every knot, and it was not measured: call "
                "`optimizer.measure_at_knots(batches, loss_fn)` before the first knot, or take `OpenLoop()`."
            )
        if gap <= 0 or distance == 0:
            return 0.0
        bend = self.beta * distance**2
        return 1.0 if bend <= gap else gap / bend


def _positive(argument: str, value: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ArgumentError(f"`{argument}` takes a finite number above 0, and got {value!r}.")
