"""Agreement across data-parallel ranks; the identity where there is no process group."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist


def world_size() -> int:
    """Number of ranks that train together, 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process's number among them."""
    return 0 if world_size() == 1 else dist.get_rank()


def is_main() -> bool:
    """Whether this process is rank 0, which writes what is written once."""
    return rank() == 0


def every(flag: bool) -> bool:
    """Whether `flag` holds on every rank."""
    return flag if world_size() == 1 else bool(_reduce(int(flag), torch.int64, dist.ReduceOp.MIN))


def mean(value: float) -> float:
    """The mean of `value` over the ranks."""
    return value if world_size() == 1 else _reduce(value, torch.float64, dist.ReduceOp.SUM) / world_size()


def mean_(tensor: torch.Tensor) -> torch.Tensor:
    """Replace a tensor by its mean over the ranks, in place."""
    if world_size() > 1:
        _through(tensor, lambda there: dist.all_reduce(there.div_(world_size())))
    return tensor


def total(tensor: torch.Tensor) -> torch.Tensor:
    """The sum of a tensor over the ranks; of int64 it is mod 2^64."""
    if world_size() == 1:
        return tensor
    there = tensor.to(_device(), copy=True)
    dist.all_reduce(there)
    return there.to(tensor.device)


def from_first_(tensor: torch.Tensor) -> torch.Tensor:
    """Replace a tensor by rank 0's, in place."""
    if world_size() > 1:
        _through(tensor, lambda there: dist.broadcast(there, src=0))
    return tensor


def gathered(tensor: torch.Tensor) -> torch.Tensor:
    """Every rank's tensor along the first axis; shapes must agree."""
    if world_size() == 1:
        return tensor
    parts = [torch.empty_like(tensor, device=_device()) for _ in range(world_size())]
    dist.all_gather(parts, tensor.to(_device()))
    return torch.cat(parts).to(tensor.device)


def same(value: int) -> bool:
    """Whether every rank holds the same 64-bit integer: min = max."""
    if world_size() == 1:
        return True
    return _reduce(value, torch.int64, dist.ReduceOp.MIN) == _reduce(value, torch.int64, dist.ReduceOp.MAX)


def _reduce(value: float, dtype: torch.dtype, operation: dist.ReduceOp.RedOpType) -> float:
    tensor = torch.tensor(value, dtype=dtype, device=_device())
    dist.all_reduce(tensor, op=operation)
    return tensor.item()


def _device() -> torch.device:
    # NCCL talks about device tensors only, gloo takes the CPU's.
    return torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")


def _through(tensor: torch.Tensor, talk: Callable[[torch.Tensor], object]) -> None:
    there = tensor.detach().to(_device(), copy=True).contiguous()
    talk(there)
    with torch.no_grad():
        tensor.copy_(there)
