"""Adapt a pretrained language model to another text: its rows are split once into test, training and validation."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from experiments.compare import Extent
from experiments.errors import UsageError
from experiments.language import loading
from experiments.language.bases import Base
from experiments.tasks.jsonl import Example, JsonlTask, collate, digest, evaluate, read_rows, tokenize
from experiments.tasks.metric import PERPLEXITY, Metric
from experiments.tasks.order import Order


@dataclass(frozen=True)
class Adaptation:
    """Next-token prediction on rows of text, by a causal language model on the CPU.

    Attributes:
        base: the model's folder.
        text: JSON lines with `text`: the first rows are the test, the last ones validation, those between training.
        steps: optimizer steps.
        batch_size: rows a step.
        max_length: tokens of a row that are read.
        held_out: rows of the test, and as many of validation.
        targets: the layers to adapt, by the end of their names.
        places: the fields that say where files lie, for which `identity` stands.
    """

    places: ClassVar[tuple[str, ...]] = ("base", "text")

    base: str
    text: str
    steps: int = 300
    batch_size: int = 4
    max_length: int = 512
    held_out: int = 300
    targets: tuple[str, ...] = ("q_proj", "v_proj")
    name: str = "adaptation"
    metric: Metric = PERPLEXITY
    max_grad_norm: float | None = 1.0
    trained: tuple[str, ...] = ()

    @property
    def watched(self) -> str:
        """The last layer that is adapted."""
        return Base(self.base).watched(self.targets)

    def model(self) -> nn.Module:
        """A fresh copy of the pretrained model."""
        return Base(self.base).copy("fp32", "cpu")

    def task(self, seed: int) -> JsonlTask:
        """The training rows in the order of `seed`."""
        rows = self.rows("train")
        return JsonlTask(rows, Order(len(rows), self.batch_size, seed), self.batch_size)

    def rows(self, split: str) -> list[Example]:
        """The rows of "train", "validation" or "test", in tokens.

        Raises:
            UsageError: the file has too few rows.
        """
        rows = _rows(self.base, self.text, self.max_length)
        if len(rows) <= 2 * self.held_out:
            raise UsageError(
                f"--text {self.text}: {len(rows)} rows are too few to hold out twice {self.held_out}; lower --held-out."
            )
        ends = {"test": (0, self.held_out), "validation": (len(rows) - self.held_out, len(rows))}
        start, end = ends.get(split, (self.held_out, len(rows) - self.held_out))
        return rows[start:end]

    def evaluate(self, model: nn.Module) -> float:
        """Perplexity on the test rows."""
        return self._perplexity(model, "test")

    def validate(self, model: nn.Module) -> float:
        """Perplexity on the validation rows."""
        return self._perplexity(model, "validation")

    def details(self, model: nn.Module) -> dict[str, float]:
        """Nothing further."""
        return {}

    def extent(self, seed: int) -> Extent:
        """What training in the order of `seed` reads."""
        task = self.task(seed)
        shapes = [batch.input_ids.shape for step in range(self.steps) for batch in task.batches(step)]
        return Extent(
            sum(n for n, _ in shapes), sum(n * length for n, length in shapes), sum(n * length**2 for n, length in shapes)
        )

    def outputs(self, model: nn.Module) -> Tensor:
        """Logits on a few test rows."""
        batch = collate(self.rows("test")[:4])
        model.eval()
        with torch.no_grad():
            return model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits[batch.attention_mask.bool()]

    def identity(self) -> dict[str, str]:
        """Digests of the text and of the model's files."""
        return {"text": digest(Path(self.text)), **Base(self.base).identity()}

    def _perplexity(self, model: nn.Module, split: str) -> float:
        # Beyond exp(700) a float has no room.
        return math.exp(min(evaluate(model, self.rows(split), batch_size=8), 700.0))


@lru_cache(maxsize=2)
def _rows(base: str, text: str, max_length: int) -> list[Example]:
    loading.check_length(max_length, Base(base).longest)
    return tokenize(read_rows(Path(text), "--text"), Base(base).tokenizer(), max_length)
