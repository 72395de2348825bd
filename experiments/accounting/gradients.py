"""How exact the factors' gradients are: a chain's against PEFT's on the same weights, and both against float32."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from experiments.accounting.bench import Bench, short_links, sweep
from experiments.accounting.contenders import RATE
from experiments.accounting.refusals import Refusals, told
from experiments.methods import ChainOfLoRA, LoRA, Method
from experiments.train import backward
from fwlora import Never

# In half precision one batch's median over a few factors is off by some per cent; in float32 there is little to see.
BATCHES, EXACT_BATCHES = 8, 2
# Of B's entries, which start at zero: A would have no gradient.
SPREAD = 0.02

Gradients = Mapping[tuple[str, int], Tensor]
"""Of the factors, by the parameters' names and the batch, on the CPU."""


def accuracy(bench: Bench) -> dict[str, Any]:
    """Takes the gradients of some batches under PEFT's layers and under a chain's.

    Args:
        bench: the model and the batches.

    Returns:
        Plain data. `difference`: the chain's from PEFT's, relative to PEFT's, all factors as one vector, the largest over
        batches; `largest`: the same of a factor by itself, over factors and batches. In half precision the errors against a
        float32 model of the same values, factor by factor: `chain` and `lora`, the median of each, and `paired`, the median of
        the chain's over PEFT's; None otherwise. `reason` says why there is nothing.
    """
    lora = LoRA("LoRA", RATE, bench.rank)
    halves = bench.dtype != "fp32" or bench.autocast
    reason = replace(bench, dtype="fp32").obstacle(lora) or bench.obstacle(lora)
    batches = BATCHES if halves else EXACT_BATCHES
    nothing: dict[str, Any] = dict.fromkeys(("difference", "largest", "chain", "lora", "paired")) | {"reason": reason}
    if reason is not None:
        return nothing
    exact = None
    try:
        with short_links():
            ours = gradients(bench, ChainOfLoRA("chain", RATE, bench.rank, Never()), batches)
        theirs = gradients(bench, lora, batches)
        if halves:
            exact = gradients(bench, lora, batches, exact=True)
    except Refusals as error:
        return nothing | {"reason": told(error)}
    found = nothing | {"difference": max(distances(ours, theirs)), "largest": max(errors(ours, theirs))}
    if exact is None:
        return found
    chain, peft = errors(ours, exact), errors(theirs, exact)
    paired = [mine / other for mine, other in zip(chain, peft, strict=True)]
    return found | {"chain": median(chain), "lora": median(peft), "paired": median(paired)}


def gradients(bench: Bench, method: Method, batches: int, *, exact: bool = False) -> Gradients:
    """Those of each batch by itself.

    Args:
        bench: the model and the batches.
        method: whose layers compute.
        batches: how many.
        exact: in float32, on the values that the base's dtype holds.

    Returns:
        The gradients of all factors, whose values do not depend on the method.
    """
    sweep()  # the model before
    model, task = bench.model(), bench.task()
    if exact:
        model, task = model.float(), replace(task, autocast=False)
    setup = method.prepare(model, bench.targets, steps=1, seed=0)
    same_factors(setup.model)
    setup.model.train()
    found = {}
    for step in range(batches):
        setup.model.zero_grad()
        backward(setup.model, task, task.batches(step))
        for name, parameter in setup.model.named_parameters():
            if parameter.requires_grad and parameter.grad is not None:
                found[name, step] = parameter.grad.detach().cpu()
    return found


def same_factors(model: nn.Module) -> None:
    """Gives every trained parameter values that follow from its shape and place alone.

    Args:
        model: with factors.
    """
    with torch.no_grad():
        for place, parameter in enumerate(p for _, p in sorted(model.named_parameters()) if p.requires_grad):
            generator = torch.Generator().manual_seed(place)
            parameter.copy_(SPREAD * torch.randn(parameter.shape, generator=generator))


def errors(ours: Gradients, reference: Gradients) -> list[float]:
    """Distances relative to the reference's length, a number a factor and batch.

    Args:
        ours: gradients.
        reference: what they are compared with.

    Returns:
        The distances.

    Raises:
        ValueError: they are not of the same factors.

    Example:
        >>> errors({("B", 0): torch.tensor([3.0, 6.5])}, {("B", 0): torch.tensor([3.0, 4.0])})
        [0.5]
    """
    if set(ours) != set(reference):
        raise ValueError(f"gradients of different factors: {', '.join(map(str, sorted(set(ours) ^ set(reference))))}")
    return [length([ours[key].double() - wanted.double()]) / length([wanted]) for key, wanted in reference.items()]


def distances(ours: Gradients, reference: Gradients) -> list[float]:
    """Distances relative to the reference's length, all factors of a batch as one vector, a number a batch.

    Args:
        ours: gradients.
        reference: what they are compared with.

    Returns:
        The distances.
    """
    batches = sorted({batch for _, batch in reference})
    of = {batch: [key for key in reference if key[1] == batch] for batch in batches}
    return [
        length([ours[key].double() - reference[key].double() for key in of[batch]])
        / length([reference[key] for key in of[batch]])
        for batch in batches
    ]


def length(parts: Sequence[Tensor]) -> float:
    """Of the vector that the parts make up."""
    return math.sqrt(sum(float(part.double().square().sum()) for part in parts))


def median(values: list[float]) -> float:
    """The middle one, or the mean of the two in the middle."""
    return float(torch.tensor(values, dtype=torch.float64).quantile(0.5))
