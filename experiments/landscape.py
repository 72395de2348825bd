"""The loss on the whole data as a function of the adapted weights: value, dense gradient and largest curvature.

For models so tiny that all of it can be computed: a yardstick for what the library estimates without a dense gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from experiments.methods import effective_weights

CHUNK = 64
"""Rows that are passed through the model at once."""


class Landscape:
    """A model's loss where every weight but the adapted ones stands still.

    Args:
        model: a base model that nothing has touched; it is kept.
        names: the adapted linear layers, by full name.
        loss: ``loss(model, rows)``, the mean over rows of equal weight.
        rows: all of the data.

    Attributes:
        origin: the adapted weights as the model came.
    """

    def __init__(
        self, model: nn.Module, names: Sequence[str], loss: Callable[[nn.Module, Tensor], Tensor], rows: Tensor
    ) -> None:
        self._model, self._loss, self._rows = model.eval().requires_grad_(False), loss, rows
        self._weights = {name: cast(nn.Linear, model.get_submodule(name)).weight.requires_grad_(True) for name in names}
        self.origin = self.weights_of(model)

    def weights_of(self, model: nn.Module) -> dict[str, Tensor]:
        """The adapted weights that a model acts with, base plus live factors, in float64."""
        weights = effective_weights(model)
        return {name: weights[name] for name in self._weights}

    def gradient(self, weights: Mapping[str, Tensor]) -> tuple[float, dict[str, Tensor]]:
        """Loss and gradient over all rows, summed in float64.

        Args:
            weights: at each layer.

        Returns:
            The loss, and a matrix for each layer.
        """
        self._stand_at(weights)
        total, sums = 0.0, [torch.zeros_like(weight, dtype=torch.float64) for weight in self._weights.values()]
        for rows in self._rows.split(CHUNK):
            loss = self._loss(self._model, rows)
            share = len(rows) / len(self._rows)
            total += float(loss.detach()) * share
            for before, found in zip(sums, torch.autograd.grad(loss, list(self._weights.values())), strict=True):
                before += found.double() * share
        return total, dict(zip(self._weights, sums, strict=True))

    def curvature(self, weights: Mapping[str, Tensor], rows: int) -> float:
        """The Hessian's largest eigenvalue over the adapted weights, for the loss on some rows, evenly spaced.

        Args:
            weights: at each layer.
            rows: how many; the memory of the graph grows with them.

        Returns:
            The eigenvalue, from below.
        """
        self._stand_at(weights)
        chosen = self._rows[torch.linspace(0, len(self._rows) - 1, min(rows, len(self._rows))).long()]
        with sdpa_kernel(SDPBackend.MATH):  # the fast attention kernels cannot be differentiated twice
            return largest_eigenvalue(self._loss(self._model, chosen), list(self._weights.values()))

    @torch.no_grad()
    def _stand_at(self, weights: Mapping[str, Tensor]) -> None:
        for name, weight in self._weights.items():
            weight.copy_(weights[name])


def largest_eigenvalue(
    loss: Tensor, parameters: Sequence[Tensor], *, tolerance: float = 1e-2, products: int = 40, seed: int = 0
) -> float:
    r"""The largest eigenvalue of a loss's Hessian: Lanczos' iteration on Hessian-vector products.

    Power iteration would use the last vector alone; this takes the best of all of them, and so finds the largest eigenvalue
    and not the one of the largest magnitude: a loss may curve down more steeply than up. The Ritz value theta never exceeds
    the truth, and some eigenvalue lies within ``beta_j |y_j|`` of it.

    Args:
        loss: with a graph that can be differentiated twice.
        parameters: that the Hessian is taken in.
        tolerance: stop once ``beta_j |y_j| <= tolerance * |theta|``.
        products: at most so many.
        seed: of the start.

    Returns:
        theta.

    Example:
        >>> x = torch.zeros(3, requires_grad=True)
        >>> round(largest_eigenvalue((torch.tensor([1.0, 4.0, -9.0]) * x.square() / 2).sum(), [x]), 6)
        4.0
    """
    gradients = torch.autograd.grad(loss, parameters, create_graph=True)
    sizes = [parameter.numel() for parameter in parameters]
    q = torch.randn(sum(sizes), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    Q, diagonal, beside = [q / q.norm()], [], []
    theta = 0.0
    for _ in range(min(products, len(q))):
        direction = [part.view_as(p).to(p.dtype) for part, p in zip(Q[-1].split(sizes), parameters, strict=True)]
        product = torch.autograd.grad(gradients, parameters, direction, retain_graph=True, materialize_grads=True)
        w = torch.cat([part.double().flatten() for part in product])
        diagonal.append(float(w @ Q[-1]))
        for _ in range(2):  # once is not enough where w lies almost in the span
            for q in Q:
                w -= (w @ q) * q
        values, vectors = np.linalg.eigh(np.diag(diagonal) + np.diag(beside, 1) + np.diag(beside, -1))
        theta, beta = float(values[-1]), float(w.norm())
        if beta * abs(vectors[-1, -1]) <= tolerance * abs(theta) or beta == 0.0:
            break
        beside.append(beta)
        Q.append(w / beta)
    return theta
