"""Testbed e: multinomial logistic regression."""

from __future__ import annotations

from typing import Self

import numpy as np
from scipy.special import logsumexp, softmax

from theory.errors import ArgumentError
from theory.points import Array, Indices, real_array
from theory.problems.completion import low_rank
from theory.problems.problem import FiniteSum
from theory.problems.projected_gradient import minimise
from theory.sets import NuclearBall


class Logistic(FiniteSum):
    """``L(W) = mean cross-entropy of softmax(X W^T)`` on the nuclear ball.

    The Hessian of the cross-entropy in the logits is at most 1/2 (Bohning 1992), so ``beta = lambda_max(X^T X/n)/2``. From W =
    0 the loss starts at log(classes), and ``L >= 0``. Convex, smooth everywhere.

    Args:
        X: features, ``(n, k)``.
        labels: classes from 0, ``(n,)``.
        classes: d, their number.
        radius: of the nuclear ball.
    """

    convex = True
    everywhere = True
    lowest = 0.0

    def __init__(self, X: Array, labels: Indices, classes: int, radius: float = 1.0) -> None:
        X, labels = real_array("`X`", X, axes=2), np.asarray(labels)
        if labels.shape != (len(X),) or labels.dtype.kind not in "iu" or not 0 <= labels.min() <= labels.max() < classes:
            raise ArgumentError(f"`labels` must be {len(X)} whole numbers from 0 to {classes - 1}, one for each row of `X`.")
        self.X, self.labels, self.terms = X, labels, len(X)
        self.onehot = np.eye(classes)[labels]
        self.constraint = NuclearBall((classes, X.shape[1]), radius)
        self.beta = float(np.linalg.norm(X, 2)) ** 2 / self.terms / 2

    def loss(self, W: Array) -> float:
        """``mean (logsumexp(logits) - logit of the label)``."""
        logits = self.X @ W.T
        return float(np.mean(np.asarray(logsumexp(logits, axis=1)) - logits[np.arange(self.terms), self.labels]))

    def batch_gradient(self, W: Array, rows: Indices) -> Array:
        """``(P - Y)^T X/n``."""
        X = self.X[rows]
        return (softmax(X @ W.T, axis=1) - self.onehot[rows]).T @ X / len(rows)

    def solution(self) -> Array | None:
        """By projected gradient."""
        return minimise(self)

    @classmethod
    def draw(cls, seed: int = 0, shape: tuple[int, int] | None = None) -> Self:
        """Labels drawn from a rank-2 model."""
        rng = np.random.default_rng(seed)
        classes, k = shape or (10, 20)
        X = rng.standard_normal((200, k))
        logits = X @ low_rank(rng, (classes, k), rank=min(2, classes, k)).T
        labels = (logits + rng.gumbel(size=logits.shape)).argmax(axis=1)
        return cls(X, labels, classes, radius=5.0)
