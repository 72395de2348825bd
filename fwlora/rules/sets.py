"""The sets that a Frank-Wolfe chain stays in: balls around the original weights, one a site.

Their norms are unitarily invariant, so everything is told by singular values: an SVD of the factors' r x r shadow will do
(`linalg.product_spectrum`), and a matrix of the weights' size is never needed.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from fwlora.errors import ArgumentError


class Ball(ABC):
    """``{W : |W - W_0| <= radius}`` around the original weights ``W_0``, in a norm of the singular values.

    Singular values come largest first, in any precision and on any device; sums over them are taken in float64.

    Attributes:
        radius: of the ball, in its own norm. The norm is nowhere below Frobenius' and equals it at the vertices, so this is the
            Frobenius circumradius too.
    """

    radius: float

    def __post_init__(self) -> None:
        radius = self.radius
        if isinstance(radius, bool) or not isinstance(radius, int | float) or not 0 < radius < math.inf:
            raise ArgumentError(f"`{type(self).__name__}(radius=...)` takes a finite number above 0, and got {radius!r}.")

    @property
    @abstractmethod
    def atom_rank(self) -> int:
        """Rank of a vertex, and so of a link that may be one."""

    @abstractmethod
    def norm(self, S: Tensor) -> float:
        """The norm of a matrix with singular values S."""

    @abstractmethod
    def dual_norm(self, S: Tensor) -> float:
        """``max <G, X>`` over ``|X| <= 1``, for a G with singular values S."""

    @abstractmethod
    def vertex_weights(self, S: Tensor) -> Tensor:
        """What the linear minimisation oracle answers: ``lmo(G) = -radius U diag(w) V^T`` for ``G = U diag(S) V^T``.

        Args:
            S: singular values of G.

        Returns:
            w, as long as S, zero beyond the atom rank. Of a zero G every point is a minimiser: the first atoms are taken.
        """

    def contains(self, S: Tensor, tolerance: float = 1e-6) -> bool:
        """Whether ``W_0 + X`` lies in the ball, up to a relative `tolerance`, for an X with singular values S."""
        return self.norm(S) <= self.radius * (1 + tolerance)


@dataclass(frozen=True)
class NuclearBall(Ball):
    """The sum of the singular values bounded: its vertices have rank one (Jaggi 2013, section 4.3).

    Args:
        radius: bound of the nuclear norm ``|W - W_0|_*``.

    Example:
        >>> ball, S = NuclearBall(radius=2.0), torch.tensor([4.0, 3.0])
        >>> ball.norm(S), ball.dual_norm(S), ball.vertex_weights(S).tolist()
        (7.0, 4.0, [1.0, 0.0])
    """

    radius: float

    @property
    def atom_rank(self) -> int:
        """1."""
        return 1

    def norm(self, S: Tensor) -> float:
        """``|X|_* = sum S``."""
        return _numbers(S).sum().item()

    def dual_norm(self, S: Tensor) -> float:
        """``|G|_op = S_1``."""
        return _numbers(S)[:1].sum().item()

    def vertex_weights(self, S: Tensor) -> Tensor:
        """1 and zeros: ``lmo(G) = -radius u_1 v_1^T``."""
        weights = torch.zeros_like(S)
        weights[:1] = 1
        return weights


@dataclass(frozen=True)
class SupportBall(Ball):
    """``conv{X : rank X <= r, |X|_F <= radius}``: its vertices are the rank-r links (McDonald, Pontil and Stamos 2014).

    For r = 1 it is the nuclear ball, for full r the Frobenius ball.

    Args:
        radius: Frobenius norm of the vertices.
        rank: r, of the vertices; LoRA's own rank, or less.

    Example:
        >>> ball, S = SupportBall(radius=2.0, rank=2), torch.tensor([4.0, 3.0, 1.0])
        >>> ball.dual_norm(S), [round(w, 6) for w in ball.vertex_weights(S).tolist()]
        (5.0, [0.8, 0.6, 0.0])
        >>> ball.norm(S[:2])
        5.0
    """

    radius: float
    rank: int

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.rank, bool) or not isinstance(self.rank, int) or self.rank < 1:
            raise ArgumentError(
                f"`SupportBall(rank=...)` takes the rank of a vertex, a whole number of at least 1, and got {self.rank!r}."
            )

    @property
    def atom_rank(self) -> int:
        """`rank`."""
        return self.rank

    def norm(self, S: Tensor) -> float:
        """The spectral r-support norm, ``max <S, T>`` over T with ``|T|_{F,r} <= 1``.

        With ``head_j^2`` the sum of the j largest squares and ``mean_j = (sum_{i > j} S_i)/(r - j)``::

            |X|^2 = max_j  head_j^2 + (r - j) mean_j^2      over j < r with j = 0 or S_j >= mean_j.

        For such a j the values ``S_1, ..., S_j, mean_j, mean_j, ...`` come in falling order, so that over their own r-norm they
        are a T, and the square is what T gives: none is too large. One of them is attained (Argyriou, Foygel and Srebro 2012,
        Proposition 2.1, with k = r and their r = r - j - 1).

        Args:
            S: singular values of X. With no more than r of them the norm is Frobenius'.

        Returns:
            The norm.
        """
        S = _numbers(S)
        r = min(self.rank, len(S))
        if r == 0 or S[0] == 0:
            return 0.0
        top, S = S[0].item(), S / S[0]  # squares of the smallest and largest numbers fit too
        left = torch.arange(r, 0, -1)  # r - j
        means = S.flip(0).cumsum(0).flip(0)[:r] / left
        heads = torch.cat([S.new_zeros(1), S.square().cumsum(0)])[:r]
        # S_j >= mean_j, and nothing is asked of j = 0; nan is let through to the answer.
        ordered = ~(means > torch.cat([S.new_tensor([math.inf]), S])[:r])
        return top * (heads + left * means.square())[ordered].max().sqrt().item()

    def dual_norm(self, S: Tensor) -> float:
        """``|G|_{F,r}``, the root of the sum of the r largest squares."""
        return math.hypot(*_numbers(S)[: self.rank].tolist())

    def vertex_weights(self, S: Tensor) -> Tensor:
        """``S_i/|G|_{F,r}`` for i <= r, then zeros: ``lmo(G) = -radius [G]_r/|[G]_r|_F``."""
        weights = torch.zeros_like(S)
        top = _numbers(S)[: self.rank]
        top = torch.ones_like(top) if len(top) and top[0] == 0 else top / top[:1]
        weights[: self.rank] = (top / torch.linalg.vector_norm(top)).to(S)
        return weights


def _numbers(S: Tensor) -> Tensor:
    return S.detach().cpu().double()
