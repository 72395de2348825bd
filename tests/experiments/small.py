"""A tiny Llama, words for it to learn, and every method at a small size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM

from experiments.methods import (
    INNERS,
    BAdam,
    BottleneckAdapters,
    ChainKeepingAdam,
    ChainOfLoRA,
    DoRA,
    FullFineTuning,
    FusedLoRA,
    GaLore,
    HalfLoRA,
    LoRA,
    LoRAFA,
    LoRAPlus,
    PiSSA,
    PrefixTuning,
    ReLoRA,
    RsLoRA,
)
from fwlora import Evenly, StepDown

TARGETS = ("q_proj", "v_proj")
WORDS, WIDTH = 20, 16
LLAMA = LlamaConfig(
    vocab_size=WORDS, hidden_size=WIDTH, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
    num_key_value_heads=1, max_position_embeddings=32, initializer_range=0.3, tie_word_embeddings=False,
)  # fmt: skip

LORAS = [
    LoRA("LoRA", 1e-2, 2),
    LoRA("LoRA with biases", 1e-2, 2, lora_bias=True),
    FusedLoRA("fused LoRA", 1e-2, 2),
    HalfLoRA("half LoRA", 1e-2, 2),
    ReLoRA("ReLoRA", 1e-2, 2, every=2),
    LoRAPlus("LoRA+", 1e-2, 2),
    LoRAFA("LoRA-FA", 1e-2, 2),
    RsLoRA("rsLoRA", 1e-2, 2),
    DoRA("DoRA", 1e-2, 2),
    PiSSA("PiSSA", 1e-2, 2),
]
CHAINS = [
    ChainOfLoRA("chain", 1e-2, 2, Evenly(2)),
    ChainOfLoRA("narrowing chain", 1e-2, StepDown([2, 1]), Evenly(2)),
    ChainOfLoRA("chain of B", 1e-2, 2, Evenly(2), freeze_A=True),
    ChainOfLoRA("chain by PEFT", 1e-2, 2, Evenly(2), fast_layers=False),
    ChainKeepingAdam("kept", 1e-2, 2, 2),
]
INNER_CHAINS = [
    ChainOfLoRA(name, 1e-2, 2, Evenly(2), inner=inner.kind, inner_options=inner.options) for name, inner in INNERS.items()
]
ACTIVATIONS = [BottleneckAdapters("bottlenecks", 1e-2, 3), PrefixTuning("prefix", 1e-2, 4)]
WHOLE = [FullFineTuning("full", 1e-2), GaLore("GaLore", 1e-2, 2), BAdam("BAdam", 1e-2, 4)]
ALL: list[Any] = [*LORAS, *CHAINS, *INNER_CHAINS, *ACTIVATIONS, *WHOLE]


def label(value: object) -> str | None:
    """The name of a parametrised test."""
    return getattr(value, "label", None)


def llama(device: str = "cpu", dtype: torch.dtype = torch.float32) -> LlamaForCausalLM:
    """The same random weights each time, or none on the meta device."""
    with torch.random.fork_rng(devices=[]), torch.device(device):
        torch.manual_seed(0)
        return LlamaForCausalLM(LLAMA).to(dtype)


def words(step: int = 0) -> Tensor:
    """Four rows of eight words."""
    return torch.randint(0, WORDS, (4, 8), generator=torch.Generator().manual_seed(step))


def logits(model: nn.Module, rows: Tensor | None = None) -> Tensor:
    """As the studies call a language model."""
    rows = words() if rows is None else rows
    return model(input_ids=rows, attention_mask=torch.ones_like(rows)).logits


@dataclass(frozen=True)
class Text:
    """Next words; the order of the batches is the seed's."""

    seed: int = 0

    def batches(self, step: int) -> list[Tensor]:
        """One batch a step."""
        return [words(1000 * self.seed + step)]

    def loss(self, model: nn.Module, batch: Tensor) -> Tensor:
        """Mean cross-entropy."""
        return functional.cross_entropy(logits(model, batch)[:, :-1].float().reshape(-1, WORDS), batch[:, 1:].reshape(-1))

    def targets(self, batch: Tensor) -> int:
        """Number of predicted words."""
        return batch[:, 1:].numel()
