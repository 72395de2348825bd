r"""Products with a site's gradient G, read off its factors' own gradients; no gradient of the weight's shape is ever kept.

The layer computes with ``W + s B A``. Where B = 0 the gradient of B is ``s G A^T``, where A = 0 that of A is ``s B^T G``. So
one factor is pointed somewhere, the other is zero, the model still is that of W alone, and a backward pass gives the product:

    A = X^T, B = 0      grad_B = s G X
    A = 0,   B = Q      grad_A = s (G^T Q)^T

and for directions ``D_j = B_j A_j`` weighed by ``theta = 0``, with ``A = [A_j]`` stacked and ``B = [theta_j B_j / s]`` side by
side, ``grad_theta_j = <G, D_j>``: one pass for any number of links.

Directions of A are the rows of ``(rank, fan_in)``, those of B the columns of ``(out, rank)``; here both are written as columns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fwlora.errors import ArgumentError, NoGradientError
from fwlora.layers.sites import Site
from fwlora.linalg import Factors


class Side(NamedTuple):
    """One of a site's two factors, its directions written as columns.

    Attributes:
        site: whose.
        factor: the site's A or B as it is now.
    """

    site: Site
    factor: nn.Parameter

    def directions(self, tensor: Tensor) -> Tensor:
        """A tensor shaped as the factor as (n, rank), n being fan_in for A and out for B: a view without masked columns."""
        matrix = tensor.flatten(1) if self.factor is self.site.B else tensor.flatten(1).mT
        return matrix[:, : self.site.rank]

    @property
    def product(self) -> Tensor:
        """``G`` times what the other factor points at, (n, rank), from this factor's gradient."""
        assert self.factor.grad is not None
        return self.directions(self.factor.grad) / self.site.scaling

    @torch.no_grad()
    def point(self, columns: Tensor) -> None:
        """Let the factor hold these directions, (n, rank or fewer), and the other one nothing.

        Args:
            columns: orthonormal or not; missing ones are zero.
        """
        for parameter in self.site.parameters():
            parameter.zero_()
        self.directions(self.factor)[:, : columns.shape[1]].copy_(columns)


class Probes:
    """Gradient products at all sites at once, of the weights without the live link, on batches of one's own.

    The factors are substituted while a batch is probed: the live link, its gradients, the inner optimizer's moments and all
    counters stay as they are. The model is in eval() meanwhile: no dropout, and no running statistics move.

    Args:
        model: the base model.
        sites: its sites.
        loss_fn: the mean loss of a batch, under whatever autocast the caller likes.
    """

    def __init__(self, model: nn.Module, sites: Mapping[str, Site], loss_fn: Callable[[Any], Tensor]) -> None:
        self._model, self._sites, self._loss_fn = model, sites, loss_fn
        self._lift = 2.0**16

    def right(self, batch: Any, X: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """``G X`` at every site.

        Args:
            batch: given to `loss_fn`.
            X: (fan_in, m) at each site.

        Returns:
            (out, m) at each site, in float64 on the CPU.
        """
        pairs = {}
        for name, site in self._sites.items():
            A = _rows(site, X[name].mT)
            pairs[name] = (A, _leaf(site.B, (site.B.shape[0], len(A), *site.B.shape[2:])))
        gradients = self._gradients(batch, pairs, {name: B for name, (_, B) in pairs.items()})
        return {name: g.flatten(1) / self._sites[name].scaling for name, g in gradients.items()}

    def left(self, batch: Any, Q: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """``G^T Q`` at every site.

        Args:
            batch: given to `loss_fn`.
            Q: (out, m) at each site.

        Returns:
            (fan_in, m) at each site, in float64 on the CPU.
        """
        pairs = {}
        for name, site in self._sites.items():
            B = _like(site.B, Q[name].reshape(*Q[name].shape, *[1] * (site.B.ndim - 2)))
            pairs[name] = (_leaf(site.A, (B.shape[1], *site.A.shape[1:])), B)
        gradients = self._gradients(batch, pairs, {name: A for name, (A, _) in pairs.items()})
        return {name: g.flatten(1).mT / self._sites[name].scaling for name, g in gradients.items()}

    def along(self, batch: Any, directions: Mapping[str, Sequence[Factors]]) -> dict[str, Tensor]:
        """``<G, D_j>`` at every site, for any number of low-rank directions.

        Args:
            batch: given to `loss_fn`.
            directions: ``D_j = scale_j B_j A_j`` at each site, any number of them.

        Returns:
            (number of the site's directions,) at each site, in float64 on the CPU.
        """
        pairs, thetas = {}, {}
        for name, site in self._sites.items():
            chosen = directions[name]
            wide = torch.promote_types(site.B.dtype, torch.float32)
            theta = torch.zeros(len(chosen), dtype=wide, device=site.B.device, requires_grad=True)
            A = _rows(site, torch.cat([_like(site.A, f.A.flatten(1)) for f in chosen]))
            with torch.enable_grad():
                columns = [
                    t * _like(theta, f.B.flatten(1) * (f.scale / site.scaling)) for t, f in zip(theta, chosen, strict=True)
                ]
                B = torch.cat(columns, dim=1)
                pairs[name] = (A, B.reshape(*B.shape, *[1] * (site.B.ndim - 2)).to(site.B.dtype))
            thetas[name] = theta
        return self._gradients(batch, pairs, thetas)

    def _gradients(
        self, batch: Any, pairs: Mapping[str, tuple[Tensor, Tensor]], leaves: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        with ExitStack() as stack, torch.enable_grad():
            stack.enter_context(_evaluating(self._model))
            for name, site in self._sites.items():
                stack.enter_context(site.substituted(*pairs[name]))
            loss = self._loss_fn(batch)
            if not isinstance(loss, Tensor) or loss.numel() != 1:
                raise ArgumentError(
                    f"`loss_fn(batch)` must return the mean loss as a tensor of one number, and returned {loss!r:.60}."
                )
            # Not backward(): the .grad of nobody's parameters is touched. A layer that the batch misses has no gradient.
            wanted = list(leaves.values())
            # A power of two changes no digit, and lifts what float16 would lose.
            found = torch.autograd.grad(loss * self._lift, wanted, allow_unused=True) if loss.requires_grad else [None]
            if all(gradient is None for gradient in found):
                raise NoGradientError(
                    "`loss_fn(batch)` returned a loss that depends on no site of the chain; let it call the model that the "
                    "optimizer was made for, outside `inference_mode()`, and checkpoint with `use_reentrant=False`."
                )
        if self._lift > 1 and not all(g is None or bool(g.isfinite().all()) for g in found):
            self._lift /= 16
            return self._gradients(batch, pairs, leaves)
        return {
            name: (torch.zeros_like(leaf) if gradient is None else gradient.detach()).double().cpu() / self._lift
            for (name, leaf), gradient in zip(leaves.items(), found, strict=True)
        }


def _rows(site: Site, rows: Tensor) -> Tensor:
    """Directions as an A of this site; torch gives an embedding's padding row no gradient, so they have no part in it."""
    A = _like(site.A, rows).clone().reshape(-1, *site.A.shape[1:])
    A[:, site.padding] = 0
    return A


def _like(factor: Tensor, value: Tensor) -> Tensor:
    return value.detach().to(factor.device, factor.dtype)


def _leaf(factor: Tensor, shape: tuple[int, ...]) -> Tensor:
    return torch.zeros(shape, dtype=factor.dtype, device=factor.device, requires_grad=True)


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        yield
    finally:
        for module, mode in modes:
            module.training = mode
