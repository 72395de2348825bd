"""Theorem F: the chain as it is run."""

from __future__ import annotations

import numpy as np

from theory.bounds.assumptions import ChainStep, HoldsEverywhere, Static
from theory.bounds.bound import DecreaseBound, TightExample, horizons
from theory.errors import count
from theory.links import TruncatedStep
from theory.points import Array
from theory.problems import Completion
from theory.trajectory import Constants, Trajectory


class ChainBound(DecreaseBound):
    """Stationarity of ``W_{t+1} = W_t + Delta_t`` with ``rank Delta_t <= r``: no set, no shrink. What COLA does.

    Setting: L upper smooth with beta > 0 and bounded below on the whole space. ``|G|_{F,r}^2`` is the sum of the r largest
    squared singular values, at least ``|G|_op^2``. The shortfall of a link against one truncated gradient step is
    ``eps_t = [|G_t|_{F,r}^2/(2 beta) - (L(W_t) - L(W_{t+1}))]^+``.

    Guarantee (tight at every T): ``1/T sum |G_t|_{F,r}^2 <= 2 beta (h'/T + mean eps)``, and eps_t = 0 wherever the link is at
    least as good as the step ``-[G_t]_r/beta``, as the exact minimiser over rank r is. Hence
    ``mean |G_t|_op <= sqrt(2 beta (h'/T + mean eps))``.

    Algorithm: `theory.chain`; Algorithm 1 of the paper, and `merge=Add()` of the library.

    Proof: upper smoothness along ``-[G]_r/beta`` gives ``L(W - [G]_r/beta) <= L(W) - |G|_{F,r}^2/(2 beta)``, for
    ``<G, [G]_r> = |[G]_r|^2``. A link falls short of that by eps_t at the most. Sum over t.

    What a check can find: by the definition of eps_t the inequality with the run's eps holds for every run; so for solvers that
    are never worse than the truncated step, eps_t = 0 is claimed and checked instead.

    Stated and proved as :prf:ref:`Theorem F <chain>`, machine-checked: ``theory/proofs/chain.v``.

    Reference: derived in this project.
    """

    name = "Theorem F (chain)"
    statement = "mean |G|_{F,r}^2 <= 2 beta (M/T + mean eps)"
    verdict = "tight"
    requires = (Static(), HoldsEverywhere(), ChainStep())

    def value(self, T: int, constants: Constants, eps: float = 0.0) -> float:
        """``2 beta (M/T + eps)``, a bound of the mean of squares."""
        return 2 * constants.beta * (constants.initial_gap / count("T", T) + eps)

    def measured(self, run: Trajectory) -> Array:
        """Mean ``|G_t|_{F,r}^2``."""
        return np.square(run.column("gradient_norm")).cumsum() / horizons(run)

    def tight_example(self) -> TightExample:
        """Truncated steps on a squared distance: each takes away the r largest singular values of what is left."""
        return TightExample(Completion(np.diag([4.0, 3.0, 2.0, 1.0])), TruncatedStep(rank=2), 2)

    def given(self, run: Trajectory, fall: Array) -> Array:
        """``2 beta (fall/t + mean eps)``."""
        eps = 0.0 if run.step_size.never_worse else run.running_mean("eps")
        return 2 * run.constants.beta * (fall / horizons(run) + eps)
