"""The gradients that probes never write out: of small models, by autograd."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

import torch
from torch import Tensor, nn

from fwlora import Site
from tests.tables import output

Batch: TypeAlias = dict[str, Tensor]


def loss_of(model: nn.Module, batch: Batch) -> Tensor:
    """Squared distance to fixed random numbers, in the output's own precision."""
    out = output(model, batch)
    target = torch.randn(out.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return (out - target.to(out.dtype)).square().mean()


def dense_gradients(base: nn.Module, sites: Mapping[str, Site], loss: Callable[[nn.Module], Tensor]) -> dict[str, Tensor]:
    """By autograd, (out, fan_in) at each site, of the adapted weights as they are, without the live link.

    Args:
        base: a model without adapters; its weights are overwritten.
        sites: of the adapted one.
        loss: of a model.

    Returns:
        The gradients in float64.
    """
    parameters = dict(base.named_parameters())
    for site in sites.values():
        for name, target in site.targets().items():
            parameters[name].data.copy_(target.detach())
    weights = {name: parameters[f"{name}.weight"].requires_grad_() for name in sites}
    found = torch.autograd.grad(loss(base), list(weights.values()), materialize_grads=True)
    return {name: (G.mT if sites[name].transposed else G).flatten(1).double() for name, G in zip(weights, found, strict=True)}
