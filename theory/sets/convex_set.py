"""What a constraint set can say of itself."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any, Self

import numpy as np

from theory.errors import ArgumentError, count, positive
from theory.points import Array, LowRank, dense, real_array


class ConvexSet(ABC):
    """A compact convex set K of arrays of one shape.

    Args:
        shape: of its points.

    Attributes:
        atom_rank: how much one vertex adds to `rank` at the most.
    """

    atom_rank: int = 1

    def __init__(self, shape: Sequence[int] | int) -> None:
        sizes = tuple(shape) if isinstance(shape, Iterable) else (shape,)
        self.shape = tuple(count("shape", size) for size in sizes)

    @property
    def centre(self) -> Array:
        """The circumcentre c, from which K reaches no farther than `radius`.

        The balls are centred at zero: for a ball around weights W_0, write the loss in ``W - W_0``.
        """
        return np.zeros(self.shape)

    @property
    @abstractmethod
    def diameter(self) -> float:
        """``D = max |X - Y|_F`` over K."""

    @property
    @abstractmethod
    def radius(self) -> float:
        """``R = min_c max_X |X - c|_F``, the circumradius; ``D/2 <= R <= D/sqrt 2`` (Jung)."""

    @abstractmethod
    def lmo(self, G: Any) -> Array | LowRank:
        """The linear minimisation oracle: a vertex ``V`` with ``<G, V> = min_K <G, .>``."""

    @abstractmethod
    def support(self, G: Any) -> float:
        """``max_{V in K} <G, V>``, so that ``-support(-G) = <G, lmo(G)>``."""

    @abstractmethod
    def contains(self, X: Array, tolerance: float = 1e-9) -> bool:
        """Whether X lies in K, up to a relative `tolerance`."""

    def rank(self, X: Array) -> int:
        """Fewest atoms that X can be made of: the rank of a matrix, the non-zeros of a vector."""
        return int(np.linalg.matrix_rank(X)) if len(self.shape) == 2 else int(np.count_nonzero(X))

    def sample(self, rng: np.random.Generator) -> Array:
        """A random point: a vertex half of the time, else a random mixture of a few."""
        weights = rng.dirichlet(np.ones(rng.integers(2, 5))) if rng.random() < 0.5 else np.ones(1)
        vertices = [dense(self.lmo(rng.standard_normal(self.shape))) for _ in weights]
        return np.tensordot(weights, np.stack(vertices), axes=1)

    @classmethod
    @abstractmethod
    def examples(cls) -> Sequence[Self]:
        """Small ones to try things on."""

    def gradient(self, G: Any) -> Array:
        """`G` as a float64 array of this set's shape; an error says what is wrong with it."""
        return self.array("a gradient", G)

    def array(self, what: str, X: Any) -> Array:
        """`X` as a float64 array of this set's shape, and what it is called where it is none."""
        return real_array(f"{what} for {self!r}", X, shape=self.shape)

    def __repr__(self) -> str:
        return f"{type(self).__name__}{self.shape}"


class NormBall(ConvexSet):
    """``{X : |X| <= radius}`` of a norm that is nowhere below the Frobenius norm and equals it at some vertices.

    Its Frobenius diameter is then twice its radius: ``|X - Y|_F <= |X - Y| <= 2 radius``, attained by a vertex and its
    negative.

    Args:
        shape: of its points.
        radius: of the ball, in its own norm; the circumradius too.
    """

    def __init__(self, shape: Sequence[int] | int, radius: float = 1.0) -> None:
        super().__init__(shape)
        self._radius = positive("radius", radius)

    @property
    def diameter(self) -> float:
        """Twice the radius."""
        return 2 * self._radius

    @property
    def radius(self) -> float:
        """The radius, as given."""
        return self._radius

    @abstractmethod
    def norm(self, X: Array) -> float:
        """The norm whose ball this is."""

    @abstractmethod
    def dual_norm(self, G: Any) -> float:
        """``max <G, X>`` over the norm's unit ball."""

    def support(self, G: Any) -> float:
        """``radius * dual_norm(G)``."""
        return self._radius * self.dual_norm(G)

    def contains(self, X: Array, tolerance: float = 1e-9) -> bool:
        """``|X| <= radius (1 + tolerance)``."""
        return self.norm(self.array("a point", X)) <= self._radius * (1 + tolerance)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.shape}, radius={self._radius:g})"


def matrix_shape(name: str, shape: Sequence[int]) -> tuple[int, int]:
    """`shape` of a matrix.

    Args:
        name: the set's class, for the message.
        shape: rows and columns.

    Returns:
        The two.

    Raises:
        ArgumentError: there are not two.
    """
    sizes = tuple(shape) if isinstance(shape, Iterable) else (shape,)
    if len(sizes) != 2:
        raise ArgumentError(f"`{name}(shape=...)` is a set of matrices: give (rows, columns), not {shape!r}.")
    return sizes[0], sizes[1]
