"""Theorem E: a loss that moves."""

from __future__ import annotations

import numpy as np

from theory.bounds.assumptions import FixedOrShortStep, FrankWolfeStep, ShortStepOrBetter
from theory.bounds.bound import DecreaseBound, TightExample, horizons, summed_steps
from theory.bounds.huber import phi_inverse, phi_mean
from theory.errors import ArgumentError, count
from theory.points import Array
from theory.problems import WorstDrift
from theory.step_sizes import Fixed
from theory.trajectory import Constants, Trajectory


class DriftBound(DecreaseBound):
    """Average gap where iteration t uses its own loss L_t, each upper smooth with the same beta.

    Setting: as in `FixedStepBound` with L_t for L; ``Delta+ = sum_{t<T} sup_K (L_{t+1} - L_t)^+``, Delta- likewise;
    ``L_1(W_1) - min L_1 <= M``.

    Guarantee (tight at T = 2): with S the sum of decreases::

        fixed step:   1/T sum g_t <= S/(eta T) + beta D^2 eta/2 + mean eps
        short step:   1/T sum g_t <= phi^{-1}(S/T) + mean eps

        S = sum [L_t(W_t) - L_t(W_{t+1})]
          = L_1(W_1) - L_T(W_{T+1}) + sum_{t<T} (L_{t+1} - L_t)(W_{t+1}) <= M + Delta+ + Delta-

    S is known from the trace alone. Let Delta be the sum of the two. With eta tuned to ``M + Delta``, or with the short step,
    which need not know it, the rate is Theorem A's with that in place of M: it vanishes where ``Delta = o(T)``. With eta tuned
    to M alone the guarantee is ``sqrt(2 M beta) D/sqrt T (1 + Delta/(2M))``, and vanishes only where ``Delta = o(sqrt T)``.

    Algorithm: `theory.frank_wolfe` on a problem that drifts, with `Fixed` (or any constant step), `ShortStep` or `LineSearch`.

    Proof: (*) holds at each t for L_t; sum, and write S as above. ``min L_1 - min L_T <= Delta-``, so that
    ``L_1(W_1) - L_T(W_{T+1}) <= M + Delta-``; the other sum is at most Delta+.

    Stated and proved as :prf:ref:`Theorem E <drift>`, machine-checked: ``theory/proofs/drift.v``.

    Reference: the remark after Theorem 4.1 of arXiv 2401.04151 ("sublinear drift suffices"), made precise; derived in this
    project.

    Args:
        up: Delta+ over the horizon that `value` is asked for.
        down: Delta-.
    """

    name = "Theorem E (drift)"
    statement = "mean g <= phi^-1((M + Delta+ + Delta-)/T) + mean eps"
    verdict = "tight"
    requires = (FrankWolfeStep(), FixedOrShortStep())

    def __init__(self, up: float = 0.0, down: float = 0.0) -> None:
        if not (0 <= up < np.inf and 0 <= down < np.inf):
            raise ArgumentError(f"`DriftBound(up=..., down=...)` must be finite and at least 0, and are {up!r} and {down!r}.")
        self.up, self.down = up, down

    def value(self, T: int, constants: Constants, eps: float = 0.0) -> float:
        """Theorem A's value with ``M + Delta+ + Delta-`` for M; plus eps."""
        fall = constants.initial_gap + self.up + self.down
        return float(phi_inverse(fall / count("T", T), constants.curvature)) + eps

    def guaranteed(self, run: Trajectory) -> Array:
        """With the suprema: before iteration t the loss has moved t - 1 times."""
        moved = np.append(0.0, (run.column("drift.up") + run.column("drift.down")).cumsum()[:-1])
        return self.given(run, run.constants.initial_gap + moved)

    def between(self, run: Trajectory) -> Array:
        """As in Theorem D for a short step or a line search, else as in Theorem A."""
        return phi_mean(run) if _short(run) else summed_steps(run, run.column("distance"))

    def tight_example(self) -> TightExample:
        """Two whole steps on a triangle whose linear loss moves in between."""
        return TightExample(WorstDrift(), Fixed(), 2)

    def given(self, run: Trajectory, fall: Array) -> Array:
        """``fall/(eta t) + beta D^2 eta/2 + mean eps`` for a constant step, else ``phi^{-1}(fall/t) + mean eps``."""
        t, C = horizons(run), run.constants.curvature
        if _short(run):
            return phi_inverse(fall / t, C) + run.running_mean("eps")
        eta = run.iterations[0].eta
        return fall / (eta * t) + C * eta / 2 + run.running_mean("eps")

    def __repr__(self) -> str:
        return f"DriftBound(up={self.up!r}, down={self.down!r})"


def _short(run: Trajectory) -> bool:
    """Whether the record is that of a short step or better, whatever the run calls its rule."""
    return ShortStepOrBetter().of_run(run) is None
