"""What a measurement of the gap estimates, from the gradient itself: for models so tiny that it can be had in full."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import sqrt

import torch
from torch import Tensor

from fwlora import Ball
from fwlora.linalg import Factors

Matrices = Mapping[str, Tensor]
"""One matrix a site."""


def truth(ball: Ball, gradient: Matrices, update: Matrices, units: Matrices) -> dict[str, dict]:
    """What the intervals of a `GapReport` are about.

    Args:
        ball: the set at each site.
        gradient: G at each site.
        update: W minus the original weight.
        units: the live link over its norm in the ball.

    Returns:
        The sites and the total of the report's document, with a number where that has an interval.
    """

    def row(names: Sequence[str]) -> dict[str, float]:
        spectra = [torch.linalg.svdvals(gradient[name]) for name in names]
        dual = sum(map(ball.dual_norm, spectra))
        before, link = (sum(_inner(gradient[name], to[name]) for name in names) for to in (update, units))
        return {
            "gap": before + ball.radius * dual,
            "gradient_norm": sqrt(sum(float(S.square().sum()) for S in spectra)),
            "truncated_norm": sqrt(sum(float(S[: ball.atom_rank].square().sum()) for S in spectra)),
            "eps": ball.radius * (link + dual),
            "alignment": -link / dual,
        }

    return {"total": row(list(gradient)), "sites": {name: row([name]) for name in gradient}}


def unit_link(ball: Ball, link: Tensor) -> Tensor:
    """A link over its norm in the ball; zero stays zero."""
    norm = ball.norm(torch.linalg.svdvals(link))
    return link / norm if norm > 0 else link


def bend(rise: float, gradient: Matrices, step: Matrices) -> float:
    """The curvature c along a step D, ``L(W + D) = L(W) + <G, D> + c/2 |D|^2``.

    Args:
        rise: ``L(W + D) - L(W)``.
        gradient: G at W.
        step: D.

    Returns:
        c, which is beta at most; nan where D is zero.

    Example:
        >>> G, D = {"w": torch.tensor([[2.0]])}, {"w": torch.tensor([[0.5]])}
        >>> bend(2.0 * 0.5 + 3.0 * 0.5**2 / 2, G, D)
        3.0
    """
    square = length(step) ** 2
    return 2 * (rise - sum(_inner(gradient[name], step[name]) for name in step)) / square if square > 0 else float("nan")


def length(X: Matrices) -> float:
    """Frobenius norm over all sites."""
    return sqrt(sum(_inner(matrix, matrix) for matrix in X.values()))


def difference(X: Matrices, Y: Matrices) -> Matrices:
    """``X - Y`` at every site."""
    return {name: X[name] - Y[name] for name in X}


def matrix(link: Factors) -> Tensor:
    """``s B A`` in float64."""
    A, B = link.matrices()
    return link.scale * (B.detach().double() @ A.detach().double())


def _inner(X: Tensor, Y: Tensor) -> float:
    return float(torch.sum(X * Y))
