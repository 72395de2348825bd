"""A base model with random weights and batches of random tokens: what speed and memory are measured on."""

from __future__ import annotations

import gc
import os
import platform
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn

from experiments.accounting import architectures
from experiments.accounting.contenders import chosen, contenders, variants
from experiments.accounting.memory import Bytes, fits, training_bytes
from experiments.errors import UsageError
from experiments.language.loading import DTYPES
from experiments.methods import Method, unavailable
from experiments.tasks.random_tokens import RandomTokens
from fwlora.errors import LostUpdatesWarning

ALL_LINEAR = "all-linear"


@dataclass(frozen=True)
class Bench:
    """One model, one batch size, one device.

    Attributes:
        base: a name of `architectures.KNOWN` or a folder with a config.
        dtype: of the base's weights: fp32, bf16 or fp16.
        device: cpu or cuda.
        rows: of a batch.
        length: tokens of a row.
        targets: the layers to adapt.
        rank: of the factors.
        knots: that a chain ties in a run.
        steps: of a run.
        autocast: compute in bf16 whatever the weights' dtype.
        checkpointing: recompute activations in the backward pass.
    """

    base: str
    dtype: str
    device: str
    rows: int
    length: int
    targets: tuple[str, ...]
    rank: int
    knots: int
    steps: int
    autocast: bool = False
    checkpointing: bool = False

    def check(self) -> None:
        """Finds out whether there is such a model and such a device.

        Raises:
            UsageError: there is not.
        """
        if not self.targets:
            raise UsageError("--targets: name at least one layer.")
        if self.dtype not in DTYPES:
            raise UsageError(f"--dtype {self.dtype}: choose from {', '.join(DTYPES)}.")
        if self.device not in {"cpu", "cuda"}:
            raise UsageError(f"--device {self.device}: choose from auto, cpu, cuda; CUDA_VISIBLE_DEVICES says which.")
        if torch.device(self.device).type == "cuda" and not torch.cuda.is_available():
            raise UsageError(f"--device {self.device}: torch sees no CUDA device here; give cpu or auto.")
        config = architectures.config_of(self.base)
        positions = getattr(config, "max_position_embeddings", self.length)
        if self.length > positions:
            raise UsageError(f"--length {self.length}: {self.base} has {positions} positions; give at most that.")
        skeleton = self.skeleton()
        for target in self.targets:
            if not any(name == target or name.endswith(f".{target}") for name, _ in skeleton.named_modules()):
                layers = ", ".join(architectures.linear_layers(skeleton))
                raise UsageError(f"--targets {target}: {self.base} has no layer of that name; choose from {layers}.")

    def skeleton(self) -> nn.Module:
        """The base without data."""
        return self._checkpointed(architectures.skeleton(architectures.config_of(self.base), DTYPES[self.dtype]))

    def model(self) -> nn.Module:
        """The base with random weights, on the device."""
        return self._checkpointed(
            architectures.random_model(architectures.config_of(self.base), DTYPES[self.dtype], self.device)
        )

    def task(self) -> RandomTokens:
        """Batches on the device, of full rows: there is nothing to mask."""
        vocabulary = architectures.config_of(self.base).vocab_size
        return RandomTokens(vocabulary, self.rows, self.length, self.device, self.autocast, padded=False)

    def methods(self, labels: tuple[str, ...]) -> list[Method]:
        """LoRA, and the methods called `labels`; none for all."""
        linear = architectures.linear_layers(self.skeleton())
        every = contenders(self.rank, self.knots + 1, self.steps, linear=linear, half=self.dtype != "fp32")
        return chosen(every, labels)

    def variants(self) -> list[Method]:
        """What `methods` has, and what tells where its time and memory goes."""
        config, linear = architectures.config_of(self.base), architectures.linear_layers(self.skeleton())
        return variants(
            self.rank, self.knots + 1, self.steps, linear=linear, half=self.dtype != "fp32", layers=config.num_hidden_layers
        )

    def bytes(self, method: Method) -> Bytes:
        """What a step of the method should hold, by its shapes."""
        return training_bytes(method, self.skeleton(), self.targets, self.rows, self.length, padded=False)

    def obstacle(self, method: Method, *, beside: float = 0) -> str | None:
        """Why a method cannot run here.

        Args:
            method: that is to run.
            beside: bytes that others hold meanwhile.

        Returns:
            The reason, None where there is none.
        """
        if (missing := unavailable(method)) is not None:
            return missing
        has = "beside the others the device has" if beside else "the device has"
        return fits(self.bytes(method), max(0.0, memory_of(self.device) - beside) / 1e9, has=has)

    def _checkpointed(self, model: nn.Module) -> nn.Module:
        if self.checkpointing:
            cast(Any, model).activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
        return model


def targets_of(base: str, targets: tuple[str, ...]) -> tuple[str, ...]:
    """The layers that are meant: `all-linear` stands for every linear layer but the head.

    Args:
        base: a name of `architectures.KNOWN` or a folder with a config.
        targets: names as they were given.

    Returns:
        Names of layers.
    """
    if ALL_LINEAR not in targets:
        return targets
    return architectures.linear_layers(architectures.skeleton(architectures.config_of(base)))


def memory_of(device: str) -> float:
    """The bytes of a device, or of this machine; infinite where nobody tells."""
    if torch.device(device).type == "cuda":
        return float(torch.cuda.get_device_properties(device).total_memory)
    try:
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (AttributeError, ValueError, OSError):
        return float("inf")


def name_of(device: str) -> str:
    """What the machine is called."""
    return torch.cuda.get_device_name(device) if torch.device(device).type == "cuda" else platform.processor() or "a CPU"


@contextmanager
def tf32(on: bool) -> Iterator[None]:
    """Products of float32 matrices in TF32 on a CUDA device, where `on` says so."""
    before = torch.get_float32_matmul_precision()
    if on:
        torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def sweep() -> None:
    """Gives back what nobody holds any more: models lie in cycles, and CUDA's allocator keeps what was freed."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@contextmanager
def short_links() -> Iterator[None]:
    """Links of a few steps without the warnings that they do not pay or change no weight: nothing is learnt here."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".* makes a link of ")
        warnings.simplefilter("ignore", LostUpdatesWarning)
        yield
