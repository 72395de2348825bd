"""The l1 ball."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import numpy as np

from theory.points import Array
from theory.sets.convex_set import NormBall


class L1Ball(NormBall):
    """``{x : sum |x_i| <= radius}``; its vertices are the signed unit vectors times the radius.

    Example:
        >>> L1Ball(3, radius=2.0).lmo([1.0, -4.0, 2.0]).tolist()
        [0.0, 2.0, 0.0]
    """

    def lmo(self, G: Any) -> Array:
        """``-radius sign(G_i) e_i`` at the largest ``|G_i|``."""
        G = self.gradient(G)
        V = np.zeros(self.shape)
        i = int(np.abs(G).argmax())
        V.flat[i] = self.radius if G.flat[i] < 0 else -self.radius
        return V

    def rank(self, X: Array) -> int:
        """Non-zero entries."""
        return int(np.count_nonzero(X))

    def norm(self, X: Array) -> float:
        """``sum |x_i|``."""
        return float(np.abs(X).sum())

    def dual_norm(self, G: Any) -> float:
        """``max |G_i|``."""
        return float(np.abs(self.gradient(G)).max())

    @classmethod
    def examples(cls) -> Sequence[Self]:
        """A unit ball and a larger one, of matrices."""
        return [cls(4), cls((2, 3), radius=3.0)]
