"""A matrix that is known where it was observed: factors, and their values on a fixed set of entries."""

from __future__ import annotations

import copy
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from theory.points import Array, Iterate, LowRank

BLOCK = 1 << 15
"""Entries worked on at a time: what a pass computes on the way stays in the cache."""


class Entries:
    """Positions in a matrix, row by row: what gradients, targets and points of one problem share.

    Args:
        rows: row of each position, ascending.
        columns: its column; within a row ascending, and no position twice.
        shape: ``(d, k)``.
    """

    def __init__(self, rows: NDArray[np.integer], columns: NDArray[np.integer], shape: tuple[int, int]) -> None:
        self.shape = shape
        self.counts = np.bincount(rows, minlength=shape[0])
        pointers = np.concatenate([[0], np.cumsum(self.counts)])
        # Indices of 32 bits where they suffice: products are bound by memory.
        kind = np.int32 if max(*shape, len(columns)) < np.iinfo(np.int32).max else np.int64
        data = np.empty(0)
        self._structure: Any = sparse.csr_array(shape)
        self._structure.data, self._structure.indices = data, columns.astype(kind)
        self._structure.indptr = pointers.astype(kind)
        # Every gradient shares them: a change in place would be a change of the problem.
        self._structure.indices.flags.writeable = self._structure.indptr.flags.writeable = False
        edges = np.unique(np.searchsorted(pointers, [*range(0, len(columns), BLOCK), len(columns)]))
        self.blocks = [(slice(int(a), int(b)), slice(int(pointers[a]), int(pointers[b]))) for a, b in pairwise(edges)]

    def __len__(self) -> int:
        return len(self.columns)

    @property
    def columns(self) -> NDArray[np.integer]:
        """The column of each position."""
        return self._structure.indices

    @property
    def rows(self) -> NDArray[np.integer]:
        """The row of each position."""
        return np.repeat(np.arange(self.shape[0]), self.counts)

    @cached_property
    def transposed(self) -> tuple[Entries, NDArray[np.integer]]:
        """The positions of the transpose, and which of these each of them is."""
        rows = self.rows
        order = np.lexsort((rows, self.columns))
        return Entries(self.columns[order], rows[order], (self.shape[1], self.shape[0])), order

    def matrix(self, data: Array) -> sparse.csr_array:
        """The sparse matrix with these values at the positions; its structure is shared, so only `data` is new."""
        made = copy.copy(self._structure)
        made.data = data
        return made

    def holds(self, G: Any) -> bool:
        """Whether G is a sparse matrix made by `matrix`."""
        return sparse.issparse(G) and G.format == "csr" and G.indices is self.columns

    def values(self, X: LowRank, onto: Array | None = None, share: float = 1.0) -> Array:
        """``share * onto + (U diag(s) V^T)_ij`` at every position.

        Args:
            X: a matrix in factors, of this shape.
            onto: values to add to, ``(n,)``; None adds to nothing.
            share: of `onto`.

        Returns:
            ``(n,)``, a new array; in memory nothing else of that size is made.
        """
        left, columns, found = X.U * X.s, self.columns, np.empty(len(self))
        if X.rank == 1:
            u, v = left[:, 0], np.ascontiguousarray(X.V[:, 0])
            for of_rows, of_block in self.blocks:
                block = found[of_block]
                np.take(v, columns[of_block], out=block, mode="clip")
                # Rows are in order, so that u_i is repeated and not looked up.
                block *= np.repeat(u[of_rows], self.counts[of_rows])
        else:
            pointers = self._structure.indptr
            for i in np.flatnonzero(self.counts):
                of_row = slice(pointers[i], pointers[i + 1])
                np.matmul(X.V.take(columns[of_row], axis=0), left[i], out=found[of_row])
        if onto is not None:
            for _, of_block in self.blocks:
                found[of_block] += share * onto[of_block]
        return found


class ObservedPoint(Iterate):
    """``W = sum_b c_b X_b`` in factors, with ``W_ij`` at the observed entries and ``|W|_F^2`` beside them.

    A step costs a few passes over the observed entries: their values and the norm follow from the last ones, never from the
    factors. Atoms are shared between the points of a run, which do not change them.

    Args:
        entries: the observed positions.
        atoms: the ``X_b``.
        coefficients: the ``c_b``, ``(len(atoms),)``.
        values: W at the positions, ``(n,)``.
        square: ``|W|_F^2``.

    Example:
        >>> entries = Entries(np.array([0, 1]), np.array([1, 0]), (2, 2))
        >>> V = LowRank(np.array([[1.0], [0.0]]), np.array([3.0]), np.array([[0.6], [0.8]]))
        >>> W = ObservedPoint.zero(entries).toward(V, 0.5)
        >>> np.allclose(W.values, W.dense()[[0, 1], [1, 0]]), bool(np.isclose(W.square, np.square(W.dense()).sum()))
        (True, True)
    """

    def __init__(self, entries: Entries, atoms: tuple[LowRank, ...], coefficients: Array, values: Array, square: float) -> None:
        self.entries, self.atoms, self.coefficients = entries, atoms, coefficients
        self.values, self.square = values, square
        self._met: tuple[LowRank, float] | None = None

    @classmethod
    def zero(cls, entries: Entries) -> ObservedPoint:
        """The matrix 0."""
        return cls(entries, (), np.zeros(0), np.zeros(len(entries)), 0.0)

    @classmethod
    def of(cls, X: LowRank, entries: Entries) -> ObservedPoint:
        """A matrix in factors, its values at the positions computed once."""
        return cls(entries, (X,), np.ones(1), entries.values(X), X.norm() ** 2)

    def inner(self, G: Any) -> float:
        """``<G, W>``: a sum over the observed entries where G has no others, else from the factors."""
        if self.entries.holds(G):
            return float(G.data @ self.values)
        return sum(float(c) * X.inner(G) for c, X in zip(self.coefficients, self.atoms, strict=True))

    def toward(self, V: LowRank, eta: float) -> ObservedPoint:
        """``(1 - eta) W + eta V``; ``|.|_F^2 = (1 - eta)^2 |W|^2 + 2 eta (1 - eta) <W, V> + eta^2 |V|^2``."""
        if eta == 0:
            return self
        if eta == 1:
            return ObservedPoint.of(V, self.entries)
        values = self.entries.values(LowRank(V.U, eta * V.s, V.V), onto=self.values, share=1 - eta)
        square = (1 - eta) ** 2 * self.square + 2 * eta * (1 - eta) * self._meets(V) + (eta * V.norm()) ** 2
        return ObservedPoint(self.entries, (*self.atoms, V), np.append((1 - eta) * self.coefficients, eta), values, square)

    def distance(self, V: LowRank) -> float:
        """``sqrt(|V|^2 - 2 <W, V> + |W|^2)``."""
        return float(np.sqrt(max(0.0, V.norm() ** 2 - 2 * self._meets(V) + self.square)))

    def rank(self) -> int:
        """The factors' number of columns, or d or k if that is less."""
        return min(sum(X.rank for X in self.atoms), *self.entries.shape)

    def factors(self) -> LowRank:
        """W as one matrix in factors, the atoms side by side."""
        if not self.atoms:
            return LowRank(np.zeros((self.entries.shape[0], 0)), np.zeros(0), np.zeros((self.entries.shape[1], 0)))
        s = np.concatenate([c * X.s for c, X in zip(self.coefficients, self.atoms, strict=True)])
        return LowRank(np.hstack([X.U for X in self.atoms]), s, np.hstack([X.V for X in self.atoms]))

    def decomposed(self) -> LowRank:
        """The singular value decomposition of W, from QR factors of the two sides; what is rounding is left out."""
        X = self.factors()
        if not self.atoms:
            return X
        (Qu, Ru), (Qv, Rv) = np.linalg.qr(X.U), np.linalg.qr(X.V)
        U, s, Vt = np.linalg.svd((Ru * X.s) @ Rv.T, full_matrices=False)
        r = int(np.count_nonzero(s > max(self.entries.shape) * np.finfo(float).eps * s[0]))
        return LowRank(Qu @ U[:, :r], s[:r], Qv @ Vt[:r].T)

    def nuclear_norm(self) -> float:
        """``|W|_*``."""
        return float(self.decomposed().s.sum())

    def dense(self) -> Array:
        """The matrix."""
        return self.factors().dense()

    def _meets(self, V: LowRank) -> float:
        """``<W, V> = sum_b c_b <X_b, V>``; a step asks for it twice."""
        if self._met is None or self._met[0] is not V:
            met = sum(float(c) * X.meets(V) for c, X in zip(self.coefficients, self.atoms, strict=True))
            self._met = (V, met)
        return self._met[1]

    def __repr__(self) -> str:
        return f"ObservedPoint(rank <= {self.rank()}, {len(self.entries)} entries of {self.entries.shape})"


def popular(rng: np.random.Generator, shape: tuple[int, int], entries: int) -> NDArray[np.int64]:
    """Distinct positions by log-normal popularity of rows and columns: drawn until there are enough, then thinned at random.

    Args:
        rng: draws.
        shape: ``(d, k)``.
        entries: how many; well below ``d k``.

    Returns:
        ``i k + j`` of each, ascending.
    """
    edges = [np.cumsum(rng.lognormal(sigma=sigma, size=size)) for sigma, size in zip((1.0, 1.5), shape, strict=True)]
    keys = np.empty(0, dtype=np.int64)
    while len(keys) < entries:
        more = int(1.3 * (entries - len(keys))) + 16
        i, j = (np.minimum(np.searchsorted(e, rng.random(more) * e[-1]), len(e) - 1) for e in edges)
        keys = np.unique(np.concatenate([keys, i * shape[1] + j]))
    return np.sort(rng.choice(keys, entries, replace=False))
