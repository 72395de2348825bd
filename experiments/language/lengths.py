"""Rows of unequal length in few forward passes, without a trace left on the model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

# Of one pass. More is slower on a CPU, and OPT-1.3B's logits take 0.8 GB in float32.
TOKENS = 4096


def batches(lengths: Sequence[int], tokens: int = TOKENS) -> list[list[int]]:
    """Rows of about equal length together, the longest first.

    Args:
        lengths: of all rows.
        tokens: of a batch with its padding, at most, unless one row alone has more.

    Returns:
        Row numbers, each once.

    Example:
        >>> batches([3, 9, 4, 3], tokens=9)
        [[1], [2, 0], [3]]
    """
    found: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        # A batch's first row is its longest.
        if found and (len(found[-1]) + 1) * lengths[found[-1][0]] <= tokens:
            found[-1].append(row)
        else:
            found.append([row])
    return found


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients inside; every module's own mode is put back."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode
