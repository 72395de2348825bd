"""How much of what is merged into half-precision weights arrives there, against float64."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from experiments.accounting.contenders import RATE
from experiments.methods import ChainOfLoRA, LoRA
from experiments.methods.lora import ADAPTER
from fwlora import ChainLoRAOptimizer, Never

# Standard deviation of the weights, as of a pretrained model's.
SPREAD = 0.02
LAYER = "0"

Merge = Callable[[Tensor, Tensor], float]
"""Merges A and B into the layer's weight and gives the scale by which their product was multiplied."""


def gains(
    size: int, rank: int, merges: Sequence[int], relative: Sequence[float], dtype: torch.dtype = torch.bfloat16
) -> list[dict[str, Any]]:
    """Merges fresh independent directions into one random weight, by a chain and by PEFT.

    Args:
        size: of the square weight.
        rank: of a merge.
        merges: after how many to look, ascending.
        relative: the length of each merge over that of the weight.
        dtype: of the weight.

    Returns:
        Plain data, a row for each way, length and number of merges: `gain`, what arrived along what was asked over what was
        asked; and `error`, the length of the difference over that of what was asked.
    """
    rows = []
    for way, make in (("chain", _chain), ("PEFT's merge()", _peft)):
        for length in relative:
            model = _layer(size, dtype)
            merge = make(model, rank)
            weight = cast(Tensor, cast(Any, model)[0].base_layer.weight)
            before, asked = weight.detach().double(), torch.zeros(size, size, dtype=torch.float64)
            generator = torch.Generator().manual_seed(1)
            for number in range(1, merges[-1] + 1):
                A, B = (torch.randn(shape, generator=generator) for shape in ((rank, size), (size, rank)))
                B *= length * before.norm().item() / (B @ A).norm().item()
                scale = merge(A, B)
                asked += scale * (B.double() @ A.double())
                if number in merges:
                    row = {"way": way, "relative": length, "merges": number}
                    rows.append(row | realised(before, weight.detach().double(), asked))
    return rows


def realised(before: Tensor, after: Tensor, asked: Tensor) -> dict[str, float]:
    """What became of an update.

    Args:
        before: the weight.
        after: the weight.
        asked: what was to be added.

    Returns:
        The gain and the error.

    Example:
        >>> one = torch.ones(2, 2, dtype=torch.float64)
        >>> realised(one, 1.5 * one, one)
        {'gain': 0.5, 'error': 0.5}
    """
    change = after - before
    square = asked.square().sum()
    return {"gain": float((change * asked).sum() / square), "error": float((change - asked).norm() / asked.norm())}


def _layer(size: int, dtype: torch.dtype) -> nn.Module:
    layer = nn.Linear(size, size, bias=False)
    layer.weight.data = SPREAD * torch.randn(size, size, generator=torch.Generator().manual_seed(0))
    return nn.Sequential(layer).to(dtype)


def _chain(model: nn.Module, rank: int) -> Merge:
    optimizer = ChainOfLoRA("chain", RATE, rank, Never(), alpha=rank).prepare(model, [LAYER], steps=1, seed=0).optimizer
    assert isinstance(optimizer, ChainLoRAOptimizer)
    (site,) = optimizer.sites.values()

    def merge(A: Tensor, B: Tensor) -> float:
        with torch.no_grad():
            site.A.copy_(A)
            site.B.copy_(B)
        scale = site.scaling
        optimizer.tie_knot()
        return scale

    return merge


def _peft(model: nn.Module, rank: int) -> Merge:
    layer: Any = cast(Any, LoRA("LoRA", RATE, rank, alpha=rank).inject(model, [LAYER]))[0]

    def merge(A: Tensor, B: Tensor) -> float:
        with torch.no_grad():
            layer.lora_A[ADAPTER].weight.copy_(A)
            layer.lora_B[ADAPTER].weight.copy_(B)
        layer.merge()
        # Merged for good: the next merge is another.
        layer.merged_adapters.clear()
        return float(layer.scaling[ADAPTER])

    return merge
