"""Proofs as identities: ``average gap - bound = sum lambda_i constraint_i - sum w_j |x_j|^2``, verified in fractions.

The unknowns are formal: losses, gaps, shortfalls, and vectors through their inner products. Every constraint says "this is at
most 0" and follows from an assumption of the theorem. With ``lambda_i >= 0`` and ``w_j >= 0`` the right-hand side is then at
most 0 in every space, for every loss and every run: the identity is the whole proof, and a machine has read it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

from theory.certificates.algebra import Combination, Vector


@dataclass(frozen=True)
class Identity:
    """A claim about the average gap, and what proves it.

    Attributes:
        theorem: its letter.
        T: iterations.
        bound: what the average gap is claimed not to exceed, the mean of eps apart.
        constraints: expressions that the assumptions make at most 0, by name.
        multipliers: lambda of each constraint.
        squares: weight and vector of each square, by name.

    Example:
        >>> assumed = Combination({"g_1": Fraction(1), "eps_1": Fraction(-1), "1": Fraction(-2)})  # g_1 <= eps_1 + 2
        >>> Identity("?", 1, Fraction(2), {"a": assumed}, {"a": Fraction(1)}).holds
        True
        >>> Identity("?", 1, Fraction(1), {"a": assumed}, {"a": Fraction(1)}).residual
        1
    """

    theorem: str
    T: int
    bound: Fraction
    constraints: Mapping[str, Combination]
    multipliers: Mapping[str, Fraction]
    squares: Mapping[str, tuple[Fraction, Vector]] = field(default_factory=dict)

    @property
    def claim(self) -> Combination:
        """``(1/T) sum (g_t - eps_t) - bound``, which is to be at most 0."""
        mean = Fraction(1, self.T)
        gaps = [Combination.unknown(f"g_{t}") - Combination.unknown(f"eps_{t}") for t in range(1, self.T + 1)]
        return Combination.total([*((mean, gap) for gap in gaps), (-self.bound, Combination.constant(Fraction(1)))])

    @property
    def residual(self) -> Combination:
        """``claim - sum lambda_i constraint_i + sum w_j |x_j|^2``: the zero combination, or nothing is proved."""
        proof = [(-self.multipliers[name], constraint) for name, constraint in self.constraints.items()]
        return Combination.total([(1, self.claim), *proof, *((w, x @ x) for w, x in self.squares.values())])

    @property
    def holds(self) -> bool:
        """Whether the residual vanishes identically and every multiplier and weight is at least 0."""
        weights = [*self.multipliers.values(), *(w for w, _ in self.squares.values())]
        return all(weight >= 0 for weight in weights) and not self.residual


class Proof:
    """Constraints and multipliers as they are gathered; ``mean`` is 1/T."""

    def __init__(self, T: int) -> None:
        self.mean = Fraction(1, T)
        self.constraints: dict[str, Combination] = {}
        self.multipliers: dict[str, Fraction] = {}

    def use(self, name: str, constraint: Combination, multiplier: Fraction) -> None:
        """One more constraint."""
        self.constraints[name], self.multipliers[name] = constraint, multiplier

    def step(self, t: int, eta: Fraction, beta: Fraction, d: Vector, losses: Sequence[str]) -> None:
        """What all theorems share: (A1) along the step and (A2), weighted so that ``<G_t, d_t>`` cancels."""
        slope, (before, after) = Vector.unknown(f"G_{t}") @ d, map(Combination.unknown, losses)
        self.use(f"smooth_{t}", after - before - eta * slope - beta / 2 * eta**2 * (d @ d), self.mean / eta)
        self.use(f"oracle_{t}", Combination.unknown(f"g_{t}") - Combination.unknown(f"eps_{t}") + slope, self.mean)
