"""What the oracle is asked with: the gradient, or an estimate of it.

The yardstick always knows the true gradient too: with an estimate, the vertex's shortfall against the true one is measured and
is the eps of the theorems.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np

from theory.errors import ArgumentError, at_least_zero, count
from theory.points import Array
from theory.problems.problem import FiniteSum, Problem


class Gradient(ABC):
    """How a gradient is had."""

    @abstractmethod
    def at(self, problem: Problem, W: Any, G: Any, rng: np.random.Generator) -> Any:
        """What to minimise over the set, given the true gradient G at W."""


@dataclass(frozen=True)
class Full(Gradient):
    """The gradient itself."""

    def at(self, problem: Problem, W: Any, G: Any, rng: np.random.Generator) -> Any:
        """G."""
        return G


@dataclass(frozen=True)
class Noisy(Gradient):
    """``G + xi`` with independent normal entries; ``E eps_t <= D E|xi|``.

    Args:
        deviation: of each entry.
    """

    deviation: float

    def __post_init__(self) -> None:
        at_least_zero("Noisy(deviation=...)", self.deviation)

    def at(self, problem: Problem, W: Any, G: Array, rng: np.random.Generator) -> Array:
        """G with noise."""
        return G + self.deviation * rng.standard_normal(G.shape)


@dataclass(frozen=True)
class Minibatch(Gradient):
    """The gradient over `size` terms of a finite sum, drawn without replacement at each iteration.

    Args:
        size: terms in a batch.
    """

    size: int

    def __post_init__(self) -> None:
        count("Minibatch(size=...)", self.size)

    def at(self, problem: Problem, W: Any, G: Array, rng: np.random.Generator) -> Array:
        """The mean gradient of a few terms.

        Args:
            problem: a finite sum.
            W: the point.
            G: the true gradient, not used.
            rng: draws the batch.

        Returns:
            An unbiased estimate of G.

        Raises:
            ArgumentError: the problem is no finite sum, or has fewer terms.
        """
        if not isinstance(problem, FiniteSum) or self.size > problem.terms:
            raise ArgumentError(
                f"`Minibatch(size={self.size})` needs a problem that is a sum of at least so many terms, not {problem!r}."
            )
        return problem.batch_gradient(W, rng.choice(problem.terms, self.size, replace=False))
