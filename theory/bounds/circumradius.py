"""Theorem C: the circumradius in place of the diameter."""

from __future__ import annotations

from math import sqrt

from theory.bounds.assumptions import ConstantStep, FrankWolfeStep, Static
from theory.bounds.bound import DecreaseBound, horizons, summed_steps
from theory.errors import count
from theory.points import Array
from theory.trajectory import Constants, Trajectory


class CircumradiusBound(DecreaseBound):
    """Average gap with one step size below 1, in terms of the circumradius R: for norm balls half the constant of Theorem A.

    Setting: as in `FixedStepBound`, with a Euclidean norm; K lies in the ball of radius R around c.

    Guarantee (upper, and asymptotically tight: `WorstCentred` comes as near as one likes to the tuned bound, whose
    leading constant cannot be improved): for every eta in (0, 1),
    ``1/T sum g_t <= h'/(eta T) + beta (|W_1 - c|^2/(eta T) + R^2) eta/(2(1 - eta)) + mean eps``. Then::

        from W_1 = c:     R sqrt(2 M beta/T) + M/T                                  eta = 1/(1 + R sqrt(beta T/(2M)))
        from anywhere:    R sqrt(2 M beta (1 + 1/T)/T) + (M + beta R^2/2)/T         eta = sqrt a/(sqrt a + sqrt q)

    with ``a = M/T``, ``q = (beta R^2/2)(1 + 1/T)``; no condition on T. Chains start at c: the ball lies around the frozen
    weights.

    Algorithm: `theory.frank_wolfe` with `Centred`.

    Proof: for every t,
    ``|W_{t+1} - c|^2 = (1 - eta)|W_t - c|^2 + eta |V_t - c|^2 - eta (1 - eta)|W_t - V_t|^2``. Divided by eta and summed::

        (1 - eta) sum |W_t - V_t|^2 = (|W_1 - c|^2 - |W_{T+1} - c|^2)/eta + sum (|V_t - c|^2 - |W_t - c|^2)
                                   <= |W_1 - c|^2/eta + T R^2

    Insert this in the sum of (*). With ``p = beta R^2/2`` and, from c, b = p, else (``|W_1 - c| <= R``) b = q, the bound is at
    most ``a/eta + b/(1 - eta) - p``, whose least value is ``(sqrt a + sqrt b)^2 - p``, at ``eta = sqrt a/(sqrt a + sqrt b)``.

    Stated and proved as :prf:ref:`Theorem C <circumradius>`, machine-checked: ``theory/proofs/circumradius.v``.

    Reference: derived in this project. For beta = 0 the second term vanishes and eta = 1 is allowed; for M = 0
    the prescribed step is 0 and nothing is claimed, as in `FixedStepBound`.

    Example:
        >>> c = Constants(1.0, 2.0, 1.0, initial_gap=2.0, oscillation=2.0, start_distance=0.0)
        >>> CircumradiusBound().value(16, c)
        0.625
    """

    name = "Theorem C (circumradius)"
    statement = "mean g <= M/(eta T) + beta (|W_1 - c|^2/(eta T) + R^2) eta/(2(1 - eta)) + mean eps"
    verdict = "upper"
    requires = (Static(), FrankWolfeStep(or_lower=False), ConstantStep(below_one=True))

    def value(self, T: int, constants: Constants, eps: float = 0.0) -> float:
        """``R sqrt(2 M beta/T) + M/T`` from the centre; plus eps."""
        a, p = constants.initial_gap / count("T", T), constants.beta * constants.radius**2 / 2
        if constants.start_distance == 0:
            return 2 * sqrt(a * p) + a + eps
        return (sqrt(a) + sqrt(p * (1 + 1 / T))) ** 2 - p + eps

    def between(self, run: Trajectory) -> Array:
        """The sum of (*), with the run's distances: `given` bounds their squares."""
        return summed_steps(run, run.column("distance"))

    def given(self, run: Trajectory, fall: Array) -> Array:
        """``fall/(eta t) + beta (|W_1 - c|^2/(eta t) + R^2) eta/(2(1 - eta)) + mean eps``."""
        eta, t, c = run.iterations[0].eta, horizons(run), run.constants
        spread = c.beta * (c.start_distance**2 / (eta * t) + c.radius**2) * eta / (2 * (1 - eta)) if c.beta > 0 else 0.0
        return fall / (eta * t) + spread + run.running_mean("eps")
