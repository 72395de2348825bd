"""How a retired link is folded into the chain: as it is, or as a step of the Frank-Wolfe method."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from fwlora.errors import ArgumentError
from fwlora.rules.sets import Ball
from fwlora.rules.step_sizes import Fixed, Retiring, StepSize

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
