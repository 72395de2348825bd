"""The Euclidean ball."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import numpy as np

from theory.points import Array
from theory.sets.convex_set import NormBall


class FrobeniusBall(NormBall):
    """``{X : |X|_F <= radius}``, for vectors and matrices: ``lmo(G) = -radius G / |G|_F``.

    Example:
        >>> FrobeniusBall(2, radius=5.0).lmo([3.0, 4.0]).tolist()
        [-3.0, -4.0]
    """

    @property
    def atom_rank(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """A vertex can be any direction."""
        return min(self.shape) if len(self.shape) == 2 else int(np.prod(self.shape))

    def lmo(self, G: Any) -> Array:
        """``-radius G / |G|_F``."""
        G = self.gradient(G)
        length = np.linalg.norm(G)
        if length == 0:  # every point is a minimiser; a fixed vertex is as good as any
            G, length = np.zeros(self.shape), 1.0
            G.flat[0] = 1.0
        return -self.radius * (G / length)

    def norm(self, X: Array) -> float:
        """``|X|_F``."""
        return float(np.linalg.norm(X))

    def dual_norm(self, G: Any) -> float:
        """``|G|_F``."""
        return float(np.linalg.norm(self.gradient(G)))

    @classmethod
    def examples(cls) -> Sequence[Self]:
        """A matrix ball and a vector ball."""
        return [cls((3, 4), radius=2.0), cls(5)]
