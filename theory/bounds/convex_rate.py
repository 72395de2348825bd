"""The convex rate, for comparison: primal error and least gap of the open-loop step."""

from __future__ import annotations

import numpy as np

from theory.bounds.assumptions import Convex, FrankWolfeStep, KnownMinimum, OpenLoopStep, Static
from theory.bounds.bound import Bound, horizons
from theory.errors import count
from theory.points import Array
from theory.trajectory import Constants, Trajectory

GAP_FACTOR = 27 / 4
"""Jaggi 2013, Theorem 2: 2 beta with beta = 27/8."""


class ConvexRate(Bound):
    """Primal error of ``eta_t = 2/(t + 1)`` on a convex loss.

    Setting: as in `FixedStepBound`, L convex; ``eps_t <= delta eta_t C/2`` with ``C = beta D^2``.

    Guarantee (upper): ``h_{T+1} = L(W_{T+1}) - min L <= 2 C (1 + delta)/(T + 2)``.

    Algorithm: `theory.frank_wolfe` with `OpenLoop`.

    Proof: convexity gives ``h_t <= g_t``, so (*) reads ``h_{t+1} <= (1 - eta_t) h_t + eta_t^2 C (1 + delta)/2``. With eta_1 =
    1, ``h_2 <= C (1 + delta)/2 <= 2 C (1 + delta)/3``. If ``h_t <= 2 C (1 + delta)/(t + 1)`` then, with ``s = t + 1``,
    ``h_{t+1} <= 2 C (1 + delta) [(1 - 2/s)/s + 1/s^2] = 2 C (1 + delta) (s - 1)/s^2 <= 2 C (1 + delta)/(s + 1)``. Any point of
    K may stand for the minimiser: that it is one, only makes h what it is called.

    Stated and proved as :prf:ref:`the convex rate <convex-rate>`, machine-checked: ``theory/proofs/convex_rate.v``.

    Reference: Jaggi 2013, Theorem 1, with k = t - 1.
    """

    name = "Convex rate (primal)"
    statement = "L(W_{T+1}) - min L <= 2 beta D^2 (1 + delta)/(T + 2)"
    verdict = "upper"
    requires = (Static(), Convex(), KnownMinimum(), FrankWolfeStep(), OpenLoopStep())

    def value(self, T: int, constants: Constants, eps: float = 0.0) -> float:
        """``2 C (1 + delta)/(T + 2)``; no eps_t above eps has a delta above ``eps (T + 1)/C``."""
        return 2 * (constants.curvature + eps * (count("T", T) + 1)) / (T + 2)

    def measured(self, run: Trajectory) -> Array:
        """``h_{t+1}``."""
        return run.losses_after() - run.constants.lowest

    def guaranteed(self, run: Trajectory) -> Array:
        """With the largest delta so far."""
        return 2 * spoilt_curvature(run) / (horizons(run) + 2)

    def on_trajectory(self, run: Trajectory) -> Array:
        """The same: nothing is left to replace."""
        return self.guaranteed(run)


class ConvexGapRate(Bound):
    """Least gap of ``eta_t = 2/(t + 1)`` on a convex loss.

    Setting: as in `ConvexRate`.

    Guarantee (upper): for T >= 3, ``min_{2 <= t <= T} g_t <= (27/4) C (1 + delta)/(T + 1)``.

    Algorithm: `theory.frank_wolfe` with `OpenLoop`.

    Proof: let S = T + 1 and suppose that all ``g_t > 2 b C'/S`` with ``C' = C (1 + delta)`` and b = 27/8. In the last third of
    the iterations, t + 1 from ``ceil(2S/3)`` to S, ``2/S <= eta_t <= 3/S``. Where they begin ``h <= 2 C'/(2S/3) = 3 C'/S``, and
    at each of them, of which there are S/3 at least, (*) takes away more than ``(2/S)(2 b C'/S) - (9/S^2) C'/2``. In all that
    is more than ``(2 C'/S)(1/3)(2b - 9/4) = 3 C'/S``, so that h would end below zero. T >= 3 makes ``ceil(2S/3) >= 3``, so that
    `ConvexRate` bounds the h where they begin; with h measured from W_{T+1}, no minimum need exist.

    Stated and proved as :prf:ref:`the rate of the least gap <convex-gap-rate>`, machine-checked:
    ``theory/proofs/convex_rate.v``.

    Reference: Jaggi 2013, Theorem 2.
    """

    name = "Convex rate (least gap)"
    statement = "min g <= (27/4) beta D^2 (1 + delta)/(T + 1)"
    verdict = "upper"
    requires = (Static(), Convex(), FrankWolfeStep(), OpenLoopStep())

    def value(self, T: int, constants: Constants, eps: float = 0.0) -> float:
        """``(27/4) C (1 + delta)/(T + 1)`` for T >= 3; no eps_t above eps has a delta above ``eps (T + 1)/C``."""
        return GAP_FACTOR * (constants.curvature / (count("T", T, least=3) + 1) + eps)

    def measured(self, run: Trajectory) -> Array:
        """The least gap from t = 2 on; 0 for T < 3, where nothing is claimed."""
        gap = run.column("gap")
        return np.append(np.zeros(min(2, len(run))), np.minimum.accumulate(gap[1:])[1:])

    def guaranteed(self, run: Trajectory) -> Array:
        """With the largest delta so far."""
        return GAP_FACTOR * spoilt_curvature(run) / (horizons(run) + 1)

    def on_trajectory(self, run: Trajectory) -> Array:
        """The same: nothing is left to replace."""
        return self.guaranteed(run)


def spoilt_curvature(run: Trajectory) -> Array:
    """``C (1 + delta)`` with the least delta for which ``eps_s <= delta eta_s C/2`` for all s <= t, ``(T,)``."""
    return run.constants.curvature + np.maximum.accumulate(2 * run.column("eps") / run.column("eta"))
