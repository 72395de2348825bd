"""Testbed a at scale: matrix completion whose points are never written out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from theory.errors import ArgumentError, at_least_zero, count
from theory.points import Array, Iterate, LowRank, dense
from theory.problems.completion import low_rank, observed
from theory.problems.observed_point import Entries, ObservedPoint, popular
from theory.problems.problem import Problem
from theory.sets import NuclearBall
from theory.sets.convex_set import matrix_shape


class SparseCompletion(Problem):
    """``L(W) = 1/2 sum_observed (W_ij - y)^2`` on the nuclear ball, with factors and sparse gradients.

    `Completion` on the same entries has the same losses, gradients and runs; this one needs memory for the observations and the
    factors alone. Repeated positions add their weights, ``sum_j 1/2 (x - y_j)^2 = n/2 (x - mean y)^2 + const``; the constant is
    dropped. beta is the largest multiplicity, and no less. Points are `ObservedPoint`; arrays are answered with arrays, which
    is for small ones.

    Args:
        rows: row of each observation, ``(n,)``.
        columns: its column, ``(n,)``.
        values: what was seen, ``(n,)``.
        shape: ``(d, k)``.
        radius: of the nuclear ball.

    Raises:
        ArgumentError: there is no observation, one lies outside the matrix or is not finite, or the three differ in length.

    Example:
        >>> problem = SparseCompletion([0, 1, 1], [1, 0, 0], [2.0, 3.0, 5.0], shape=(2, 3), radius=4.0)
        >>> problem.gradient(problem.start).toarray().tolist(), problem.beta
        ([[0.0, -2.0, 0.0], [-8.0, 0.0, 0.0]], 2.0)

    Source: Jaggi and Sulovsky 2010, A simple algorithm for nuclear norm regularized problems.
    """

    convex = True
    everywhere = True
    lowest = 0.0

    def __init__(
        self, rows: Sequence[int] | NDArray[Any], columns: Sequence[int] | NDArray[Any], values: Sequence[float] | Array,
        shape: tuple[int, int], radius: float,
    ) -> None:  # fmt: skip
        ball = NuclearBall(shape, radius)
        self.constraint, shape = ball, ball.shape
        i, j = (_positions(*named) for named in (("rows", rows, shape[0]), ("columns", columns, shape[1])))
        y = np.asarray(values, dtype=float)
        if not (i.shape == j.shape == y.shape) or not y.size:
            raise ArgumentError(
                "`rows`, `columns` and `values` must be as long as each other and not empty, "
                f"and have shapes {i.shape}, {j.shape} and {y.shape}."
            )
        if not np.isfinite(y).all():
            raise ArgumentError("`values` must be finite, and has nan or infinite entries: leave out what was not observed.")
        keys = i * shape[1] + j
        order = np.argsort(keys, kind="stable")
        keys, y = keys[order], y[order]
        del i, j, order
        first = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]]))
        self.multiplicities: Array | None = None
        self.beta = 1.0
        if len(first) < len(keys):
            self.multiplicities = np.diff(np.append(first, len(keys))).astype(float)
            self.beta = float(self.multiplicities.max())
            y, keys = np.add.reduceat(y, first) / self.multiplicities, keys[first]
        self.targets = y
        self.entries = Entries(*np.divmod(keys, shape[1]), shape)

    @property
    def start(self) -> ObservedPoint:
        """W_1 = 0."""
        return ObservedPoint.zero(self.entries)

    def point(self, start: Any) -> ObservedPoint:
        """A point of this problem, in factors.

        Args:
            start: an `ObservedPoint` of this problem, a `LowRank` or an array; None takes 0.

        Returns:
            The point.

        Raises:
            ArgumentError: it has another shape, entries that are not finite, or belongs to another problem.
        """
        if start is None:
            return self.start
        if isinstance(start, ObservedPoint) and start.entries is self.entries:
            return start
        if isinstance(start, Iterate):
            raise ArgumentError(
                f"`start` must be a point of this problem, and is {start!r}: give its factors, `start.factors()`."
            )
        if not isinstance(start, LowRank):
            U, s, Vt = np.linalg.svd(self.constraint.array("`start`", start), full_matrices=False)
            start = LowRank(U, s, Vt.T)
        if start.shape != self.constraint.shape:
            raise ArgumentError(f"`start` must have shape {self.constraint.shape}, and has {start.shape}.")
        return ObservedPoint.of(start, self.entries)

    def loss(self, W: Any) -> float:
        """``1/2 sum w (W_ij - y)^2``, w the multiplicities."""
        seen, total = self._seen(W), 0.0
        for _, of_block in self.entries.blocks:
            residual = seen[of_block] - self.targets[of_block]
            total += float(residual @ (residual if self.multiplicities is None else self.multiplicities[of_block] * residual))
        return total / 2

    def gradient(self, W: Any) -> Any:
        """``w (W_ij - y)`` at the observed entries and 0 elsewhere: a sparse matrix, or for an array an array."""
        data = self._seen(W) - self.targets
        if self.multiplicities is not None:
            data *= self.multiplicities
        G = self.entries.matrix(data)
        return G if isinstance(W, Iterate) else G.toarray()

    def line_curvature(self, direction: Array) -> float:
        """``sum w direction_ij^2``."""
        return self._bend(self._seen(direction))

    def segment_curvature(self, W: Any, V: Any) -> float:
        """``sum w (V_ij - W_ij)^2``."""
        if not isinstance(W, ObservedPoint):
            return self.line_curvature(dense(V) - W)
        return self._bend(self.entries.values(V, onto=W.values, share=-1.0))

    @property
    def centre(self) -> ObservedPoint:
        """0, in factors: nothing of the matrix's size is made."""
        return self.start

    def reach(self, W: Any) -> float:
        """``|W|_F``."""
        return float(np.sqrt(W.square)) if isinstance(W, ObservedPoint) else super().reach(W)

    def contains(self, W: Any, tolerance: float = 1e-9) -> bool:
        """``|W|_* <= radius (1 + tolerance)``, from the factors."""
        if not isinstance(W, ObservedPoint):
            return super().contains(W, tolerance)
        return W.nuclear_norm() <= self.constraint.radius * (1 + tolerance)

    @classmethod
    def from_matrix(cls, ratings: Any, radius: float) -> Self:
        """Completion from a sparse matrix: what it stores was observed, zeros that it stores too.

        Args:
            ratings: a scipy sparse matrix or array, ``(d, k)``; entries that it stores twice are one number in two parts, as
                always
                in scipy.
            radius: of the nuclear ball.

        Returns:
            The problem.

        Raises:
            ArgumentError: `ratings` is not sparse.
        """
        if not sparse.issparse(ratings):
            raise ArgumentError(
                f"`ratings` must be a scipy sparse matrix, and is {type(ratings).__name__}: "
                "give rows, columns and values to SparseCompletion(...)."
            )
        R: Any = sparse.csr_array(ratings, copy=True)
        R.sum_duplicates()
        rows = np.repeat(np.arange(R.shape[0]), np.diff(R.indptr))
        return cls(rows, R.indices, R.data, (R.shape[0], R.shape[1]), radius)

    @classmethod
    def skewed(
        cls, seed: int = 0, shape: tuple[int, int] = (6040, 3706), entries: int = 1_000_000, rank: int = 10, noise: float = 0.5
    ) -> Self:
        """Ratings as they are collected: some rows and columns have very many, most have few. The size of MovieLens-1M.

        Popularity is log-normal, independently for rows and columns; no position comes twice. Values are those of a matrix of
        rank `rank` with entries of variance 1, plus noise; the radius is the nuclear norm of that matrix.

        Args:
            seed: of the draws.
            shape: ``(d, k)``.
            entries: observations, at most a quarter of the matrix.
            rank: of the planted matrix.
            noise: standard deviation of what is added to its entries.

        Returns:
            The problem.

        Raises:
            ArgumentError: there are more observations than a quarter of the entries.
        """
        d, k = matrix_shape("SparseCompletion.skewed", shape)
        at_least_zero("noise", noise)
        if 4 * count("entries", entries) > d * k:
            raise ArgumentError(f"`entries` must be at most a quarter of {d} x {k}, and is {entries}: use `Completion`.")
        rng = np.random.default_rng(seed)
        keys = popular(rng, (d, k), entries)
        scale = count("rank", rank) ** -0.25
        A, B = scale * rng.standard_normal((d, rank)), scale * rng.standard_normal((k, rank))
        planted = LowRank(A, np.ones(rank), B)
        i, j = np.divmod(keys, k)
        del keys
        y = Entries(i, j, (d, k)).values(planted)
        y += noise * rng.standard_normal(entries)
        radius = ObservedPoint.zero(Entries(i[:0], j[:0], (d, k))).toward(planted, 1.0).nuclear_norm()
        return cls(i, j, y, (d, k), radius)

    @classmethod
    def draw(cls, seed: int = 0, shape: tuple[int, int] | None = None) -> Self:
        """What `Completion.draw` gives: 30 % of the entries of a matrix of rank 3, with the ball that just holds it."""
        rng = np.random.default_rng(seed)
        d, k = shape or (60, 50)
        Y = low_rank(rng, (d, k), rank=min(3, d, k))
        i, j = np.nonzero(observed(rng, (d, k)))
        made = cls(i, j, Y[i, j], (d, k), radius=float(np.linalg.svd(Y, compute_uv=False).sum()))
        made.lowest_is_minimum = True  # Y itself
        return made

    def _bend(self, seen: Array) -> float:
        return float(seen @ (seen if self.multiplicities is None else self.multiplicities * seen))

    def _seen(self, X: Any) -> Array:
        """``X_ij`` at the observed entries."""
        return (
            X.values if isinstance(X, ObservedPoint) else self.constraint.gradient(X)[self.entries.rows, self.entries.columns]
        )


def _positions(name: str, given: Any, size: int) -> NDArray[np.int64]:
    """Indices below `size`, as 64-bit integers so that products with the other side's size do not overflow."""
    array = np.asarray(given)
    if array.dtype.kind not in "iu" and array.size:
        raise ArgumentError(f"`{name}` must hold whole numbers, and holds {array.dtype}.")
    if array.size and not 0 <= array.min() <= array.max() < size:
        raise ArgumentError(
            f"`{name}` must lie in 0..{size - 1}, and reaches from {array.min()} to {array.max()}: mend `shape`."
        )
    return array.astype(np.int64)
