"""Theorem 4.1 as the paper prints it, kept to show where it fails."""

from __future__ import annotations

from math import sqrt

import numpy as np

from theory.bounds.assumptions import ConstantStep, FrankWolfeStep, Static
from theory.bounds.bound import Bound, TightExample, horizons
from theory.errors import count
from theory.points import Array
from theory.problems import WorstCase
from theory.step_sizes import Fixed
from theory.trajectory import Constants, Trajectory


class PrintedBound(Bound):
    """The statement of arXiv 2401.04151, Theorem 4.1: ``1/T sum g_t <= 2 sqrt(M beta) D/sqrt T + eps`` for every T.

    Setting: as in `FixedStepBound`; the paper leaves open the norm, the step size, and whether M bounds ``|L|`` or
    ``L(W_1) - min L``.

    Guarantee (refuted for small T, upper beyond): with ``h_1 <= M`` and the best fixed step, the worst case is that of Theorem
    A. For ``T >= 2M/(beta D^2)`` that is ``sqrt 2 sqrt(M beta) D/sqrt T``, below the printed 2. For smaller T it is
    ``M/T + beta D^2/2``, which exceeds the printed value if and only if ``M/(beta D^2 T) > (1 + 1/sqrt 2)^2 = 2.914``: with
    ``x^2 = M/(beta D^2 T)``, at least 1/2 there, ``x^2 + 1/2 > 2x``. For beta = 0 it says that every gap is 0.

    Algorithm: `theory.frank_wolfe` with `Fixed`.

    Proof of the refutation: `counterexample`, ``L(x) = -4.5 x + x^2/2`` on [0, 1] from 0: M = 4, beta = D = T = 1, gap 4.5 > 4.

    Refuted by :prf:ref:`the counterexample <printed-fails>`, machine-checked: ``theory/proofs/printed.v``.

    Reference: arXiv 2401.04151, Theorem 4.1. The counterexample is derived in this project.
    """

    name = "Theorem 4.1 (as printed)"
    statement = "mean g <= 2 sqrt(M beta) D/sqrt(T) + eps"
    verdict = "refuted"
    requires = (Static(), FrankWolfeStep(), ConstantStep())

    def value(self, T: int, constants: Constants, eps: float = 0.0) -> float:
        """``2 sqrt(M beta) D/sqrt T + eps``."""
        return 2 * sqrt(constants.initial_gap * constants.curvature / count("T", T)) + eps

    def measured(self, run: Trajectory) -> Array:
        """Mean gap; before the last iteration, the step belongs to another horizon and nothing is claimed."""
        return np.append(np.zeros(len(run) - 1), run.column("gap").mean())

    def guaranteed(self, run: Trajectory) -> Array:
        """At the run's own length."""
        last = 2 * np.sqrt(run.constants.initial_gap * run.constants.curvature / horizons(run)[-1])
        return np.append(np.zeros(len(run) - 1), last + run.column("eps").mean())

    def on_trajectory(self, run: Trajectory) -> Array:
        """The same: the paper has no such form."""
        return self.guaranteed(run)

    def counterexample(self) -> TightExample:
        """One step on an interval, with M = 4."""
        return TightExample(WorstCase(M=4.0), Fixed(), 1)
