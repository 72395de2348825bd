"""Testbed f: the hidden layer of a small network."""

from __future__ import annotations

from typing import Self

import numpy as np

from theory.errors import ArgumentError
from theory.points import Array, Indices, real_array
from theory.problems.completion import low_rank
from theory.problems.problem import FiniteSum
from theory.sets import NuclearBall

TANH_BEND = 4 / (3 * np.sqrt(3))
"""``max |tanh''|``, at ``tanh^2 = 1/3``: 0.7698."""


class TanhNetwork(FiniteSum):
    """``L(W) = 1/(2n) sum_i (a^T tanh(W x_i) - y_i)^2`` on the nuclear ball, the output weights a fixed.

    Along D the curvature is ``mean [(a^T (tanh' o D x))^2 + (f - y) sum_j a_j tanh''_j (D x)_j^2]``. With ``tanh' <= 1``,
    ``|f| <= |a|_1`` and `TANH_BEND`:
    ``beta = |a|^2 lambda_max(mean x x^T) + TANH_BEND |a|_inf lambda_max(mean (|a|_1 + |y|) x x^T)``, on the whole space. An
    upper bound, not attained. ``0 <= L <= mean (|a|_1 + |y|)^2/2``.

    Args:
        a: output weights, ``(d,)``.
        X: inputs, ``(n, k)``.
        y: targets, ``(n,)``.
        radius: of the nuclear ball.
    """

    everywhere = True
    lowest = 0.0

    def __init__(self, a: Array, X: Array, y: Array, radius: float = 1.0) -> None:
        a, X, y = real_array("`a`", a, axes=1), real_array("`X`", X, axes=2), real_array("`y`", y, axes=1)
        if len(X) != len(y):
            raise ArgumentError(f"`X` and `y` must have one row an example, and have {len(X)} and {len(y)}.")
        self.a, self.X, self.y, self.terms = a, X, y, len(X)
        self.constraint = NuclearBall((len(a), X.shape[1]), radius)
        weighted = X * np.sqrt(np.abs(a).sum() + np.abs(y))[:, None]
        first, second = (np.linalg.norm(Z, 2) ** 2 / len(X) for Z in (X, weighted))
        self.highest = 0.5 * float(np.mean(np.square(np.abs(a).sum() + np.abs(y))))
        self.beta = float(a @ a * first + TANH_BEND * np.abs(a).max() * second)

    def loss(self, W: Array) -> float:
        """Half the mean squared error."""
        return 0.5 * float(np.mean(np.square(np.tanh(self.X @ W.T) @ self.a - self.y)))

    def batch_gradient(self, W: Array, rows: Indices) -> Array:
        """``mean (f - y) (a o tanh') x^T``."""
        X = self.X[rows]
        hidden = np.tanh(X @ W.T)
        error = hidden @ self.a - self.y[rows]
        return (error[:, None] * self.a * (1 - np.square(hidden))).T @ X / len(rows)

    @classmethod
    def draw(cls, seed: int = 0, shape: tuple[int, int] | None = None) -> Self:
        """Targets of a rank-2 network that lies in the ball, with noise on top."""
        rng = np.random.default_rng(seed)
        d, k = shape or (20, 30)
        X, a = rng.standard_normal((200, k)) / np.sqrt(k), rng.choice([-1.0, 1.0], d) / np.sqrt(d)
        planted = 2 * low_rank(rng, (d, k), rank=min(2, d, k))
        y = np.tanh(X @ planted.T) @ a + 0.05 * rng.standard_normal(len(X))
        return cls(a, X, y, float(np.linalg.svd(planted, compute_uv=False).sum()))
