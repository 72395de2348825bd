"""Encoders with a classification head: a text is read whole and its label is one of a fixed number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from experiments.errors import UsageError
from experiments.language.lengths import TOKENS, batches, evaluating
from experiments.language.loading import load_weights
from experiments.tasks.language.question import Question


@dataclass(frozen=True)
class Labelled:
    """A text in tokens.

    Attributes:
        ids: the tokens, with those that the tokenizer puts around a text.
        label: what it is to be called.
    """

    ids: tuple[int, ...]
    label: int


@dataclass(frozen=True)
class LabelledBatch:
    """Texts, padded on the right."""

    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor


def load_classifier(model: str, labels: int, dtype: torch.dtype, seed: int) -> tuple[nn.Module, tuple[str, ...]]:
    """An encoder with a head.

    Args:
        model: the encoder's folder, or its name on the hub.
        labels: how many.
        dtype: of the weights.
        seed: of what the files do not have; the global generator is left as it was.

    Returns:
        The model, and the names of the parameters that were drawn.
    """
    from transformers import AutoModelForSequenceClassification

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        loaded, report = load_weights(
            AutoModelForSequenceClassification, model, dtype,
            num_labels=labels, ignore_mismatched_sizes=True, output_loading_info=True,
        )  # fmt: skip
    drawn = [*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])]
    return loaded, tuple(sorted(drawn))


def new_modules(model: Any, drawn: Sequence[str]) -> tuple[str, ...]:
    """The modules to train in full: what stands beside the encoder, and what in it was drawn.

    Args:
        model: an encoder with a head.
        drawn: names of parameters that no file had.

    Returns:
        Paths of modules, none inside another.
    """
    encoder = model.base_model_prefix
    beside = [name for name, child in model.named_children() if name != encoder and any(True for _ in child.parameters())]
    inside = [name.rpartition(".")[0] for name in drawn if name.startswith(f"{encoder}.")]
    return tuple(dict.fromkeys([*inside, *beside]))


def label_all(questions: Sequence[Question], tokenizer: Any, max_length: int) -> tuple[Labelled, ...]:
    """Questions as texts with labels.

    Args:
        questions: with the same candidates, whose numbers are the labels.
        tokenizer: of transformers; it cuts texts that are too long.
        max_length: tokens of the longest.

    Returns:
        The texts, in the order of the questions.
    """
    texts = [question.prompt.rstrip(" ") for question in questions]
    ids = tokenizer(texts, truncation=True, max_length=max_length)["input_ids"]
    return tuple(Labelled(tuple(row), question.answer) for row, question in zip(ids, questions, strict=True))


def candidates(questions: Sequence[Question], task: str) -> int:
    """How many labels there are.

    Args:
        questions: all of a task.
        task: its name, for messages.

    Returns:
        The number of candidates that every question has.

    Raises:
        UsageError: two questions have different ones.
    """
    first = questions[0].candidates
    for question in questions:
        if question.candidates != first:
            raise UsageError(
                f"--tasks {task}: candidates differ from question to question ({first[0]!r}, {question.candidates[0]!r}, ...), "
                "so that an encoder's head has no labels; give --model a decoder."
            )
    return len(first)


def collate(rows: Sequence[Labelled], padding: int) -> LabelledBatch:
    """Pads texts on the right, with the token whose positions RoBERTa does not count."""
    width = max(len(row.ids) for row in rows)
    input_ids = torch.full((len(rows), width), padding)
    mask = torch.zeros_like(input_ids)
    for index, row in enumerate(rows):
        input_ids[index, : len(row.ids)] = torch.tensor(row.ids)
        mask[index, : len(row.ids)] = 1
    return LabelledBatch(input_ids, mask, torch.tensor([row.label for row in rows]))


def logits(model: nn.Module, batch: LabelledBatch) -> Tensor:
    """One row of logits a text, in float32 or better."""
    device = next(model.parameters()).device
    found = model(input_ids=batch.input_ids.to(device), attention_mask=batch.attention_mask.to(device)).logits
    return found.to(torch.promote_types(found.dtype, torch.float32))


def loss(model: nn.Module, batch: LabelledBatch) -> Tensor:
    """Mean cross-entropy."""
    found = logits(model, batch)
    return functional.cross_entropy(found, batch.labels.to(found.device))


def logits_of_all(model: nn.Module, rows: Sequence[Labelled], padding: int, tokens: int = TOKENS) -> list[Tensor]:
    """The logits of many texts.

    Args:
        model: an encoder with a head; its mode is put back.
        rows: in any order.
        padding: the token to pad with.
        tokens: of a forward pass, at most.

    Returns:
        Each text's logits, in the order of the texts, on the CPU.
    """
    found: list[Tensor] = [torch.empty(0)] * len(rows)
    with evaluating(model):
        for chosen in batches([len(row.ids) for row in rows], tokens):
            parts = logits(model, collate([rows[index] for index in chosen], padding)).double().cpu()
            for index, part in zip(chosen, parts, strict=True):
                found[index] = part
    return found
