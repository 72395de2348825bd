"""How a retired link is folded into the chain: as it is, or as a step of the Frank-Wolfe method."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from fwlora.errors import ArgumentError
from fwlora.rules.sets import Ball

# The smallest normal number of float32: over a link shorter than this part of the radius, the scale would not fit.
_ZERO = 2.0**-126


class Coefficients(NamedTuple):
    """What a knot does at one site: ``sum <- shrink * sum + scale * link``.

    Attributes:
        shrink: of the sum of the earlier links.
        scale: of the link that is retired.
    """

    shrink: float
    scale: float


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


class MergeRule(ABC):
    """Says what a knot does to the sum of the earlier links and to the new one."""

    @property
    def ball(self) -> Ball | None:
        """The set that each site stays in; None where there is none."""
        return None

    @property
    def needs_gap(self) -> bool:
        """Whether `plan` reads the gap and the distance, which cost a measurement."""
        return False

    def eta(self, retiring: Retiring) -> float | None:
        """The step size; None for a rule that makes no steps towards a vertex."""
        return None

    @abstractmethod
    def plan(self, retiring: Retiring) -> Mapping[str, Coefficients]:
        """The coefficients of every site in ``retiring.norms``."""


@dataclass(frozen=True)
class Add(MergeRule):
    """Algorithm 1 of the paper (arXiv 2401.04151), what users run: ``W <- W + s B A``.

    The forward pass is the same function before and after.

    Example:
        >>> Add().plan(Retiring(knot=2, norms={"q_proj": 0.3}))
        {'q_proj': Coefficients(shrink=1.0, scale=1.0)}
    """

    def plan(self, retiring: Retiring) -> Mapping[str, Coefficients]:
        """Earlier links stay, the new one is added whole."""
        return dict.fromkeys(retiring.norms, Coefficients(1.0, 1.0))


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
class FrankWolfe(MergeRule):
    """Algorithm 2 of the paper: ``W <- W + eta (V - W)``, each site in its own ball around the original weights.

    The trained link tells the direction of the vertex and no more: V is the link stretched or shrunk onto the ball's boundary,
    one eta serves all sites. Earlier links shrink, so the forward pass does jump at a knot. A site whose link is zero tells no
    direction and does not move.

    Args:
        set: `NuclearBall(radius)` or `SupportBall(radius, rank)`.
        step_size: `Fixed`, `OpenLoop`, `Centred` or `ShortStep`; a number is `Fixed`.

    Example:
        >>> from fwlora.rules.sets import NuclearBall
        >>> FrankWolfe(NuclearBall(radius=2.0), 0.25).plan(Retiring(knot=4, norms={"q_proj": 0.5, "v_proj": 0.0}))
        {'q_proj': Coefficients(shrink=0.75, scale=1.0), 'v_proj': Coefficients(shrink=1.0, scale=1.0)}
    """

    set: Ball
    step_size: StepSize

    def __init__(self, set: Ball, step_size: StepSize | float) -> None:
        if not isinstance(set, Ball):
            raise ArgumentError(
                f"`FrankWolfe(set=...)` takes a ball around the original weights, `NuclearBall(radius)` or "
                f"`SupportBall(radius, rank)`, and got {set!r}."
            )
        if not isinstance(step_size, StepSize):
            if isinstance(step_size, bool) or not isinstance(step_size, int | float):
                raise ArgumentError(
                    f"`FrankWolfe(step_size=...)` takes `OpenLoop()`, `Centred(...)`, `ShortStep(beta)` or a number from 0 to "
                    f"1, and got {step_size!r}."
                )
            step_size = Fixed(step_size)
        object.__setattr__(self, "set", set)
        object.__setattr__(self, "step_size", step_size)

    @property
    def ball(self) -> Ball:
        """`set`."""
        return self.set

    @property
    def needs_gap(self) -> bool:
        """Whether the step size does."""
        return self.step_size.needs_gap

    def eta(self, retiring: Retiring) -> float:
        """How far the knot goes; 0 where no site has a link to follow.

        Args:
            retiring: the link, and where the run stands.

        Returns:
            A number from 0 to 1.

        Raises:
            ArgumentError: the step size says anything else.
        """
        if not any(map(self._moves, retiring.norms.values())):
            return 0.0
        # The radius of a product of balls: R^2 = sum R_l^2.
        eta = self.step_size.eta(retiring, self.set.radius * math.sqrt(len(retiring.norms)))
        if not 0 <= eta <= 1:
            raise ArgumentError(f"A step size lies between 0 and 1, and `{self.step_size!r}` gave {eta!r}: nothing was merged.")
        return eta

    def plan(self, retiring: Retiring) -> Mapping[str, Coefficients]:
        """Earlier links by ``1 - eta``, the new one by ``eta radius/norm``, so that the ball holds their sum."""
        eta = self.eta(retiring)
        return {
            site: Coefficients(1 - eta, eta * self.set.radius / norm) if self._moves(norm) else Coefficients(1.0, 1.0)
            for site, norm in retiring.norms.items()
        }

    def _moves(self, norm: float) -> bool:
        return norm > _ZERO * self.set.radius


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
