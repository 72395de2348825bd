"""The chain inside what a framework has made of it."""

from __future__ import annotations

from typing import Any

from fwlora.errors import ArgumentError
from fwlora.optimizer import ChainLoRAOptimizer


def unwrap(optimizer: Any) -> ChainLoRAOptimizer:
    """The chain inside what accelerate (or any wrapper with an `optimizer` attribute) made of it.

    Args:
        optimizer: the wrapper, or the chain itself.

    Returns:
        The chain.

    Raises:
        ArgumentError: where there is none inside.
    """
    inside = optimizer
    while not isinstance(inside, ChainLoRAOptimizer):
        inside = getattr(inside, "optimizer", None)
        if inside is None:
            raise ArgumentError(f"`unwrap(optimizer)` finds no ChainLoRAOptimizer inside a {type(optimizer).__name__}.")
    return inside
