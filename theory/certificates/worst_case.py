"""Worst cases by performance estimation: the largest gap that any loss, set and start can force on given step sizes.

After T iterations only finitely many losses and inner products matter. Which of them belong to some smooth loss is known
exactly, so that the worst case is the value of a semidefinite program (Drori and Teboulle 2014; Taylor, Hendrickx and Glineur
2017). PEPit writes it and Clarabel solves it; both come with the dependency group `certify`. Importing this file needs neither.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise, permutations
from typing import Any, Literal, Self

from theory.errors import ArgumentError, TheoryError, count, positive, unit_interval
from theory.step_sizes import LineSearch, ShortStep, Step, StepSize
from theory.trajectory import Constants

AGREEMENT = 1e-5
"""How far primal and dual value may lie apart, relative to the larger of the value and 1, before a solution is refused."""


class MissingDependencyError(TheoryError, ImportError):
    """PEPit, cvxpy or clarabel is not installed."""


@dataclass(frozen=True)
class PerformanceEstimation:
    """Algorithm 2 with given step sizes, on every smooth loss over every set.

    Losses are smooth on the whole space, from both sides unless told otherwise: ``|grad L(X) - grad L(Y)| <= beta |X - Y|``.
    Minima over the set are not modelled: M bounds the decrease to the points of the run, as in the proofs.

    Attributes:
        etas: ``eta_1, ..., eta_T``, known before the run.
        initial_gap: M, at least ``L(W_1) - L(W_t)`` for every t.
        beta: smoothness.
        diameter: D of the set; None where only its radius is known.
        radius: R: the set lies within a ball of this radius; None where only its diameter is known.
        centred: whether the run starts at the centre of that ball.
        eps: what the oracle may fall short by, in every iteration.
        convex: whether losses are convex.
        upper_only: whether losses are smooth from above only, ``L(Y) <= L(X) + <grad L(X), Y - X> + beta/2 |Y - X|^2``: all
            that the theorems ask for.
        everywhere: whether M bounds ``L(W_s) - L(W_t)`` for all s and t (Theorem B), not for s = 1 alone.
        drift: iteration t uses its own loss L_t, with ``|L_{t+1} - L_t| <= drift`` at every W_s; None for one loss.

    Example:
        >>> from importlib.util import find_spec
        >>> worst = PerformanceEstimation([1.0], initial_gap=4.0).average() if find_spec("PEPit") else 4.5
        >>> abs(worst - 4.5) < 1e-5  # Theorem 4.1 prints 4
        True

    Source: the interpolation conditions of Taylor, Hendrickx and Glineur 2017 (arXiv 1512.07516), with the gap as performance.
    """

    etas: Sequence[float]
    initial_gap: float
    beta: float = 1.0
    diameter: float | None = 1.0
    radius: float | None = None
    centred: bool = False
    eps: float = 0.0
    convex: bool = False
    upper_only: bool = False
    everywhere: bool = False
    drift: float | None = None

    def __post_init__(self) -> None:
        name = type(self).__name__
        count(f"len({name}(etas=...))", len(self.etas))
        for eta in self.etas:
            unit_interval(f"{name}(etas=...)", eta)
        for argument in ("initial_gap", "beta", "diameter", "radius"):
            if getattr(self, argument) is not None:
                positive(f"{name}({argument}=...)", getattr(self, argument))
        for argument in ("eps", "drift"):
            value = getattr(self, argument)
            if value is not None and not 0 <= value < float("inf"):
                raise ArgumentError(f"`{name}({argument}=...)` must be finite and at least 0, and is {value!r}.")
        if self.diameter is None and self.radius is None:
            raise ArgumentError(
                f"`{name}(diameter=None, radius=None)` leaves the set unbounded, and the gap with it; give one."
            )
        if self.convex and self.upper_only:
            raise ArgumentError(
                f"`{name}(convex=True, upper_only=True)` asks for one thing twice: convex and upper smooth is smooth."
            )
        if self.centred and self.radius is None:
            raise ArgumentError(f"`{name}(centred=True)` has no ball to start at the centre of; give `radius`.")

    @classmethod
    def of(cls, rule: StepSize, T: int, constants: Constants, **setting: Any) -> Self:
        """The worst case of a rule.

        Args:
            rule: one whose step sizes depend on t, T and the constants alone.
            T: iterations.
            constants: beta, D, M, and whatever else the rule reads.
            **setting: attributes that override what the constants say.

        Returns:
            The problem, not yet solved.

        Raises:
            ArgumentError: the rule looks at the run.
        """
        if isinstance(rule, ShortStep | LineSearch):
            raise ArgumentError(
                f"`{cls.__name__}.of(rule, ...)` must know the step sizes before the run, and those of {rule!r} are quotients "
                "of what the run shows, which no semidefinite program can say; give a rule that does not look, such as Fixed()."
            )
        unseen: Any = float("nan")
        etas = [rule.eta(Step(t, T, unseen, unseen, constants, unseen)) for t in range(1, count("T", T) + 1)]
        known = {"initial_gap": constants.initial_gap, "beta": constants.beta, "diameter": constants.diameter}
        return cls(etas, **{**known, **setting})

    def average(self) -> float:
        """The largest average gap, ``(1/T) sum g_t``."""
        return self._solve("average")

    def minimum(self) -> float:
        """The largest least gap, ``min_t g_t``."""
        return self._solve("minimum")

    def _solve(self, performance: Literal["average", "minimum"]) -> float:
        try:
            import clarabel  # noqa: F401  # cvxpy would say no more than that the solver is not installed
            import cvxpy
            from PEPit import PEP
        except ImportError as missing:
            raise MissingDependencyError(
                f"`{type(self).__name__}.{performance}()` needs PEPit, cvxpy and clarabel, and {missing.name!r} is not "
                "installed; `pip install --group certify` installs them."
            ) from None
        # PEP() resets counters of the whole process: one problem is written, solved and read before the next begins.
        problem = PEP()
        gaps = self._write(problem)
        for metric in gaps if performance == "minimum" else [sum(gaps[1:], gaps[0]) / len(gaps)]:
            problem.set_performance_metric(metric)
        try:
            with warnings.catch_warnings():
                # Judged below, by the distance of the two values.
                warnings.filterwarnings("ignore", "Solution may be inaccurate", UserWarning)
                above: Any = problem.solve(wrapper="cvxpy", solver="CLARABEL", verbose=0)
        except cvxpy.SolverError as error:
            raise TheoryError(f"{self!r}: Clarabel found no answer ({error}).") from None
        below: Any = problem.wrapper.prob.value  # pyright: ignore[reportOptionalMemberAccess]
        if not abs(above - below) <= AGREEMENT * max(1.0, abs(above)):
            raise TheoryError(
                f"{self!r}: Clarabel found {below} from below and {above} from above, too far apart to be an answer."
            )
        return float(above)

    def _write(self, problem: Any) -> list[Any]:
        """Puts the constraints into the problem.

        Losses are written up to an affine function, of which no smoothness condition knows, and whose values at the vertices
        are unknowns of their own. Without it the largest gap need not be attained: in a ball it is approached as gradients grow
        without bound and vertices turn orthogonal to them, and the solver stops up to 1e-4 away.

        Returns:
            The gaps.
        """
        from PEPit import Expression, Point
        from PEPit.functions import SmoothConvexFunction, SmoothFunction

        T = len(self.etas)
        origin = Point(is_leaf=False, decomposition_dict={})
        start = origin if self.centred else Point()
        vertices = [Point() for _ in range(T)]
        # (A2)  The oracle may play any point U_t of the set with <U_t - V_t, G_t> <= eps.
        played = [Point() for _ in range(T)] if self.eps > 0 else vertices
        corners = [start, *vertices, *(played if self.eps > 0 else [])]
        path = [start]
        for eta, U in zip(self.etas, played, strict=True):
            path.append(path[-1] + eta * (U - path[-1]))  # (A3)

        kind = SmoothConvexFunction if self.convex else SmoothFunction
        losses = []
        for _ in range(1 if self.drift is None else T):
            triplets = [(W, origin if W is start else Point(), Expression()) for W in path]
            if self.upper_only:
                self._smooth_from_above(problem, triplets)
            else:
                f = problem.declare_function(kind, L=self.beta)
                for triplet in triplets:
                    f.add_point(triplet)
            losses.append(_Loss({corner: Expression() for corner in corners[1:]}, triplets))

        gaps = []
        for t in range(T):
            L = losses[min(t, len(losses) - 1)]
            for corner in corners:
                if corner is not vertices[t]:
                    problem.add_constraint(L.along(t, corner - vertices[t]) >= 0)
            if self.eps > 0:
                problem.add_constraint(L.along(t, played[t] - vertices[t]) <= self.eps)
            gaps.append(L.along(t, path[t] - vertices[t]))
        self._bound_set(problem, corners, origin)
        self._bound_losses(problem, losses)
        return gaps

    def _smooth_from_above(self, problem: Any, triplets: Sequence[tuple[Any, Any, Any]]) -> None:
        # beta |x|^2/2 - L is convex, and these are the interpolation conditions of convex functions, written for L.
        for (x, G, value), (y, _, other) in permutations(triplets, 2):
            problem.add_constraint(other - value <= G * (y - x) + self.beta / 2 * (y - x) ** 2)

    def _bound_set(self, problem: Any, corners: Sequence[Any], origin: Any) -> None:
        for i, corner in enumerate(corners):
            if self.radius is not None and corner is not origin:
                problem.add_constraint(corner**2 <= self.radius**2)
            if self.diameter is not None:
                for other in corners[:i]:
                    problem.add_constraint((corner - other) ** 2 <= self.diameter**2)

    def _bound_losses(self, problem: Any, losses: Sequence[Any]) -> None:
        before = losses[0].values
        for i in range(len(before) if self.everywhere else 1):
            for value in before[:i] + before[i + 1 :]:
                problem.add_constraint(before[i] - value <= self.initial_gap)
        for earlier, later in pairwise(losses):
            for old, new in zip(earlier.values, later.values, strict=True):
                problem.add_constraint(new - old <= self.drift)
                problem.add_constraint(old - new <= self.drift)


class _Loss:
    """A smooth function plus an affine one that vanishes at the start and has the values `slopes` at the other corners."""

    def __init__(self, slopes: dict[Any, Any], triplets: Sequence[tuple[Any, Any, Any]]) -> None:
        self.slopes, self.gradients = slopes, [G for _, G, _ in triplets]
        self.values = [value + self.affine(W) for W, _, value in triplets]

    def affine(self, direction: Any) -> Any:
        """What the affine part changes by."""
        return sum(c * self.slopes[corner] for corner, c in direction.decomposition_dict.items() if corner in self.slopes)

    def along(self, t: int, direction: Any) -> Any:
        """``<G_t, direction>``."""
        return self.gradients[t] * direction + self.affine(direction)
