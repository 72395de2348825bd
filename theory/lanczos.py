"""The top singular pair of a matrix that is known by its products alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from theory.errors import ArgumentError, count, positive
from theory.points import Array

FAVOUR = 4
"""``onward = sum_i (s_i/s_1)^FAVOUR v_i``: along a run the next gradient's top right vector is often one of the upper v_i, and
seldom the first."""


@dataclass(frozen=True, eq=False)
class SingularPair:
    """An approximate top singular pair.

    Attributes:
        u: left vector, of norm 1.
        sigma: ``u^T G v``, a lower bound of ``|G|_op``.
        v: right vector, of norm 1.
        residual: ``|G^T u - sigma v|``. Some singular value of G lies within `residual` of `sigma`; not always the top one.
        onward: where to start for a similar matrix, of norm 1: all right Ritz vectors, the upper ones with more weight. The top
            pair of a moving matrix changes places with the next ones, which `v` alone knows nothing of.
        bidiagonal: B, ``(j, j)``.
        beta: what would follow it.
    """

    u: Array
    sigma: float
    v: Array
    residual: float
    onward: Array
    bidiagonal: Array
    beta: float

    def upper(self, overlap: float) -> float:
        """An upper bound of ``|G|_op``, if the start p of norm 1 had ``|<p, v_1>| >= overlap`` with its top right vector.

        The Lanczos vectors are polynomials of the matrix, ``p_i = phi_i(G^T G) p``, so that
        ``<p_i, v_1> = phi_i(s_1^2) <p, v_1>``; they are orthonormal, so that ``sum_i phi_i(s_1^2)^2 <p, v_1>^2 <= 1``. The sum
        grows with its argument above ``sigma^2``.

        Args:
            overlap: at most ``|<p, v_1>|``, above 0.

        Returns:
            The largest s with ``sum_i phi_i(s^2)^2 <= 1/overlap^2``, rounded up.

        Example:
            >>> pair = top_singular_pair(np.diag(np.arange(1.0, 30.0)), steps=6, start=np.ones(29))
            >>> pair.sigma < 29 < pair.upper(1 / np.sqrt(29)) < pair.upper(1e-3)
            True

        Source: Hochstenbach 2013, Probabilistic upper bounds for the matrix two-norm.
        """
        B, most = self.bidiagonal, 1 / positive("overlap", overlap) ** 2
        T = B.T @ B
        diagonal, beside = T.diagonal().tolist(), [*T.diagonal(1).tolist(), float(B[-1, -1]) * self.beta]
        excess = step = np.finfo(float).eps
        while not _exceeds(self.sigma**2 * (1 + excess), diagonal, beside, most):
            excess += step
            step *= 2
        for _ in range(12):
            step /= 2
            if _exceeds(self.sigma**2 * (1 + excess - step), diagonal, beside, most):
                excess -= step
        return self.sigma * float(np.sqrt(1 + excess))


def top_singular_pair(G: Any, steps: int, start: Array | None = None, tolerance: float = 0.0, seed: int = 0) -> SingularPair:
    """Golub-Kahan Lanczos with full reorthogonalisation.

    After j steps ``G P = Q B`` and ``G^T Q = P B^T + beta p e_j^T`` with B bidiagonal (j x j); the top singular pair (x, y) of
    B gives ``u = Q x``, ``v = P y`` with ``G v = sigma u`` and ``|G^T u - sigma v| = beta |x_j|``, known without another
    product.

    `sigma` never exceeds ``|G|_op``. How much it may fall short depends on how much of the top pair the start holds: see
    `SingularPair.upper`. The residual says that the pair has settled, on the top one or on another.

    Args:
        G: ``(d, k)``; anything with `shape`, ``G @ x`` and ``G.T @ y``: an array, a sparse matrix, a linear operator.
        steps: at most so many pairs of products.
        start: first right vector, ``(k,)``; None draws it.
        tolerance: stop once ``residual <= tolerance * sigma``.
        seed: of the draw.

    Returns:
        The pair.

    Raises:
        ArgumentError: a product is not finite, or `start` has the wrong shape.

    Example:
        >>> G = np.diag([3.0, 2.0, 1.0])
        >>> pair = top_singular_pair(G, steps=3)
        >>> bool(abs(pair.sigma - 3) < 1e-12)
        True

    Source: Golub and Kahan 1965; Golub and Van Loan, Matrix Computations, 10.4.
    """
    d, k = G.shape
    steps = min(count("steps", steps), d, k)
    p = np.random.default_rng(seed).standard_normal(k) if start is None else np.asarray(start, dtype=float)
    if p.shape != (k,) or not np.isfinite(p).all() or not p.any():
        raise ArgumentError(f"`start` must be a finite vector of shape ({k},) other than 0, and has shape {p.shape}.")
    room = min(steps, 32)
    P, Q, B = np.empty((room + 1, k)), np.empty((room, d)), np.zeros((room, room))
    P[0] = p / np.linalg.norm(p)
    transposed = G.T
    beta = 0.0
    X = Yt = np.ones((1, 1))
    S = np.zeros(1)
    for j in range(steps):
        if j == len(Q):
            # Doubled when needed: the bound on steps may be the matrix's own size.
            more = min(j, steps - j)
            P, Q, B = np.pad(P, ((0, more), (0, 0))), np.pad(Q, ((0, more), (0, 0))), np.pad(B, (0, more))
        q = G @ P[j]
        if not np.isfinite(q).all():
            raise ArgumentError("the gradient given to the linear minimisation oracle has entries that are not finite.")
        if j:
            q -= beta * Q[j - 1]
            B[j - 1, j] = beta
        q -= Q[:j].T @ (Q[:j] @ q)
        B[j, j] = alpha = float(np.linalg.norm(q))
        # A product that vanishes leaves nothing to normalise: an invariant subspace was found.
        Q[j] = q / alpha if alpha > 0 else _orthogonal_unit(Q[:j], d)
        p = transposed @ Q[j] - alpha * P[j]
        p -= P[: j + 1].T @ (P[: j + 1] @ p)
        beta = float(np.linalg.norm(p))
        X, S, Yt = np.linalg.svd(B[: j + 1, : j + 1])
        if beta * abs(float(X[-1, 0])) <= max(tolerance, np.finfo(float).eps) * float(S[0]) or beta == 0.0:
            break
        P[j + 1] = p / beta
    else:
        if steps == d < k:
            # The left vectors span everything: G p_{d+1} = beta q_d, and the next alpha is 0.
            B = np.pad(B[:d, :d], (0, 1))
            B[d - 1, d], Q, beta = beta, np.pad(Q[:d], ((0, 1), (0, 0))), 0.0
            X, S, Yt = np.linalg.svd(B)
    made, sigma = len(S), float(S[0])
    weights = (S / sigma) ** FAVOUR if sigma > 0 else np.ones(made)
    u, v, onward = (_unit(basis[:made].T @ c) for basis, c in ((Q, X[:, 0]), (P, Yt[0]), (P, Yt.T @ weights)))
    return SingularPair(u, sigma, v, beta * abs(float(X[-1, 0])), onward, B[:made, :made].copy(), beta)


def _exceeds(argument: float, diagonal: list[float], beside: list[float], most: float) -> bool:
    """Whether ``sum_i phi_i(x)^2 > most``, from ``phi_0 = 1`` and ``b_i phi_{i+1} = (x - a_i) phi_i - b_{i-1} phi_{i-1}``."""
    before, here, total, last = 0.0, 1.0, 1.0, 0.0
    for a, b in zip(diagonal, beside, strict=True):
        # An invariant subspace: the start's top pair lies in it, and sigma is its singular value.
        if b == 0:
            return True
        before, here, last = here, ((argument - a) * here - last * before) / b, b
        total += here * here
        if total > most:
            return True
    return False


def _unit(vector: Array) -> Array:
    return vector / np.linalg.norm(vector)


def _orthogonal_unit(Q: Array, d: int) -> Array:
    """A unit vector orthogonal to the rows of `Q`, fewer than d."""
    q = np.eye(d)[int(np.argmin(np.square(Q).sum(axis=0)))] if len(Q) else np.eye(d)[0]
    q = q - Q.T @ (Q @ q)
    return q / np.linalg.norm(q)
