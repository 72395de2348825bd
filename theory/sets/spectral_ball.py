"""The spectral-norm ball: its vertices are the scaled orthogonal matrices, as in Muon."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import numpy as np

from theory.errors import positive
from theory.points import Array
from theory.sets.convex_set import ConvexSet, matrix_shape


class SpectralBall(ConvexSet):
    """``{X : |X|_op <= bound}``, the largest singular value bounded.

    With ``G = U S V^T``: ``lmo(G) = -bound U V^T`` (full rank) and ``support(G) = bound |G|_*``. A vertex has Frobenius norm
    ``bound sqrt(min(d, k))``, which is the circumradius; the diameter is twice that.

    Args:
        shape: ``(rows, columns)``.
        bound: of the operator norm. Not the circumradius, hence not called `radius`.

    Example:
        >>> SpectralBall((2, 2), bound=3.0).lmo(np.diag([2.0, -1.0])).tolist()
        [[-3.0, 0.0], [0.0, 3.0]]
    """

    shape: tuple[int, int]

    def __init__(self, shape: Sequence[int], bound: float = 1.0) -> None:
        super().__init__(matrix_shape("SpectralBall", shape))
        self.bound = positive("bound", bound)
        self.atom_rank = min(self.shape)

    @property
    def diameter(self) -> float:
        """``2 bound sqrt(min(d, k))``."""
        return 2 * self.radius

    @property
    def radius(self) -> float:
        """``bound sqrt(min(d, k))``."""
        return self.bound * float(np.sqrt(min(self.shape)))

    def lmo(self, G: Any) -> Array:
        """``-bound U V^T``."""
        U, _, Vt = np.linalg.svd(self.gradient(G), full_matrices=False)
        return -self.bound * U @ Vt + 0.0  # no negative zeros

    def support(self, G: Any) -> float:
        """``bound |G|_*``."""
        return self.bound * float(np.linalg.svd(self.gradient(G), compute_uv=False).sum())

    def contains(self, X: Array, tolerance: float = 1e-9) -> bool:
        """``|X|_op <= bound (1 + tolerance)``."""
        return bool(np.linalg.norm(self.array("a point", X), 2) <= self.bound * (1 + tolerance))

    @classmethod
    def examples(cls) -> Sequence[Self]:
        """A wide and a tall one."""
        return [cls((3, 4)), cls((5, 2), bound=2.0)]

    def __repr__(self) -> str:
        return f"SpectralBall({self.shape}, bound={self.bound:g})"
