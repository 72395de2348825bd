"""A forward pass on shapes alone: no weight is read, no number is computed, so that a 7B model is measured on any machine.

Torch's fake tensors say which kernels would run and what they would give. They are CPU tensors here, whose attention kernel
keeps, as a GPU's does, no matrix of attention weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, cast
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import masking_utils


def forward(
    model: nn.Module,
    rows: int,
    length: int | None,
    *,
    example: Tensor | None = None,
    padded: bool = True,
    within: Sequence[AbstractContextManager] = (),
    then: Callable[[list[Tensor], Tensor], None] = lambda held, output: None,
) -> None:
    """Calls a model on shapes.

    Args:
        model: a transformers model, or a network that takes one tensor; on any device. It is called as in training, and left
            as it was.
        rows: of the batch.
        length: tokens of a row; None for a network with an `example`.
        example: a row of the network's input, with a leading 1.
        padded: give a mask of the tokens, as a batch of text needs.
        within: contexts to open around the call.
        then: called inside them with the stand-ins of parameters and buffers and with the loss, or else the output.

    Raises:
        ValueError: a network came without an example.
    """
    with FakeTensorMode(allow_non_fake_inputs=True), _dressed(model) as held, ExitStack() as stack:
        if length is not None:
            ids = torch.zeros(rows, length, dtype=torch.long)
            arguments, options = (), {"input_ids": ids, "attention_mask": torch.ones_like(ids) if padded else None}
        elif example is not None:
            arguments, options = (torch.empty(rows, *example.shape[1:], dtype=example.dtype),), {}
        else:
            raise ValueError(f"a {type(model).__name__} is no transformers model: give an example of its input")
        if not padded:
            # It asks the numbers of the positions whether rows are packed, and of shapes alone it supposes so.
            stack.enter_context(patch.object(masking_utils, "find_packed_sequence_indices", lambda position_ids: None))
        for context in within:
            stack.enter_context(context)
        output = model(*arguments, **options)
        then(held, getattr(output, "logits", output))


@contextmanager
def _dressed(model: nn.Module) -> Iterator[list[Tensor]]:
    """The model with stand-ins for its parameters and buffers, and in training mode; then as it was.

    Torch's `functional_call` does the like, but leaves a stand-in behind where one module has two names, as a PeftModel's
    embedding has.
    """
    modes = {module: module.training for module in model.modules()}
    places = [
        (table, name, value)
        for module in modes
        for table in cast(tuple[dict[str, Any], ...], (module._parameters, module._buffers))
        for name, value in table.items()
        if value is not None
    ]
    stand_ins = {id(value): _stand_in(value) for _, _, value in places}
    try:
        for table, name, value in places:
            table[name] = stand_ins[id(value)]
        model.train()
        yield list(stand_ins.values())
    finally:
        for table, name, value in places:
            table[name] = value
        for module, training in modes.items():
            module.training = training


def _stand_in(value: Tensor) -> Tensor:
    empty = torch.empty(value.shape, dtype=value.dtype, device="cpu")
    return nn.Parameter(empty, value.requires_grad) if isinstance(value, nn.Parameter) else empty


def reads_tokens(model: nn.Module) -> bool:
    """Whether it is a transformers model, PEFT's wrapper included."""
    return hasattr(getattr(model, "config", None), "model_type")
