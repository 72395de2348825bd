"""Why one may believe the bounds: identities in fractions, and worst cases by semidefinite programming.

Rooms, none of which imports a solver::

    exact        the proof of a theorem, checked at any T with the standard library alone
    worst_case   how much of a bound is ever attained: numbers for small T, from PEPit and Clarabel (dependency group `certify`)
    attained     a run that attains a bound in the limit
"""

from theory.certificates.algebra import Combination, Vector, rational
from theory.certificates.attained import centred_average
from theory.certificates.exact import anytime_step, centred_step, drifting_loss, fixed_step
from theory.certificates.identity import Identity
from theory.certificates.worst_case import MissingDependencyError, PerformanceEstimation

__all__ = [
    "Combination",
    "Identity",
    "MissingDependencyError",
    "PerformanceEstimation",
    "Vector",
    "anytime_step",
    "centred_average",
    "centred_step",
    "drifting_loss",
    "fixed_step",
    "rational",
]  # fmt: skip
