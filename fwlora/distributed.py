"""Agreement across data-parallel ranks; the identity where there is no process group."""

from __future__ import annotations

import torch
import torch.distributed as dist


def world_size() -> int:
    """Number of ranks that train together, 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def is_main() -> bool:
    """Whether this process is rank 0, which writes what is written once."""
    return world_size() == 1 or dist.get_rank() == 0


def every(flag: bool) -> bool:
    """Whether `flag` holds on every rank."""
    return flag if world_size() == 1 else bool(_reduce(int(flag), torch.int64, dist.ReduceOp.MIN))


def mean(value: float) -> float:
    """The mean of `value` over the ranks."""
    return value if world_size() == 1 else _reduce(value, torch.float64, dist.ReduceOp.SUM) / world_size()


def same(value: int) -> bool:
    """Whether every rank holds the same 64-bit integer: min = max."""
    if world_size() == 1:
        return True
    return _reduce(value, torch.int64, dist.ReduceOp.MIN) == _reduce(value, torch.int64, dist.ReduceOp.MAX)


def _reduce(value: float, dtype: torch.dtype, operation: dist.ReduceOp.RedOpType) -> float:
    # NCCL reduces device tensors only, gloo takes the CPU's.
    device = torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")
    tensor = torch.tensor(value, dtype=dtype, device=device)
    dist.all_reduce(tensor, op=operation)
    return tensor.item()
