"""The matrix products of a forward pass, as torch's operators make them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

# Where the two matrices stand among the operator's arguments.
MATRICES = {"mm": 0, "bmm": 0, "addmm": 1, "baddbmm": 1}


class Products(TorchDispatchMode):
    """Notes every product of a forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[int, Sequence[bool], Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        for flops, needed in of_operator(func, args, output):
            self.seen.append((flops, needed, output))
        return output

    def total(self, output: Tensor) -> int:
        """Forward for all of them, backward for those that the output's gradient reaches."""
        reached = _graph(output)
        flops = 0
        for forward, needed, result in self.seen:
            made_by = (result if isinstance(result, Tensor) else result[0]).grad_fn
            flops += forward * (1 + (sum(needed) if made_by in reached else 0))
        return flops


def of_operator(func: Any, args: Any, output: Any) -> Iterator[tuple[int, Sequence[bool]]]:
    """The products inside an operator: FLOPs, and which operands want a gradient."""
    name = func.overloadpacket.__name__
    if name in MATRICES:
        a, b = args[MATRICES[name] :][:2]
        yield 2 * a.numel() * b.shape[-1], (a.requires_grad, b.requires_grad)
    elif name == "convolution":
        x, weight, transposed = args[0], args[1], args[6]
        moved = x if transposed else output  # the positions that the kernel is laid on
        yield 2 * len(x) * math.prod(moved.shape[2:]) * weight.numel(), (x.requires_grad, weight.requires_grad)
    elif name.startswith("_scaled_dot_product") and "backward" not in name:
        q, k, v = args[:3]
        pairs = math.prod(q.shape[:-1]) * k.shape[-2]
        yield 2 * pairs * q.shape[-1], (q.requires_grad, k.requires_grad)
        yield 2 * pairs * v.shape[-1], (q.requires_grad or k.requires_grad, v.requires_grad)


def _graph(output: Tensor) -> set[Any]:
    """The nodes that a gradient of `output` passes."""
    reached, waiting = set(), [output.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in reached:
            reached.add(node)
            waiting += [following for following, _ in node.next_functions]
    return reached
