"""The simplex."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import numpy as np

from theory.errors import count, positive
from theory.points import Array
from theory.sets.convex_set import ConvexSet


class Simplex(ConvexSet):
    """``{x >= 0 : sum x_i = scale}`` in R^n, n >= 1; its vertices are ``scale e_i``.

    ``D = scale sqrt 2`` and, around the barycentre, ``R = scale sqrt((n - 1)/n)``: Jung's worst case ``R -> D/sqrt 2``.

    Args:
        size: n.
        scale: sum of the entries.

    Example:
        >>> Simplex(3).lmo([1.0, -4.0, 2.0]).tolist()
        [0.0, 1.0, 0.0]
    """

    def __init__(self, size: int, scale: float = 1.0) -> None:
        super().__init__(count("size", size))
        self.scale = positive("scale", scale)

    @property
    def centre(self) -> Array:
        """The barycentre."""
        return np.full(self.shape, self.scale / self.shape[0])

    @property
    def diameter(self) -> float:
        """``scale sqrt 2``; 0 for a single point."""
        return self.scale * float(np.sqrt(2)) if self.shape[0] > 1 else 0.0

    @property
    def radius(self) -> float:
        """``scale sqrt((n - 1)/n)``."""
        return self.scale * float(np.sqrt(1 - 1 / self.shape[0]))

    def lmo(self, G: Any) -> Array:
        """``scale e_i`` at the smallest ``G_i``."""
        V = np.zeros(self.shape)
        V[int(self.gradient(G).argmin())] = self.scale
        return V

    def support(self, G: Any) -> float:
        """``scale max_i G_i``."""
        return self.scale * float(self.gradient(G).max())

    def contains(self, X: Array, tolerance: float = 1e-9) -> bool:
        """Entries not below zero that sum to `scale`."""
        X = self.array("a point", X)
        return bool(X.min() >= -tolerance * self.scale and abs(X.sum() - self.scale) <= tolerance * self.scale)

    @classmethod
    def examples(cls) -> Sequence[Self]:
        """The probabilities, and a larger one."""
        return [cls(4), cls(3, scale=2.0)]

    def __repr__(self) -> str:
        return f"Simplex({self.shape[0]}, scale={self.scale:g})"


def project_onto_simplex(x: Array, scale: float) -> Array:
    """The nearest point of ``{y >= 0 : sum y_i = scale}``: ``max(x - theta, 0)`` with the theta that makes the sum right.

    Args:
        x: a vector.
        scale: the sum.

    Returns:
        A vector.

    Example:
        >>> project_onto_simplex(np.array([3.0, 1.0]), 2.0).tolist()
        [2.0, 0.0]

    Source: Held, Wolfe and Crowder 1974.
    """
    descending = np.sort(x)[::-1]
    thetas = (descending.cumsum() - scale) / np.arange(1, len(x) + 1)
    # The first entry always stays: x_1 > x_1 - scale, which rounding hides where x_1 is beyond 1e16 scales.
    kept = np.flatnonzero(descending > thetas)
    return np.maximum(x - thetas[kept[-1]], 0.0) if len(kept) else np.where(np.arange(len(x)) == x.argmax(), scale, 0.0)
