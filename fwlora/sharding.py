"""Parameters that FSDP2 has cut along their first axis: this rank's rows, and all of them.

Everything that a chain does to a weight is done row by row, ``W[rows] += s B[rows] A``, so each rank works on its own rows and
only factors are ever gathered. For a tensor that is whole every function here is the identity.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, Shard

from fwlora import distributed


def is_sharded(tensor: Tensor) -> bool:
    """Whether other ranks hold other rows of it."""
    return isinstance(tensor, DTensor)


def local(tensor: Tensor) -> Tensor:
    """This rank's rows, in the same memory and without a graph."""
    tensor = tensor.detach()
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """All rows, without a graph; every rank must ask for them."""
    tensor = tensor.detach()
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def rows(tensor: Tensor) -> slice:
    """Which rows of the whole this rank holds: ranks in order hold ``ceil(n / ranks)`` each, the last ones what is left."""
    if not isinstance(tensor, DTensor):
        return slice(0, len(tensor))
    each = -(-len(tensor) // tensor.device_mesh.size())
    start = min(len(tensor), each * tensor.device_mesh.get_local_rank())
    return slice(start, min(len(tensor), start + each))


def first_entry(tensor: Tensor) -> int:
    """The number of this rank's first entry among all entries in row-major order."""
    return rows(tensor).start * math.prod(tensor.shape[1:])


def cut(values: Tensor, like: Tensor) -> Tensor:
    """This rank's rows of `values`, which are whole, or sharded as `like` is; where they end early, what there is."""
    if isinstance(values, DTensor):
        return local(values)
    return values[rows(like)] if isinstance(like, DTensor) else values


def spread(values: Tensor, like: Tensor) -> Tensor:
    """Whole values in the same shards as `like`, without communication; a tensor of another shape is left as it is."""
    if not isinstance(like, DTensor) or isinstance(values, DTensor) or values.shape != like.shape:
        return values
    own = values[rows(like)].to(like.device, copy=True)
    return _of_shards(own, like)


def all_rows(own: Tensor, like: Tensor) -> Tensor:
    """All rows of something of which each rank holds the rows that it holds of `like`, on the CPU; every rank must ask."""
    if not isinstance(like, DTensor):
        return own
    return _of_shards(own.to(like.device), like).full_tensor().cpu()


def whole_deep(document: Any) -> Any:
    """A document with every sharded tensor in it whole and on the CPU; every rank must ask, with the same keys in order."""
    if isinstance(document, DTensor):
        return whole(document).cpu()
    if isinstance(document, Mapping):
        return {key: whole_deep(value) for key, value in document.items()}
    if isinstance(document, list | tuple):
        return type(document)(map(whole_deep, document))
    return document


def is_zero(tensor: Tensor) -> bool:
    """Whether every entry is zero; every rank must ask where the tensor is sharded."""
    is_mine = not bool(local(tensor).any())
    return distributed.every(is_mine) if is_sharded(tensor) else is_mine


def unserved(tensor: Tensor) -> str | None:
    """Why a sharded tensor is cut otherwise than along the first axis over all ranks; None where it is not."""
    if not isinstance(tensor, DTensor):
        return None
    mesh, placements = tensor.device_mesh, tuple(tensor.placements)
    if placements == (Shard(0),) and mesh.size() == distributed.world_size():
        return None
    return f"placed as {placements} on a mesh of {tuple(mesh.shape)} of {distributed.world_size()} ranks"


def reshard(model: nn.Module) -> None:
    """Give up the whole parameters that a forward pass without a backward pass has left in an FSDP2 model's modules."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def unwrapped_class(module: object) -> type:
    """The class that a module had before `fully_shard` made a subclass of it."""
    kind = type(module)
    return kind.__mro__[2] if issubclass(kind, FSDPModule) else kind


def _of_shards(own: Tensor, like: DTensor) -> DTensor:
    strides = torch.empty(like.shape, device="meta").stride()
    return DTensor.from_local(own, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=strides)
