"""How far to go towards the vertex: ``W <- W + eta (V - W)``. Each rule is the one that a theorem of `bounds` is about."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from math import sqrt
from typing import Protocol

from scipy.optimize import minimize_scalar

from theory.errors import at_least_zero, unit_interval
from theory.trajectory import Constants


class Line(Protocol):
    """The loss between the point and the vertex."""

    @property
    def curvature(self) -> float | None:
        """``d^2/d eta^2 L(W + eta (V - W))`` where it is constant, else None."""
        ...

    def __call__(self, eta: float) -> float:
        """``L(W + eta (V - W))``."""
        ...


@dataclass(frozen=True)
class Step:
    """What a rule may know of the step to be made.

    Attributes:
        t: the iteration, from 1.
        T: iterations of the whole run.
        ghat: ``<G_t, W_t - V_t>``, the gap as this vertex shows it.
        distance: ``|V_t - W_t|``.
        constants: of the problem.
        along: the loss at ``W_t + eta (V_t - W_t)``.
    """

    t: int
    T: int
    ghat: float
    distance: float
    constants: Constants
    along: Line


class StepSize(ABC):
    """A rule for eta in [0, 1]."""

    @abstractmethod
    def eta(self, step: Step) -> float:
        """The step size."""

    needs_horizon: bool = False
    """Whether eta depends on T, so that a shorter run is not the beginning of a longer one."""


def best_fixed(initial_gap: float, curvature: float, T: int) -> float:
    """``eta* = min(1, sqrt(2 M / (C T)))``, which minimises ``M/(eta T) + C eta/2`` over (0, 1].

    Args:
        initial_gap: M; with a drifting loss, M + Delta+ + Delta-.
        curvature: ``C = beta D^2``.
        T: iterations.

    Returns:
        eta*; 0 for M = 0, where the start is a minimiser and no step is to be taken.

    Example:
        >>> best_fixed(2.0, 1.0, 16)
        0.5
    """
    return min(1.0, sqrt(2 * initial_gap / (curvature * T))) if curvature > 0 else 1.0


@dataclass(frozen=True)
class Fixed(StepSize):
    """One eta for all iterations (:prf:ref:`Theorem A <fixed-step>`).

    Args:
        value: eta; None takes `best_fixed` for M and the run's length.
        drift: Delta+ + Delta-, added to M where the loss drifts (:prf:ref:`Theorem E <drift>`).
    """

    value: float | None = None
    drift: float = 0.0
    needs_horizon = True

    def __post_init__(self) -> None:
        if self.value is not None:
            unit_interval("Fixed(value=...)", self.value)
        at_least_zero("Fixed(drift=...)", self.drift)

    def eta(self, step: Step) -> float:
        """The same for every t."""
        if self.value is not None:
            return self.value
        return best_fixed(step.constants.initial_gap + self.drift, step.constants.curvature, step.T)


@dataclass(frozen=True)
class Centred(StepSize):
    """The fixed step of :prf:ref:`Theorem C <circumradius>`; below 1 for every T unless the loss is concave.

    From the circumcentre ``eta = 1/(1 + R sqrt(beta T/(2 M)))``, from elsewhere ``eta = sqrt a/(sqrt a + sqrt q)`` with
    ``a = M/T``, ``q = (beta R^2/2)(1 + 1/T)``.
    """

    needs_horizon = True

    def eta(self, step: Step) -> float:
        """The same for every t."""
        constants, T = step.constants, step.T
        a, p = constants.initial_gap / T, constants.beta * constants.radius**2 / 2
        q = p if constants.start_distance == 0 else p * (1 + 1 / T)
        return sqrt(a) / (sqrt(a) + sqrt(q)) if q > 0 else 1.0


@dataclass(frozen=True)
class Anytime(StepSize):
    """``eta_t = min(1, sqrt(M_o/(C t)))`` (:prf:ref:`Theorem B <anytime>`).

    Needs no T, but a bound M_o of every later ``L(W_t) - min L``.
    """

    def eta(self, step: Step) -> float:
        """Falls as ``1/sqrt t``."""
        C = step.constants.curvature
        return min(1.0, sqrt(step.constants.oscillation / (C * step.t))) if C > 0 else 1.0


@dataclass(frozen=True)
class ShortStep(StepSize):
    """``eta_t = clip(ghat_t/(beta |V_t - W_t|^2), 0, 1)`` (:prf:ref:`Theorem D <short-step>`).

    Minimises the upper bound, and knows beta alone.
    """

    def eta(self, step: Step) -> float:
        """The minimiser of ``-eta ghat + eta^2 beta |V - W|^2/2`` over [0, 1]."""
        bend = step.constants.beta * step.distance**2
        if step.ghat <= 0:
            return 0.0
        return 1.0 if bend <= step.ghat else step.ghat / bend


@dataclass(frozen=True)
class OpenLoop(StepSize):
    """``eta_t = 2/(t + 1)`` counting from t = 1, which is Jaggi's ``2/(k + 2)`` counting from k = 0 (the convex rate)."""

    def eta(self, step: Step) -> float:
        """1, 2/3, 1/2, 2/5, ..."""
        return 2 / (step.t + 1)


@dataclass(frozen=True)
class LineSearch(StepSize):
    """A minimiser of the loss along the segment.

    Never worse than the short step, so that :prf:ref:`Theorem D <short-step>` holds for it.

    Exact where the loss is quadratic along lines; elsewhere a local minimiser, found by Brent's method and taken only if it
    beats the short step.
    """

    def eta(self, step: Step) -> float:
        """Where ``L(W + eta (V - W))`` is least, or locally so."""
        bend = step.along.curvature
        if bend is not None and bend > 0:
            return min(1.0, max(0.0, step.ghat / bend))
        candidates = [ShortStep().eta(step), 1.0]
        if bend is None:
            found = minimize_scalar(step.along, bounds=(0.0, 1.0), method="bounded", options={"xatol": 1e-10})
            candidates.append(float(found.x))  # pyright: ignore[reportAttributeAccessIssue]
        return min(candidates, key=step.along)
