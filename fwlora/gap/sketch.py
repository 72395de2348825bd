"""What products with a gradient say of its singular values: the leading part, and upper bounds of what was not seen."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fwlora import distributed, linalg
from fwlora.confidence import frobenius_factor, range_finder_factor
from fwlora.errors import ArgumentError
from fwlora.layers.probes import Probes
from fwlora.layers.sites import Site, generator_for

COLUMNS = 8
"""Of the random start, more where atoms are wider: the bounds loosen as ``failure^(-1/columns)``."""


@dataclass
class Sketch:
    """A site's mean gradient G_1 over some batches, as block subspace iteration shows it.

    Attributes:
        at: the basis that the next product is taken with, Gaussian at first; in the end one of the two of the found part.
        side: the largest rank that a matrix of this shape has.
        product: (m, m), the triangular factors so far multiplied, up to ``exp(size)``: ``M^p X = Q_p product exp(size)``.
        control: Z, as many Gaussian columns as X and independent of what is found from X.
        starts: for p = 1, 2, ..., ``log max_j |M^p x_j|``, M^p being p alternating products with G_1 and G_1^T; p-th powers of
            a small number would be lost in float64.
        image: ``G_1 Z``.
        square: unbiased for ``|G|_F^2`` of the full gradient G.
        U: (out, m), S: (m,), V: (fan_in, m), the found part ``U diag(S) V^T`` of G_1, largest first.
    """

    at: Tensor
    side: int
    product: Tensor
    control: Tensor
    size: float = 0.0
    starts: list[float] = field(default_factory=list)
    image: Tensor = field(default_factory=lambda: torch.empty(0))
    square: float = 0.0
    U: Tensor = field(default_factory=lambda: torch.empty(0))
    S: Tensor = field(default_factory=lambda: torch.empty(0))
    V: Tensor = field(default_factory=lambda: torch.empty(0))

    def norm(self, rank: int) -> float:
        """``|.|_{F,rank}`` of the found part."""
        return float(torch.linalg.vector_norm(self.S[:rank]))

    def ceiling(self, rank: int, failure: float) -> float:
        """An upper bound of ``|G_1|_{F,rank}`` that holds but with probability `failure`.

        Two bounds, of which the lower counts: ``k |G|_op^2``; and, P being the projection on the found part,
        ``|G|_{F,k}^2 <= |P G|_{F,k}^2 + |G - P G|_F^2``, whose last term the control columns see.

        Args:
            rank: k.
            failure: a probability.

        Returns:
            The bound; exact where the found part is all that there is.
        """
        m, found = len(self.S), self.norm(rank) ** 2
        if m == self.side:
            return found**0.5
        # |M^p x_j| >= sigma_1^p |<v_1, x_j>| for every p, and all |<v_1, x_j>| < alpha has probability failure/2 at most
        alpha = math.log(range_finder_factor(failure / 2, m))
        sigma = math.exp(min((start - alpha) / p for p, start in enumerate(self.starts, 1)))
        # |R Z|_F^2 >= t m |R|_F^2 but with probability failure/2, for an R = G - P G that does not depend on Z
        rest = self.image - self.U @ (self.S[:, None] * (self.V.mT @ self.control))
        missed = float(rest.square().sum()) / (frobenius_factor(failure / 2, m) * m)
        return min(rank * sigma**2, found + missed) ** 0.5


def sketch(
    probes: Probes, sites: Mapping[str, Site], batches: Sequence[Any], *, width: int, passes: int, knot: int, seed: int
) -> dict[str, Sketch]:
    """Block subspace iteration ``X, G_1 X, G_1^T Q, ...`` at every site, G_1 the mean gradient over the batches of all ranks.

    Args:
        probes: of the sites.
        sites: by name.
        batches: each is passed through the model `passes` times.
        width: columns of X, fewer at a site that has fewer.
        passes: products, at least 2.
        knot: of the draws.
        seed: of the draws.

    Returns:
        What they say of each site.

    Raises:
        ArgumentError: for a gradient that is not finite.
    """
    sketches = {name: _start(site, width, generator_for(seed, knot, f"gap of {name}")) for name, site in sites.items()}
    for number in range(1, passes + 1):
        is_first, is_right = number == 1, number % 2 == 1
        at = {
            name: torch.cat([sketch.at, sketch.control], dim=1) if is_first else sketch.at for name, sketch in sketches.items()
        }
        means: dict[str, Tensor | float] = dict.fromkeys(sites, 0.0)
        squares = dict.fromkeys(sites, 0.0)
        for batch in batches:
            for name, found in (probes.right(batch, at) if is_right else probes.left(batch, at)).items():
                means[name] = means[name] + found / len(batches)
                squares[name] += float(found.square().sum()) / len(batches)
        for name, sketch in sketches.items():
            mean = means[name]
            assert isinstance(mean, Tensor)
            distributed.mean_(mean)
            if not bool(mean.isfinite().all()):
                raise ArgumentError(
                    f"`loss_fn(batch)` has a gradient with inf or nan at {name!r}; measure where the loss is finite."
                )
            if is_first:
                total = len(batches) * distributed.world_size()
                of_mean = float(mean.square().sum())
                sketch.square = _unbiased(of_mean, distributed.mean(squares[name]), total) / mean.shape[1]
                mean, sketch.image = mean.tensor_split(2, dim=1)
            _advance(sketch, mean, is_right=is_right)
    return sketches


def _start(site: Site, width: int, generator: torch.Generator) -> Sketch:
    out, fan_in = site.B.shape[0], site.A.flatten(1).shape[1]
    side = min(out, fan_in)
    X, Z = torch.randn(2, fan_in, min(width, side), generator=generator, dtype=torch.float64)
    return Sketch(X, side, torch.eye(X.shape[1], dtype=torch.float64), Z)


def _advance(sketch: Sketch, mean: Tensor, *, is_right: bool) -> None:
    """Take in ``G_1 P`` or, from the left, ``G_1^T P``, P the basis before."""
    P = sketch.at
    Q, R = torch.linalg.qr(mean)
    sketch.product = R @ sketch.product
    largest = float(torch.linalg.vector_norm(sketch.product, dim=0).max())
    sketch.size += math.log(largest) if largest > 0 else -math.inf
    sketch.product = sketch.product / (largest or 1.0)
    sketch.starts.append(sketch.size)
    # G_1 P P^T = Q R P^T, and P P^T G_1 = P R^T Q^T: the SVD of R turns both bases.
    a, sketch.S, bt = linalg.svd(R)
    sketch.U, sketch.V = (Q @ a, P @ bt.mT) if is_right else (P @ bt.mT, Q @ a)
    sketch.at = Q


def _unbiased(of_mean: float, mean_of: float, n: int) -> float:
    """``mean over b != b' of <Y_b, Y_b'>`` from ``|mean Y_b|^2`` and ``mean |Y_b|^2``: no batch's noise meets itself."""
    return of_mean if n == 1 else (n * of_mean - mean_of) / (n - 1)
