"""Memory of a training step, measured from the model's shapes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from experiments.accounting import shapes
from experiments.accounting.flops import train_only
from experiments.methods import BAdam, ChainKeepingAdam, ChainOfLoRA, Compiled, Method
from experiments.methods.lora import ADAPTER
from experiments.methods.peers import blocks
from experiments.tasks.random_tokens import next_token_loss
from fwlora.layers.fused import FusedLinear, Turn, fuse

GB = 1e9


@dataclass(frozen=True)
class Bytes:
    """What a training step holds on the device, temporaries aside.

    Attributes:
        weights: parameters and buffers.
        gradients: of what is trained, in its own dtype.
        optimizer: numbers that the optimizer keeps.
        activations: what the forward pass saves for the backward pass, the logits and the loss over all tokens.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int

    @property
    def state(self) -> int:
        """What is there whatever the batch."""
        return self.weights + self.gradients + self.optimizer

    @property
    def total(self) -> int:
        """All of it."""
        return self.state + self.activations


def training_bytes(
    method: Method,
    model: nn.Module,
    targets: Sequence[str],
    rows: int,
    length: int | None = None,
    *,
    trained: Sequence[str] = (),
    example: Tensor | None = None,
    padded: bool = True,
) -> Bytes:
    """Injects a method's layers into a model and adds up what a step of training holds.

    Where a part of the model learns at a time it is the first, from which the backward pass is longest. What a chain keeps on
    the host (its links, and one byte for each adapted weight of a half-precision base) is not on the device.

    Args:
        method: how the model is adapted.
        model: a base model that nothing has touched; changed in place, so give one on the meta device.
        targets: the layers to adapt.
        rows: of a batch.
        length: tokens of a row.
        trained: modules trained in full beside the targets.
        example: a row of input, with a leading 1, for a network that is no transformers model.
        padded: whether the batch comes with a mask of its tokens, of which attention keeps a copy a layer.

    Returns:
        The bytes.
    """
    injected = method.inject(model, targets, trained=trained)
    numbers = method.state_numbers(injected, targets, trained=trained)
    if isinstance(method, BAdam):
        train_only(injected, blocks(injected, trained)[0], trained)
    compute_as_trained(method, injected)
    idle = {parameter for layer in resting(injected) for parameter in layer.parameters()}
    trained_ones = [parameter for parameter in injected.parameters() if parameter.requires_grad and parameter not in idle]
    numbers -= sum(method.state_size(parameter.shape) for parameter in idle if parameter.requires_grad)
    # Moments are kept as the parameter is; BAdam steps a float32 copy.
    width = 4 if isinstance(method, BAdam) else max((parameter.element_size() for parameter in trained_ones), default=0)
    return Bytes(
        weights=sum(value.nbytes for value in (*injected.parameters(), *injected.buffers())),
        gradients=sum(parameter.nbytes for parameter in trained_ones),
        optimizer=width * numbers,
        activations=activation_bytes(injected, rows, length, example=example, padded=padded),
    )


def compute_as_trained(method: Method, model: nn.Module) -> None:
    """Lets the layers that a method has injected compute as they do under its optimizer, in the first link.

    Args:
        method: any method; only a chain's layers compute in a way of their own.
        model: what `inject` returned.
    """
    method = method.method if isinstance(method, Compiled) else method
    fast = method.fast_layers if isinstance(method, ChainOfLoRA) else isinstance(method, ChainKeepingAdam)
    if not fast:
        return
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, LoraLayer) and fuse(layer)}
    if isinstance(method, ChainOfLoRA) and layers:
        active = set(method.blocks.active(0, list(layers)))
        for name, layer in layers.items():
            cast(FusedLinear, layer).turn = Turn(ADAPTER, layer.r[ADAPTER], rests=name not in active)


def resting(model: nn.Module) -> Iterator[FusedLinear]:
    """The layers that take no part in a chain's link."""
    return (
        layer for layer in model.modules() if isinstance(layer, FusedLinear) and layer.turn is not None and layer.turn.rests
    )


def activation_bytes(
    model: nn.Module, rows: int, length: int | None = None, *, example: Tensor | None = None, padded: bool = True
) -> int:
    """What a forward pass saves, measured on shapes.

    Args:
        model: with its adapters injected and `requires_grad` set; on any device, the meta device included.
        rows: of a batch.
        length: tokens of a row.
        example: a row of a network's input.
        padded: whether tokens come with a mask.

    Returns:
        The bytes of the storages that autograd keeps and of the output, a language model's loss included; parameters and
        buffers are none of them.
    """
    saved, total = Saved(), 0

    def add(held: Sequence[Tensor], output: Tensor) -> None:
        nonlocal total
        saved.keep(output)
        if output.ndim == 3 and length is not None:
            next_token_loss(output, torch.zeros(output.shape[:2], dtype=torch.long))
        total = saved.bytes(held)

    shapes.forward(model, rows, length, example=example, padded=padded, within=[saved], then=add)
    return total


class Saved(saved_tensors_hooks):
    """Sees what autograd saves while it is open."""

    def __init__(self) -> None:
        self._storages: dict[int, torch.UntypedStorage] = {}
        self._body: set[int] | None = None
        super().__init__(self.keep, lambda tensor: tensor)

    def keep(self, tensor: Tensor) -> Tensor:
        """Notes a tensor's storage; views of one storage are one."""
        storage = tensor.untyped_storage()
        self._storages[storage._cdata] = storage
        return tensor

    def bytes(self, without: Iterable[Tensor]) -> int:
        """The size of the storages seen.

        Args:
            without: tensors whose storages do not count, such as parameters.

        Returns:
            Bytes.
        """
        excluded = {tensor.untyped_storage()._cdata for tensor in without}
        return sum(storage.nbytes() for key, storage in self._storages.items() if key not in excluded)

    def body_bytes(self, without: Iterable[Tensor]) -> int:
        """The size of the storages seen before a model's head was called, or of all where it has none.

        Args:
            without: as for `bytes`.

        Returns:
            Bytes.
        """
        excluded = {tensor.untyped_storage()._cdata for tensor in without}
        body = self._storages.keys() if self._body is None else self._body
        return sum(self._storages[key].nbytes() for key in body - excluded)

    def forget(self) -> None:
        """Lets go of what was seen."""
        self._storages.clear()

    @contextmanager
    def before_head(self, model: nn.Module) -> Iterator[None]:
        """Notes, while it is open, what there is when a language model calls its head, which makes the logits."""
        head = getattr(model, "get_output_embeddings", lambda: None)()
        if not isinstance(head, nn.Module):
            yield
            return
        handle = head.register_forward_pre_hook(lambda *_: self._note())
        try:
            yield
        finally:
            handle.remove()

    def _note(self) -> None:
        self._body = set(self._storages)


def fits(
    needed: Bytes, memory_gb: float, optimizer: str = "the optimizer's state", *, has: str = "the device has"
) -> str | None:
    """Whether a step's memory is there.

    Args:
        needed: by the step.
        memory_gb: what the device has, in 10^9 bytes.
        optimizer: what its state is called.
        has: what `memory_gb` is.

    Returns:
        None, or why not.
    """
    room = f"{has} {memory_gb:.4g} GB"
    if needed.state > memory_gb * GB:
        return f"needs {needed.state / GB:.0f} GB for weights, gradients and {optimizer} alone; {room}"
    if needed.total > memory_gb * GB:
        return (
            f"needs {needed.total / GB:.0f} GB, {needed.activations / GB:.0f} GB of them for activations; "
            f"{room}: take a smaller batch"
        )
    return None
