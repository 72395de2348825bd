"""Theorem A: the fixed step. The corrected Theorem 4.1."""

from __future__ import annotations

from theory.bounds.assumptions import ConstantStep, FrankWolfeStep, Static
from theory.bounds.bound import DecreaseBound, TightExample, horizons, summed_steps
from theory.bounds.huber import phi_inverse
from theory.errors import count
from theory.points import Array
from theory.problems import WorstCase
from theory.step_sizes import Fixed
from theory.trajectory import Constants, Trajectory


class FixedStepBound(DecreaseBound):
    """Average gap of Frank-Wolfe with one step size, on a loss that need not be convex.

    Setting: K compact and convex with diameter D; L upper smooth on K,
    ``L(Y) <= L(X) + <grad L(X), Y - X> + beta/2 |Y - X|^2``; an oracle with ``<V_t, G_t> <= min_K <V, G_t> + eps_t``;
    ``h' = L(W_1) - L(W_{T+1}) <= M``.

    Guarantee (tight at T = 1 and, where beta = 0, at every T; with h' in place of M, by a run that bounces between the ends of
    an interval with eta = 1, at every T): for every eta in (0, 1],
    ``1/T sum g_t <= h'/(eta T) + beta D^2 eta/2 + 1/T sum eps_t``. With ``eta = min(1, sqrt(2M/(beta D^2 T)))``::

        1/T sum g_t <= sqrt(2 M beta) D/sqrt(T) + mean eps    for T >= 2M/(beta D^2)
                       M/T + beta D^2/2 + mean eps            below, with eta = 1

    The least gap, and the expected gap at an iteration drawn uniformly, obey the same bound.

    Algorithm: ``W_{t+1} = W_t + eta (V_t - W_t)``, `theory.frank_wolfe` with `Fixed`.

    Proof: by upper smoothness and the oracle,
    ``L(W_{t+1}) <= L(W_t) - eta (g_t - eps_t) + beta/2 eta^2 |V_t - W_t|^2`` (*), and ``|V_t - W_t| <= D``. Sum over t and
    divide by eta T. The right-hand side is least at the stated eta, and convex in it, so that eta = 1 is best where the
    minimiser exceeds 1. For M = 0 and C > 0 that minimiser is 0, no step is taken, and nothing is claimed.

    Stated and proved as :prf:ref:`Theorem A <fixed-step>`, machine-checked: ``theory/proofs/fixed_step.v``.

    Reference: Theorem 4.1 of arXiv 2401.04151, whose printed form is `PrintedBound`; Lacoste-Julien 2016. The constant sqrt 2
    and the branch for small T are derived in this project.

    Example:
        >>> c = Constants(1.0, 1.0, 0.5, initial_gap=2.0, oscillation=2.0, start_distance=0.0)
        >>> FixedStepBound().value(16, c), FixedStepBound().value(1, c)
        (0.5, 2.5)
    """

    name = "Theorem A (fixed step)"
    statement = "mean g <= M/(eta T) + beta D^2 eta/2 + mean eps"
    verdict = "tight"
    requires = (Static(), FrankWolfeStep(), ConstantStep())

    def value(self, T: int, constants: Constants, eps: float = 0.0) -> float:
        """``sqrt(2 M beta) D/sqrt T``, or ``M/T + beta D^2/2`` for small T; plus eps."""
        return float(phi_inverse(constants.initial_gap / count("T", T), constants.curvature)) + eps

    def between(self, run: Trajectory) -> Array:
        """The sum of (*), with the run's distances."""
        return summed_steps(run, run.column("distance"))

    def tight_example(self) -> TightExample:
        """One step on an interval."""
        return TightExample(WorstCase(), Fixed(), 1)

    def given(self, run: Trajectory, fall: Array) -> Array:
        """``fall/(eta t) + beta D^2 eta/2 + mean eps``."""
        eta = run.iterations[0].eta
        return fall / (eta * horizons(run)) + run.constants.curvature * eta / 2 + run.running_mean("eps")
