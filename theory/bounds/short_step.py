"""Theorem D: the short step, which needs neither T nor M."""

from __future__ import annotations

from theory.bounds.assumptions import FrankWolfeStep, ShortStepOrBetter, Static
from theory.bounds.bound import DecreaseBound, TightExample, horizons
from theory.bounds.huber import phi_inverse, phi_mean
from theory.errors import count
from theory.points import Array
from theory.problems import WorstCase
from theory.step_sizes import ShortStep
from theory.trajectory import Constants, Trajectory


class ShortStepBound(DecreaseBound):
    """Average gap with ``eta_t = clip(ghat_t/(beta |V_t - W_t|^2), 0, 1)``, ``ghat_t = <G_t, W_t - V_t>``.

    Setting: as in `FixedStepBound`; the rule knows beta and nothing else.

    Guarantee (tight at T = 1): with ``C = beta D^2`` and the Huber function phi,
    ``1/T sum phi(max(ghat_t, 0)) <= h'/T``, hence ``1/T sum g_t <= phi^{-1}(h'/T) + mean eps <= B_T(M) + mean eps``, Theorem
    A's value, for all T at once.

    Algorithm: `theory.frank_wolfe` with `ShortStep`; `LineSearch` inherits the bound.

    Proof: the step minimises ``-eta ghat + eta^2 beta |V - W|^2/2`` over [0, 1], so the loss falls by at least
    ``max_eta (eta ghat - eta^2 C/2) = phi(ghat)`` where ghat > 0, and does not rise elsewhere. Sum over t. As phi is convex and
    increasing, Jensen gives ``phi(mean max(ghat, 0)) <= h'/T``; and ``ghat_t >= g_t - eps_t``.

    Stated and proved as :prf:ref:`Theorem D <short-step>`, machine-checked: ``theory/proofs/short_step.v``.

    Reference: Lacoste-Julien 2016 has the least gap of T iterations, ``max(2 h_1, C)/sqrt(T)`` (his t runs from 0 to T, and his
    root is of T + 1); the average is derived in this project.
    """

    name = "Theorem D (short step)"
    statement = "mean g <= phi^-1(M/T) + mean eps"
    verdict = "tight"
    requires = (Static(), FrankWolfeStep(), ShortStepOrBetter())

    def value(self, T: int, constants: Constants, eps: float = 0.0) -> float:
        """``sqrt(2 M beta) D/sqrt T``, or ``M/T + beta D^2/2`` for small T; plus eps."""
        return float(phi_inverse(constants.initial_gap / count("T", T), constants.curvature)) + eps

    def between(self, run: Trajectory) -> Array:
        """``phi^{-1}(mean phi(max(ghat, 0))) + mean eps``: Jensen on its left, the decrease of each step on its right."""
        return phi_mean(run)

    def tight_example(self) -> TightExample:
        """One step on an interval."""
        return TightExample(WorstCase(), ShortStep(), 1)

    def given(self, run: Trajectory, fall: Array) -> Array:
        """``phi^{-1}(fall/t) + mean eps``."""
        return phi_inverse(fall / horizons(run), run.constants.curvature) + run.running_mean("eps")
