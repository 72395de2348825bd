"""What may follow a Frank-Wolfe step: any move inside the set that lowers the loss further."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np

from theory.errors import ArgumentError, count
from theory.points import Array, LowRank
from theory.problems.observed_point import Entries, ObservedPoint
from theory.problems.problem import Problem
from theory.problems.sparse_completion import SparseCompletion

BATCH = 256
"""Small systems solved together."""


class Correction(ABC):
    """Lowers the loss after a step.

    ``L(W_{t+1}) <= L(W_t + eta_t (V_t - W_t))`` keeps the one-step inequality, and with it Theorems A, B, D and the convex
    rate; Theorem C, which follows the distance to the centre, is lost.
    """

    @abstractmethod
    def apply(self, problem: Problem, W: Any, t: int) -> Any:
        """A point of the set with ``problem.loss`` at most that of W; W itself where nothing better was found."""


@dataclass(frozen=True)
class FactorSweep(Correction):
    """Alternating least squares on the factors of a completion, kept in the nuclear ball.

    From ``W = P Q^T``, each row of P and then of Q solves ``min 1/2 sum w (<p, q_j> - y_ij)^2 + ridge/2 |p|^2``. As
    ``|W|_* = min (|P|^2 + |Q|^2)/2``, the ridge is the multiplier of the ball: at a solution on its boundary
    ``-<G, W> = ridge |W|_*``, where it starts, and a sweep that ends with another norm than the radius corrects it. The new
    point is scaled to the best multiple that the ball holds, and taken if its loss is lower.

    `python -m experiments completion-speed` measures what a sweep costs and how far below plain iterations it goes.

    Args:
        sweeps: over both factors, each time.
        every: iterations from one time to the next.
        rank: at most so many columns; None keeps the numerical rank of W.

    Source: Hastie, Mazumder, Lee and Zadeh 2015, Matrix completion and low-rank SVD via fast alternating least squares.
    """

    sweeps: int = 1
    every: int = 20
    rank: int | None = None

    def __post_init__(self) -> None:
        count("FactorSweep(sweeps=...)", self.sweeps)
        count("FactorSweep(every=...)", self.every)
        if self.rank is not None:
            count("FactorSweep(rank=...)", self.rank)

    def apply(self, problem: Problem, W: Any, t: int) -> Any:
        """The best point of the sweeps, after each `every`-th iteration.

        Args:
            problem: a `SparseCompletion`.
            W: one of its points.
            t: the iteration, from 1.

        Returns:
            A point of the ball whose loss is lower; W itself where no sweep found one.

        Raises:
            ArgumentError: the problem or its point is of another kind.
        """
        if not (isinstance(problem, SparseCompletion) and isinstance(W, ObservedPoint)):
            raise ArgumentError(
                f"`FactorSweep()` corrects an ObservedPoint of a SparseCompletion, not {problem!r}: leave it out."
            )
        if t % self.every or not (X := W.decomposed()).rank:
            return W
        best, lowest, radius = W, problem.loss(W), problem.constraint.radius
        # Above 0 where the ball does not bind: a row with fewer observations than columns has a singular system.
        ridge = max(-W.inner(problem.gradient(W)) / radius, 1e-8 * float(X.s[0]))
        for _ in range(self.sweeps):
            X, norm = _sweep(problem, LowRank(X.U[:, : self.rank], X.s[: self.rank], X.V[:, : self.rank]), ridge)
            if not X.rank:
                break
            trial = ObservedPoint.of(X, problem.entries)
            if (loss := problem.loss(trial)) < lowest:
                best, lowest = trial, loss
            ridge *= (norm / radius) ** 2
        return best


def _sweep(problem: SparseCompletion, X: LowRank, ridge: float) -> tuple[LowRank, float]:
    """One sweep over P and Q: the best multiple of ``P Q^T`` that the ball holds, decomposed, and ``|P Q^T|_*``."""
    entries, w, y = problem.entries, problem.multiplicities, problem.targets
    turned, order = entries.transposed
    Q = X.V * np.sqrt(X.s)
    P = _least_squares(entries, Q, y, w, ridge)
    Q = _least_squares(turned, P, y[order], None if w is None else w[order], ridge)
    product = ObservedPoint.of(LowRank(P, np.ones(X.rank), Q), entries)
    X, v = product.decomposed(), product.values
    # L(c P Q^T) = 1/2 sum w (c v - y)^2 falls until c = <v, w y>/<v, w v>; |c P Q^T|_* <= radius allows c <= radius/|P Q^T|_*.
    wv = v if w is None else w * v
    norm, bend = float(X.s.sum()), float(v @ wv)
    scale = min(float(y @ wv) / bend if bend > 0 else 0.0, problem.constraint.radius / norm if norm > 0 else 0.0)
    return LowRank(X.U, max(scale, 0.0) * X.s, X.V), norm


def _least_squares(entries: Entries, Q: Array, y: Array, w: Array | None, ridge: float) -> Array:
    """``(Q_i^T diag(w) Q_i + ridge I) p_i = Q_i^T diag(w) y_i`` for every row i, `Q_i` the rows of Q that it observed."""
    r = Q.shape[1]
    P, pointers = np.zeros((entries.shape[0], r)), np.concatenate([[0], np.cumsum(entries.counts)])
    seen = np.flatnonzero(entries.counts)
    for begin in range(0, len(seen), BATCH):
        rows = seen[begin : begin + BATCH]
        systems, right = np.empty((len(rows), r, r)), np.empty((len(rows), r, 1))
        for number, i in enumerate(rows):
            of_row = slice(pointers[i], pointers[i + 1])
            A = Q.take(entries.columns[of_row], axis=0)
            weighted = A if w is None else A * w[of_row, None]
            np.matmul(weighted.T, A, out=systems[number])
            np.matmul(weighted.T, y[of_row, None], out=right[number])
        systems[:, range(r), range(r)] += ridge
        P[rows] = np.linalg.solve(systems, right)[:, :, 0]
    return P
