"""Floating-point operations of training, counted from the model's shapes.

A product of an m x k and a k x n matrix costs 2 m n k, and again as much backward for each of its operands that a gradient
reaches. That is all that is counted: embeddings are lookups, and what is done entry by entry (norms, softmax, dropout, Adam) is
left out, as torch's own counter leaves it out. Attention counts every pair of positions, masked or not, and no kernel's
recomputation.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import cast

from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from experiments.accounting import shapes
from experiments.accounting.products import Products
from experiments.compare import Extent
from experiments.methods import BAdam, GaLore, Method, PiSSA
from experiments.methods.method import unfreeze
from experiments.methods.peers import blocks

# The count is a polynomial in rows and tokens; where it is measured does not matter.
ROWS, LENGTHS = (2, 3), (4, 6, 8)


@dataclass(frozen=True)
class Reading(Extent):
    """An extent by its numbers, where no problem's data give one."""

    @classmethod
    def of(cls, examples: int, length: int) -> Reading:
        """Rows of one length."""
        return cls(examples, examples * length, examples * length**2)


@dataclass(frozen=True)
class StepCost:
    """Forward and backward FLOPs of training, as a polynomial, and what a method computes beside.

    Attributes:
        example: for each row, whatever its length: all of a CNN, nothing of a decoder.
        token: for each token: the linear layers.
        square: for each squared length: attention.
        once: for each pass: DoRA's product of its factors.
        parameters: trained numbers.
        knot: of merging every LoRA layer once.
        step: the optimizer's own products in each step: GaLore's projections.
        refresh: its singular value decompositions, each time.
        start: those before the first step: PiSSA's.
    """

    example: float
    token: float
    square: float
    once: float
    parameters: int
    knot: float
    step: float = 0
    refresh: float = 0
    start: float = 0

    def flops(self, examples: float, tokens: float, squares: float, passes: int = 1) -> float:
        """Forward and backward.

        Args:
            examples: rows of all passes.
            tokens: rows times their padded length.
            squares: rows times their padded length squared.
            passes: forward passes that they are spread over.

        Returns:
            FLOPs.
        """
        return self.example * examples + self.token * tokens + self.square * squares + self.once * passes


def run_flops(method: Method, cost: StepCost, extent: Extent, steps: int) -> float:
    """Of a whole run: every pass, planned knots and what the method computes beside.

    Args:
        method: says when knots are tied.
        cost: its `cost_of`.
        extent: what is read.
        steps: optimizer steps.

    Returns:
        FLOPs.
    """
    beside = cost.start + cost.step * steps + cost.knot * len(method.planned_knots(steps))
    if isinstance(method, GaLore):
        beside += cost.refresh * math.ceil(steps / method.update_proj_gap)
    return cost.flops(extent.examples, extent.tokens, extent.squares, passes=steps) + beside


def cost_of(
    method: Method, model: nn.Module, targets: Sequence[str], *, trained: Sequence[str] = (), example: Tensor | None = None
) -> StepCost:
    """Injects a method's layers into a model and counts.

    BAdam's is the mean over its blocks; of a transformers model's, which are alike, the first and the last are counted.

    Args:
        method: how the model is adapted.
        model: a base model that nothing has touched; changed in place, so give one on the meta device.
        targets: the layers to adapt.
        trained: modules trained in full beside them.
        example: a row of input, with a leading 1, for a network that is no transformers model.

    Returns:
        The polynomial.
    """
    matrices = [weight for name, weight in _weights(model) if _is_named(name, getattr(method, "projected", ()) or targets)]
    injected = method.inject(model, targets, trained=trained)
    if isinstance(method, BAdam):
        return _mean_of_blocks(injected, trained, example)
    made = cost(injected, example)
    if isinstance(method, GaLore):
        projections = sum(4 * weight.numel() * min(method.rank, *weight.shape) for weight in matrices)
        return replace(made, step=projections, refresh=sum(map(svd_flops, matrices)))
    return replace(made, start=sum(map(svd_flops, matrices))) if isinstance(method, PiSSA) else made


def cost(model: nn.Module, example: Tensor | None = None) -> StepCost:
    """Counts a model's products at a few sizes and solves for the polynomial.

    A product inside a custom autograd function counts forward only: count PEFT's layers, not fused ones. Gradient
    checkpointing computes the forward pass twice; that is not counted.

    Args:
        model: with its adapters injected and `requires_grad` set; on any device, the meta device included.
        example: a row of input, with a leading 1, for a network that is no transformers model.

    Returns:
        The polynomial.
    """
    one, two = ROWS
    lengths = LENGTHS if shapes.reads_tokens(model) else (None,)
    first, second = ([count(model, rows, length, example) for length in lengths] for rows in ROWS)
    row = [more - less for less, more in zip(first, second, strict=True)]
    token = square = 0.0
    if len(row) > 1:
        a, b, c = LENGTHS
        square = ((row[2] - row[1]) / (c - b) - (row[1] - row[0]) / (b - a)) / (c - a)
        token = (row[1] - row[0]) / (b - a) - square * (a + b)
    return StepCost(
        example=row[0] - token * LENGTHS[0] - square * LENGTHS[0] ** 2,
        token=token,
        square=square,
        once=first[0] - one * row[0] / (two - one),
        parameters=sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad),
        knot=sum(2 * A.numel() * len(B) for A, B in factors(model)),
    )


def count(model: nn.Module, rows: int, length: int | None = None, example: Tensor | None = None) -> int:
    """Forward and backward FLOPs of one pass.

    Args:
        model: as `cost` takes it.
        rows: of the batch.
        length: tokens of a row.
        example: a row of a network's input.

    Returns:
        FLOPs.
    """
    products, totals = Products(), []
    shapes.forward(
        model, rows, length, example=example, within=[products], then=lambda held, output: totals.append(products.total(output))
    )
    return totals[0]


def factors(model: nn.Module) -> Iterator[tuple[Tensor, Tensor]]:
    """The pairs A, B of the model's LoRA layers, A's rows and B's columns being the rank."""
    for module in model.modules():
        if isinstance(module, LoraLayer):
            for name in module.lora_A:
                yield cast(Tensor, module.lora_A[name].weight), cast(Tensor, module.lora_B[name].weight)
            for name in module.lora_embedding_A:
                yield module.lora_embedding_A[name], module.lora_embedding_B[name]


def svd_flops(matrix: Tensor) -> float:
    """A singular value decomposition with thin factors: ``6 m n^2 + 20 n^3``, m >= n.

    An estimate, of the R-bidiagonal algorithm (Golub and Van Loan, Matrix Computations): the count depends on the data, and
    torch's counter has none.
    """
    n, m = sorted(matrix.shape)
    return 6 * m * n**2 + 20 * n**3


def train_only(model: nn.Module, parameters: Sequence[nn.Parameter], trained: Sequence[str]) -> None:
    """Freezes all but some parameters and the modules called `trained`."""
    model.requires_grad_(False)
    for parameter in parameters:
        parameter.requires_grad_(True)
    unfreeze(model, trained)


def _mean_of_blocks(model: nn.Module, trained: Sequence[str], example: Tensor | None) -> StepCost:
    parts = blocks(model, trained)
    parts = [parts[0], parts[-1]] if shapes.reads_tokens(model) else parts
    costs = []
    for part in parts:
        train_only(model, part, trained)
        costs.append(cost(model, example))
    sums = {name: sum(getattr(each, name) for each in costs) / len(costs) for name in ("example", "token", "square", "once")}
    return replace(costs[0], parameters=max(each.parameters for each in costs), **sums)


def _weights(model: nn.Module) -> list[tuple[str, Tensor]]:
    found = ((name, getattr(module, "weight", None)) for name, module in model.named_modules())
    return [(name, weight) for name, weight in found if isinstance(weight, Tensor) and weight.ndim == 2]


def _is_named(path: str, names: Sequence[str]) -> bool:
    return any(path == name or path.endswith(f".{name}") for name in names)
