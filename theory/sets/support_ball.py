"""The spectral r-support ball: its vertices are the rank-r knots."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import numpy as np

from theory.errors import ArgumentError, count
from theory.points import Array, LowRank
from theory.sets.convex_set import NormBall, matrix_shape


class SupportBall(NormBall):
    """``conv{X : rank X <= r, |X|_F <= radius}``.

    With ``[G]_r`` the best rank-r approximation: ``lmo(G) = -radius [G]_r / |[G]_r|_F`` and the dual norm is
    ``|G|_{F,r} = (sum of the r largest squared singular values)^(1/2)``. For r = 1 it is the nuclear ball, for r = min(d, k)
    the Frobenius ball.

    Args:
        shape: ``(rows, columns)``.
        radius: Frobenius norm of the vertices.
        rank: r, of the vertices.

    Example:
        >>> V = SupportBall((2, 2), radius=5.0, rank=2).lmo(np.diag([3.0, 4.0]))
        >>> np.allclose(V.dense(), -np.diag([3.0, 4.0]))
        True

    Source: McDonald, Pontil and Stamos 2014, Spectral k-support norm regularization.
    """

    shape: tuple[int, int]

    def __init__(self, shape: Sequence[int], radius: float = 1.0, rank: int = 2) -> None:
        super().__init__(matrix_shape("SupportBall", shape), radius)
        self.atom_rank = count("rank", rank)
        if rank > min(self.shape):
            raise ArgumentError(
                f"`SupportBall(rank={rank})` exceeds the smaller side of {self.shape}: give at most {min(self.shape)}."
            )

    def lmo(self, G: Any) -> LowRank:
        """``-radius [G]_r / |[G]_r|_F``, in factors."""
        U, s, Vt = np.linalg.svd(self.gradient(G), full_matrices=False)
        r = self.atom_rank
        top = s[:r] if s[0] > 0 else np.ones(r)  # of a zero gradient every point is a minimiser
        return LowRank(-U[:, :r], self.radius * top / np.linalg.norm(top), Vt[:r].T)

    def norm(self, X: Array) -> float:
        """The spectral r-support norm.

        With singular values ``s_1 >= s_2 >= ...`` and the one q in 0..r-1 for which
        ``s_{r-q-1} > (1/(q+1)) sum_{i >= r-q} s_i >= s_{r-q}`` (and ``s_0 = inf``):
        ``|X|^2 = sum_{i < r-q} s_i^2 + (1/(q+1)) (sum_{i >= r-q} s_i)^2`` (Argyriou, Foygel and Srebro 2012, Proposition 2.1).
        Where rounding leaves no q strictly valid, the nearest one is taken.

        Args:
            X: a matrix.

        Returns:
            The norm.
        """
        s = np.linalg.svd(X, compute_uv=False)
        r = self.atom_rank
        tails = s[::-1].cumsum()[::-1]
        best, misfit = 0.0, np.inf
        for q in range(r):
            mean = tails[r - q - 1] / (q + 1)
            above = s[r - q - 2] if r - q - 2 >= 0 else np.inf
            wrong = max(mean - above, s[r - q - 1] - mean, 0.0)
            if wrong < misfit:
                best, misfit = float(np.sqrt(np.square(s[: r - q - 1]).sum() + (q + 1) * mean**2)), wrong
        return best

    def dual_norm(self, G: Any) -> float:
        """``|G|_{F,r}``."""
        return truncated_norm(self.gradient(G), self.atom_rank)

    @classmethod
    def examples(cls) -> Sequence[Self]:
        """Ranks from one to the full one."""
        return [cls((4, 3), rank=1), cls((5, 4), radius=2.0, rank=2), cls((3, 4), radius=0.5, rank=3)]


def truncated_norm(G: Array, rank: int) -> float:
    """``|G|_{F,r}``, the root of the sum of the r largest squared singular values.

    Args:
        G: a matrix.
        rank: r.

    Returns:
        The norm: the operator norm for r = 1, the Frobenius norm for full r.

    Example:
        >>> truncated_norm(np.diag([3.0, 4.0, 1.0]), 2)
        5.0
    """
    return float(np.linalg.norm(np.linalg.svd(G, compute_uv=False)[:rank]))
