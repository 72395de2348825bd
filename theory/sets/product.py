"""A product of sets, one per layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import numpy as np

from theory.errors import ArgumentError
from theory.points import Array, dense
from theory.sets.convex_set import ConvexSet
from theory.sets.frobenius_ball import FrobeniusBall
from theory.sets.nuclear_ball import NuclearBall
from theory.sets.simplex import Simplex


class Product(ConvexSet):
    """``K_1 x ... x K_n``. A point is one flat vector; `split` shows the layers in it, as views.

    The oracle and the gap separate over the layers, ``D^2 = sum D_l^2`` and ``R^2 = sum R_l^2``.

    Args:
        sets: one per layer.

    Example:
        >>> product = Product([Simplex(2), FrobeniusBall(1, radius=3.0)])
        >>> product.lmo([1.0, 0.0, 2.0]).tolist()
        [0.0, 1.0, -3.0]
    """

    def __init__(self, sets: Sequence[ConvexSet]) -> None:
        if not sets:
            raise ArgumentError("`Product(sets=[])` has no layer: give at least one set.")
        self.sets = tuple(sets)
        sizes = [int(np.prod(K.shape)) for K in sets]
        self._cuts = np.cumsum(sizes)[:-1]
        super().__init__(sum(sizes))
        self.atom_rank = sum(K.atom_rank for K in sets)

    def split(self, X: Array) -> list[Array]:
        """The layers of a point, each in its own shape."""
        return [block.reshape(K.shape) for K, block in zip(self.sets, np.split(X, self._cuts), strict=True)]

    def join(self, blocks: Sequence[Any]) -> Array:
        """A point from its layers."""
        return np.concatenate([dense(block).ravel() for block in blocks])

    @property
    def centre(self) -> Array:
        """The layers' centres."""
        return self.join([K.centre for K in self.sets])

    @property
    def diameter(self) -> float:
        """``(sum D_l^2)^(1/2)``."""
        return float(np.linalg.norm([K.diameter for K in self.sets]))

    @property
    def radius(self) -> float:
        """``(sum R_l^2)^(1/2)``."""
        return float(np.linalg.norm([K.radius for K in self.sets]))

    def lmo(self, G: Any) -> Array:
        """The layers' vertices."""
        return self.join([K.lmo(g) for K, g in zip(self.sets, self.split(self.gradient(G)), strict=True)])

    def support(self, G: Any) -> float:
        """The sum over the layers."""
        return sum(K.support(g) for K, g in zip(self.sets, self.split(self.gradient(G)), strict=True))

    def contains(self, X: Array, tolerance: float = 1e-9) -> bool:
        """Every layer in its set."""
        return all(K.contains(x, tolerance) for K, x in zip(self.sets, self.split(self.array("a point", X)), strict=True))

    def rank(self, X: Array) -> int:
        """The sum over the layers."""
        return sum(K.rank(x) for K, x in zip(self.sets, self.split(X), strict=True))

    @classmethod
    def examples(cls) -> Sequence[Self]:
        """Two adapted layers; and sets of three kinds."""
        return [
            cls([NuclearBall((3, 2)), NuclearBall((2, 4), radius=2.0)]),
            cls([Simplex(3), FrobeniusBall((2, 2)), NuclearBall((2, 2))]),
        ]

    def __repr__(self) -> str:
        return f"Product({list(self.sets)!r})"
