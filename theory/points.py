"""Points of a set, dense or structured, and the three things that Frank-Wolfe does with them.

A method is written once, with `inner`, `toward` and `distance`; what a point is made of (an array, factors, factors with their
values on observed entries) decides how they are computed.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from theory.errors import ArgumentError

Array: TypeAlias = NDArray[np.float64]
"""Real numbers in an array, as a point, as a gradient, or as one number an iteration."""
Indices: TypeAlias = NDArray[np.int64]


class Iterate(ABC):
    """A point that is not an array: it says itself what it does in a Frank-Wolfe step. Never changed in place."""

    @abstractmethod
    def inner(self, G: Any) -> float:
        """``<G, W>`` with a gradient of the problem that this point belongs to."""

    @abstractmethod
    def toward(self, V: LowRank, eta: float) -> Iterate:
        """``(1 - eta) W + eta V``."""

    @abstractmethod
    def distance(self, V: LowRank) -> float:
        """``|V - W|_F``."""

    @abstractmethod
    def rank(self) -> int:
        """An upper bound of the matrix's rank."""

    @abstractmethod
    def dense(self) -> Array:
        """The matrix. For looking at small ones."""


@dataclass(frozen=True, eq=False)
class LowRank:
    """A matrix in factors, ``U diag(s) V^T``: a vertex of a spectral set.

    Args:
        U: left factor, ``(d, r)``.
        s: weights, ``(r,)``.
        V: right factor, ``(k, r)``.

    Example:
        >>> X = LowRank(np.eye(3)[:, :1], np.array([2.0]), np.eye(2)[:, :1])
        >>> inner(np.ones((3, 2)), X), float(np.vdot(np.ones((3, 2)), X.dense()))
        (2.0, 2.0)
    """

    U: Array
    s: Array
    V: Array

    @property
    def shape(self) -> tuple[int, int]:
        """``(d, k)``."""
        return self.U.shape[0], self.V.shape[0]

    @property
    def rank(self) -> int:
        """The number of columns."""
        return len(self.s)

    def inner(self, G: Any) -> float:
        """``<G, X> = sum_i s_i u_i^T G v_i`` for an array, a sparse matrix or a linear operator."""
        return float(np.einsum("ir,r,ir->", self.U, self.s, G @ self.V))

    def meets(self, other: LowRank) -> float:
        """``<X, Y> = s^T ((U^T U_Y) o (V^T V_Y)) s_Y``, from products of factors."""
        return float(self.s @ ((self.U.T @ other.U) * (self.V.T @ other.V)) @ other.s)

    def norm(self) -> float:
        """``|X|_F``."""
        return float(np.sqrt(max(0.0, self.meets(self))))

    def dense(self) -> Array:
        """The matrix."""
        return (self.U * self.s) @ self.V.T


def dense(X: Any) -> Array:
    """A point, a vertex or a gradient as an array."""
    if isinstance(X, np.ndarray):
        return X
    return X.toarray() if sparse.issparse(X) else X.dense()


def inner(G: Any, X: Array | LowRank | Iterate) -> float:
    """``<G, X>``, the trace inner product."""
    if not isinstance(X, np.ndarray):
        return X.inner(G)
    return float(G.multiply(X).sum()) if sparse.issparse(G) else float(np.vdot(G, X))


def toward(W: Array | Iterate, V: Array | LowRank, eta: float) -> Any:
    """``(1 - eta) W + eta V``, the Frank-Wolfe step: earlier atoms shrink, the new one is added."""
    return W.toward(V, eta) if isinstance(W, Iterate) else W + eta * (dense(V) - W)  # pyright: ignore[reportArgumentType]


def distance(V: Array | LowRank, W: Array | LowRank | Iterate) -> float:
    """``|V - W|_F``; of two matrices in factors without writing either out, to about ``1e-8`` of their norms."""
    if isinstance(V, LowRank) and isinstance(W, LowRank):
        return float(np.sqrt(max(0.0, V.meets(V) - 2 * V.meets(W) + W.meets(W))))
    return W.distance(V) if isinstance(W, Iterate) else float(np.linalg.norm(dense(V) - dense(W)))  # pyright: ignore[reportArgumentType]


def real_array(argument: str, value: Any, axes: int | None = None, shape: tuple[int, ...] | None = None) -> Array:
    """`value` as a float64 array.

    Args:
        argument: its name, for the message.
        value: real numbers.
        axes: how many it must have; None takes any number.
        shape: what it must have; None takes any.

    Returns:
        The array: `value` itself where it is one.

    Raises:
        ArgumentError: it has other axes or another shape, or an entry is complex, nan or infinite.

    Example:
        >>> real_array("`y`", [1, 2], axes=1).dtype.name
        'float64'
    """
    array = np.asarray(value)
    if array.dtype.kind not in "fiub":
        raise ArgumentError(f"{argument} must hold real numbers, and holds {array.dtype}.")
    if shape is not None and array.shape != shape:
        raise ArgumentError(f"{argument} must have shape {shape}, and has {array.shape}.")
    if (axes is not None and array.ndim != axes) or array.size == 0:
        kind = {1: "a vector", 2: "a matrix"}.get(axes or 0, "an array")
        raise ArgumentError(f"{argument} must be {kind} that is not empty, and has shape {array.shape}.")
    if not np.isfinite(array).all():
        raise ArgumentError(f"{argument} must be finite, and has nan or infinite entries.")
    return array.astype(float, copy=False)
