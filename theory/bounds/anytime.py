"""Theorem B: a step size that needs no horizon."""

from __future__ import annotations

from math import sqrt

import numpy as np

from theory.bounds.assumptions import AnytimeStep, FrankWolfeStep, Static
from theory.bounds.bound import Bound, TightExample, summed_steps
from theory.errors import count
from theory.points import Array
from theory.problems import WorstCase
from theory.step_sizes import Anytime
from theory.trajectory import Constants, Trajectory


class AnytimeBound(Bound):
    """Average gap with ``eta_t = min(1, sqrt(M_o/(beta D^2 t)))``, for all T at once and without a logarithm.

    Setting: as in `FixedStepBound`, and ``M_o >= h_t = L(W_t) - min L`` for every t: a bound of the oscillation on K, not of
    h_1 alone.

    Guarantee (tight at T = 1 with ``M_o >= beta D^2``)::

        1/T sum g_t <= 2 sqrt(M_o beta) D/sqrt(T) + mean eps    for T > M_o/(beta D^2)
                       M_o/T + beta D^2/2 + mean eps            up to there, where every eta_t = 1

    Algorithm: `theory.frank_wolfe` with `Anytime`.

    Proof: (*) gives ``g_t - eps_t <= (h_t - h_{t+1})/eta_t + beta D^2 eta_t/2``. As eta_t does not increase, Abel summation
    gives ``sum (h_t - h_{t+1})/eta_t <= h_1/eta_1 + sum_{t >= 2} h_t (1/eta_t - 1/eta_{t-1}) <= M_o/eta_T``. With
    ``sum_{t <= T} 1/sqrt t <= 2 sqrt T`` both halves are ``sqrt(M_o beta) D sqrt T``. Up to M_o/(beta D^2), all eta_t are 1 and
    the sum telescopes. For M_o = 0 no step is taken and nothing can be divided by it, but every W_t is a minimiser, where the
    oracle finds no descent: ``g_t <= eps_t``.

    Stated and proved as :prf:ref:`Theorem B <anytime>`, machine-checked: ``theory/proofs/anytime.v``.

    Reference: derived in this project; the one reading, with ``M_o``, under which the paper's constant 2 is right.

    Example:
        >>> c = Constants(1.0, 1.0, 0.5, initial_gap=2.0, oscillation=4.0, start_distance=0.0)
        >>> AnytimeBound().value(16, c), AnytimeBound().value(2, c)
        (1.0, 2.5)
    """

    name = "Theorem B (anytime)"
    statement = "mean g <= 2 sqrt(M_o beta) D/sqrt(T) + mean eps"
    verdict = "tight"
    requires = (Static(), FrankWolfeStep(), AnytimeStep())

    def value(self, T: int, constants: Constants, eps: float = 0.0) -> float:
        """``2 sqrt(M_o beta) D/sqrt T``, or ``M_o/T + beta D^2/2`` for small T; plus eps."""
        C, M = constants.curvature, constants.oscillation
        return (2 * sqrt(M * C / T) if count("T", T) * C > M else M / T + C / 2) + eps

    def guaranteed(self, run: Trajectory) -> Array:
        """With M_o."""
        return np.array([self.value(t, run.constants) for t in range(1, len(run) + 1)]) + run.running_mean("eps")

    def on_trajectory(self, run: Trajectory) -> Array:
        """``[sum (h_t - h_{t+1})/eta_t + beta D^2/2 sum eta_t]/T + mean eps``, before Abel's summation."""
        return summed_steps(run, run.constants.diameter)

    def between(self, run: Trajectory) -> Array:
        """The sum of (*), with the run's distances."""
        return summed_steps(run, run.column("distance"))

    def tight_example(self) -> TightExample:
        """One whole step on an interval."""
        return TightExample(WorstCase(M=4.0), Anytime(), 1)
