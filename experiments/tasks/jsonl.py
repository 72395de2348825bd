"""Language modelling on a file of JSON lines: `text`, or `prompt` and `completion` with the loss on the completion alone."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from experiments.errors import UsageError
from experiments.tasks.lines import as_text, read_objects
from experiments.tasks.order import Order

IGNORED = -100  # torch's own "no target here"
FIELDS = "'text', or 'prompt' and 'completion'"


@dataclass(frozen=True)
class Example:
    """One row in tokens.

    Attributes:
        ids: all tokens.
        context: how many of them are given, that is, are not targets.
    """

    ids: tuple[int, ...]
    context: int

    @property
    def targets(self) -> int:
        """Tokens that are predicted; the first token never is."""
        return len(self.ids) - max(self.context, 1)


@dataclass(frozen=True)
class Batch:
    """Rows of tokens, padded on the right."""

    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor


@dataclass(frozen=True)
class JsonlTask:
    """Examples in the order of a seed, `accumulate` micro-batches a step.

    Attributes:
        examples: the rows.
        order: which rows a step takes.
        batch_size: rows of a micro-batch.
    """

    examples: Sequence[Example]
    order: Order
    batch_size: int

    def batches(self, step: int) -> list[Batch]:
        """The micro-batches of a step."""
        rows = [self.examples[row] for row in self.order.rows_of(step)]
        return [collate(rows[start : start + self.batch_size]) for start in range(0, len(rows), self.batch_size)]

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Mean nats per target."""
        return nats(model, batch) / max(self.targets(batch), 1)

    def targets(self, batch: Batch) -> int:
        """Tokens predicted."""
        return int((batch.labels[:, 1:] != IGNORED).sum())


def nats(model: nn.Module, batch: Batch) -> Tensor:
    """The sum of ``-log p`` over the batch's targets, computed in fp32."""
    device = next(model.parameters()).device
    labels = batch.labels[:, 1:].to(device)
    logits = model(
        input_ids=batch.input_ids.to(device), attention_mask=batch.attention_mask.to(device), use_cache=False
    ).logits[:, :-1]
    # Only targets are widened to fp32: of a long prompt's logits nothing is needed.
    chosen = labels != IGNORED
    return functional.cross_entropy(logits[chosen].float(), labels[chosen], reduction="sum")


def evaluate(model: nn.Module, examples: Sequence[Example], batch_size: int) -> float:
    """Mean nats per target over all examples.

    Args:
        model: the model; its mode is put back.
        examples: the rows.
        batch_size: rows a forward pass.

    Returns:
        The mean; its exponential is the perplexity.
    """
    training = model.training
    model.eval()
    total, count = 0.0, 0
    with torch.no_grad():
        for start in range(0, len(examples), batch_size):
            rows = examples[start : start + batch_size]
            total += float(nats(model, collate(rows)))
            count += sum(row.targets for row in rows)
    model.train(training)
    return total / count


def collate(rows: Sequence[Example]) -> Batch:
    """Pads rows on the right; padding is masked out and never a target."""
    width = max(len(row.ids) for row in rows)
    input_ids = torch.zeros(len(rows), width, dtype=torch.long)
    mask = torch.zeros_like(input_ids)
    labels = torch.full_like(input_ids, IGNORED)
    for index, row in enumerate(rows):
        ids = torch.tensor(row.ids)
        input_ids[index, : len(ids)] = ids
        mask[index, : len(ids)] = 1
        labels[index, row.context : len(ids)] = ids[row.context :]
    return Batch(input_ids, mask, labels)


def read_rows(path: Path, option: str) -> list[dict[str, str]]:
    """Reads and checks a file of JSON lines.

    Args:
        path: the file.
        option: the option that named it, for messages.

    Returns:
        Rows with either `text`, or `prompt` and `completion`.

    Raises:
        UsageError: the file is missing or empty, or one of its lines is not such a row.
    """
    return [_checked(row, where) for where, row in read_objects(path, option, FIELDS)]


def tokenize(rows: Sequence[dict[str, str]], tokenizer: Any, max_length: int, *, end_texts: bool = False) -> list[Example]:
    """Turns rows into examples; rows that leave nothing to predict are dropped.

    A text keeps its beginning when it is too long; a prompt keeps its end, and never costs the completion a token that fits.
    A completion ends with the tokenizer's end-of-text token where it has one and where there is room; a text is taken as it is,
    for rows are often pieces of something longer.

    Args:
        rows: from `read_rows`.
        tokenizer: a transformers tokenizer.
        max_length: longest example in tokens.
        end_texts: end texts with the end-of-text token too.

    Returns:
        The examples, in the order of the rows.
    """
    examples = []
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    for row in rows:
        if "text" in row:
            ids = _closed(_ids(tokenizer, row["text"], special=True), end if end_texts else [])
            examples.append(Example(tuple(ids[:max_length]), context=0))
            continue
        prompt = _ids(tokenizer, row["prompt"], special=True)
        completion = _closed(_ids(tokenizer, row["completion"], special=False), end)[: max_length - 1]
        room = max_length - len(completion)
        if len(prompt) > room:
            # A beginning-of-text token is worth more than the token after it: models expect it first.
            begins = prompt[:1] if prompt[0] == tokenizer.bos_token_id and room > 1 else []
            prompt = begins + prompt[len(prompt) - room + len(begins) :]
        examples.append(Example(tuple(prompt + completion), context=len(prompt)))
    return [example for example in examples if example.targets > 0]


def digest(path: Path) -> str:
    """A file's SHA-256, so that a resumed run is known to read the same rows."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _checked(row: dict[str, Any], where: str) -> dict[str, str]:
    names = ("text",) if "text" in row else ("prompt", "completion")
    for name in names:
        if name not in row:
            found = ", ".join(map(repr, row)) or "none"
            raise UsageError(f"{where}: has the fields {found}; give {FIELDS}.")
        as_text(row[name], name, where)
    return {name: row[name] for name in names}


def _ids(tokenizer: Any, text: str, *, special: bool) -> list[int]:
    # Not verbose: the tokenizer's warning about its maximal length is ours to heed, by cutting.
    return list(tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"])


def _closed(ids: list[int], end: list[int]) -> list[int]:
    return ids if end and ids[-1:] == end else ids + end
