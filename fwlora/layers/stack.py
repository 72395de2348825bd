"""Quantised bases: the retired links stay beside the weight, as one frozen adapter, and are never rounded into it.

``y = base(x) + (x A^T) B^T`` with the links' A stacked and their B side by side, each times its scale. The sum is the base
layer's own output, by a hook on it: whatever PEFT's layer around it means by "base", with the adapter disabled for one, is
the base after the knots. Parameters, buffers and their names stay what they are. Costs grow with the sum of the ranks; see
`ChainLoRAOptimizer.compress`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fwlora.layers import quantised
from fwlora.layers.sites import Site
from fwlora.linalg import Factors


class Sides(NamedTuple):
    """The links as two matrices.

    Attributes:
        A: (sum of ranks, in).
        B: (out, sum of ranks), scales included.
    """

    A: Tensor
    B: Tensor


class Stack:
    """A forward hook that adds the links to what a layer puts out, in the precision of the links.

    Args:
        sides: the links.

    Example:
        >>> layer, x = nn.Linear(3, 2), torch.randn(4, 3)
        >>> A, B = torch.randn(1, 3), torch.randn(2, 1)
        >>> expected = layer(x) + x @ A.T @ B.T
        >>> handle = layer.register_forward_hook(Stack(Sides(A, B)))
        >>> torch.allclose(layer(x), expected, atol=1e-6)
        True
    """

    def __init__(self, sides: Sides) -> None:
        self.sides = sides

    def __call__(self, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        """What the layer puts out, and the links' part of it."""
        x = inputs[0]
        if self.sides.A.device != x.device:
            self.sides = Sides(*(side.to(x.device) for side in self.sides))  # nothing else moves what is no parameter
        A, B = self.sides
        return output + F.linear(F.linear(x.to(A.dtype), A), B).to(output.dtype)


def stack_of(base: nn.Module) -> Stack | None:
    """The stack beside a layer, found through the layer: a copied or unpickled model has its own."""
    return next((hook for hook in base._forward_hooks.values() if isinstance(hook, Stack)), None)


def put(base: nn.Module, sides: Sides | None) -> None:
    """Let exactly these links stand beside a layer.

    Args:
        base: the layer.
        sides: the links; None for none.
    """
    stack = stack_of(base)
    if sides is None:
        for number in [n for n, hook in base._forward_hooks.items() if hook is stack]:
            del base._forward_hooks[number]
    elif stack is None:
        base.register_forward_hook(Stack(sides))
    else:
        stack.sides = sides


class StackedSite(Site):
    """A site whose weight is quantised by bitsandbytes, in 4 or 8 bits.

    What a merge changes elsewhere is the stack here; the packed weight is only read, and tells one base from another.
    """

    keeps_links = True

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the matrix that the packed weight stands for."""
        base: Any = self.layer.get_base_layer()
        return base.out_features, base.in_features

    @property
    def is_linear(self) -> bool:
        """Whether the layer is a matrix product: it is."""
        return True

    def targets(self) -> dict[str, nn.Parameter]:
        """What tells the base: the bytes of the packed weight and of its statistics, a copy."""
        codes = quantised.packed(self.layer.get_base_layer())
        return {f"{self.name}.weight": nn.Parameter(codes, requires_grad=False)}

    def tensors(self) -> list[Tensor]:  # type: ignore[override]
        """The factors, the packed weight, and the links that stand beside it."""
        stack = stack_of(self.layer.get_base_layer())
        return [*self.parameters(), self.weight, *(() if stack is None else stack.sides)]

    def merges(  # type: ignore[override]
        self, factors: Factors, residuals: dict[str, Tensor], into: Mapping[str, Tensor] | None = None
    ) -> list[Appending]:
        """What adds a link to the stack; the packed weight takes part in nothing, so the other arguments have no use here."""
        return [Appending(self.layer.get_base_layer(), self._sides(factors))]

    def keep(self, total: Factors | None) -> None:
        """Let exactly this stand beside the weight.

        Args:
            total: the sum of the retired links; None for none.
        """
        put(self.layer.get_base_layer(), None if total is None else self._sides(total))

    def _sides(self, factors: Factors) -> Sides | None:
        # As the chain sums links and without what adds nothing, so that links appended and links loaded are the same bits.
        dtype = torch.promote_types(factors.A.dtype, torch.float32)
        A, B = (side.detach().to(self.weight.device, dtype) for side in factors.matrices())
        B = factors.scale * B
        used = B.any(0)
        return Sides(A[used], B[:, used].contiguous()) if bool(used.any()) else None


class Appending:
    """One link's way into the stack: all is made beforehand, and to `run()` again changes nothing.

    Args:
        base: the quantised layer.
        link: what is added; None for nothing.

    Attributes:
        residual: None, for nothing is rounded.
        sums: zero, and the norm of the matrix that the packed weight stands for, (2, 1).
    """

    residual = None

    @torch.no_grad()
    def __init__(self, base: nn.Module, link: Sides | None) -> None:
        self._base = base
        norm = torch.linalg.vector_norm(quantised.dequantised(base), dtype=torch.float32)
        self.sums = torch.stack([torch.zeros_like(norm), norm])[:, None]
        stack = stack_of(base)
        self._after = link if stack is None else stack.sides
        if stack is not None and link is not None:
            A, B = (side.to(link.A.device) for side in stack.sides)
            self._after = Sides(torch.cat([A, link.A]), torch.cat([B, link.B], dim=1))

    def run(self) -> None:
        """Let the link stand beside the weight."""
        put(self._base, self._after)
