"""Candidate answers scored by a decoder: the mean log-probability of an answer's tokens after its prompt.

An answer has as many tokens as prompt and answer together have more than the prompt alone, and they are the last ones: what
a tokenizer makes of the two together is what the model reads. Rows are padded on the right, where a decoder never looks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from experiments.errors import UsageError
from experiments.language.lengths import TOKENS, batches, evaluating
from experiments.tasks.jsonl import IGNORED, Batch, Example, collate
from experiments.tasks.language.question import Question


@dataclass(frozen=True)
class Candidates:
    """A question in tokens.

    Attributes:
        rows: the prompt with each answer, whose tokens are the targets.
        answer: which one is right.
    """

    rows: tuple[Example, ...]
    answer: int

    @property
    def length(self) -> int:
        """Tokens of the longest row."""
        return max(len(row.ids) for row in self.rows)


@dataclass(frozen=True)
class Contest:
    """Some questions with all their candidates in one batch.

    Attributes:
        rows: question by question.
        counts: candidates of each question.
        answers: which one is right.
    """

    rows: Batch
    counts: tuple[int, ...]
    answers: tuple[int, ...]


def tokenize(questions: Sequence[Question], tokenizer: Any, max_length: int, task: str) -> tuple[Candidates, ...]:
    """Turns questions into tokens.

    A prompt that is too long loses its beginning, but for the token that begins a text where the tokenizer has one; all
    candidates of a question keep the same prompt.

    Args:
        questions: with their candidates.
        tokenizer: of transformers.
        max_length: tokens of the longest row.
        task: its name, for messages.

    Returns:
        The questions, in their order.

    Raises:
        UsageError: a candidate does not fit, or has nothing to be scored by.
    """
    start = beginning(tokenizer)
    prompts = [question.prompt.rstrip(" ") for question in questions]
    texts = [prompt + end for prompt, q in zip(prompts, questions, strict=True) for end in ("", *q.candidates)]
    # Not verbose: the tokenizer's warning about its maximal length is ours to heed, by cutting.
    ids = iter(tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"] if texts else ())
    found = []
    for question in questions:
        context = len(next(ids))
        rows = [next(ids) for _ in question.candidates]
        try:
            found.append(Candidates(_rows(question, context, rows, start, max_length), question.answer))
        except UsageError as error:
            raise UsageError(f"--tasks {task}, prompt {_shown(question.prompt)}: {error}") from None
    return tuple(found)


def beginning(tokenizer: Any) -> list[int]:
    """The tokens that a tokenizer puts before every text: OPT's </s>, Llama's <s>, none of GPT-2."""
    whole = list(tokenizer("a")["input_ids"])
    plain = list(tokenizer("a", add_special_tokens=False)["input_ids"])
    places = range(len(whole) - len(plain) + 1)
    return next((whole[:at] for at in places if whole[at : at + len(plain)] == plain), [])


def contest(questions: Sequence[Candidates]) -> Contest:
    """All candidates of some questions as one batch."""
    rows = collate([row for question in questions for row in question.rows])
    return Contest(rows, tuple(len(q.rows) for q in questions), tuple(q.answer for q in questions))


def scores(model: nn.Module, batch: Batch) -> Tensor:
    """The mean log-probability of each row's targets, in float32 or better.

    Args:
        model: a decoder.
        batch: rows with targets.

    Returns:
        One score a row.
    """
    device = next(model.parameters()).device
    labels = batch.labels[:, 1:].to(device)
    logits = model(
        input_ids=batch.input_ids.to(device), attention_mask=batch.attention_mask.to(device), use_cache=False
    ).logits[:, :-1]
    # Only targets are widened: of a long prompt's logits nothing is needed.
    chosen = labels != IGNORED
    wide = logits[chosen].to(torch.promote_types(logits.dtype, torch.float32))
    logs = -functional.cross_entropy(wide, labels[chosen], reduction="none")
    return torch.stack([part.mean() for part in logs.split(chosen.sum(1).tolist())])


def loss(model: nn.Module, batch: Contest) -> Tensor:
    """The questions' mean cross-entropy over their candidates, whose logits are the scores."""
    found = scores(model, batch.rows)
    counts = torch.tensor(batch.counts, device=found.device)
    # A question with fewer candidates than another: those that it lacks have probability zero.
    there = torch.arange(int(counts.max()), device=found.device) < counts[:, None]
    table = found.new_full(there.shape, -torch.inf).masked_scatter(there, found)
    return functional.cross_entropy(table, torch.tensor(batch.answers, device=found.device))


def score_all(model: nn.Module, questions: Sequence[Candidates], tokens: int = TOKENS) -> list[Tensor]:
    """Scores every candidate of many questions.

    Args:
        model: a decoder; its mode is put back.
        questions: in any order.
        tokens: of a forward pass, at most.

    Returns:
        Each question's scores, in the order of the questions, on the CPU.
    """
    rows = [row for question in questions for row in question.rows]
    found = torch.empty(len(rows), dtype=torch.float64)
    with evaluating(model):
        for chosen in batches([len(row.ids) for row in rows], tokens):
            found[chosen] = scores(model, collate([rows[index] for index in chosen])).double().cpu()
    return list(found.split([len(question.rows) for question in questions]))


def accuracy(found: Sequence[Tensor], questions: Sequence[Candidates]) -> float:
    """The percentage of questions whose right answer scores best, the first of equals; nan is never right."""
    right = [not s.isnan().any() and int(s.argmax()) == q.answer for s, q in zip(found, questions, strict=True)]
    return 100 * sum(right) / len(right)


def mean_loss(found: Sequence[Tensor], questions: Sequence[Candidates]) -> float:
    """The mean cross-entropy over candidates."""
    losses = [-s.log_softmax(0)[q.answer] for s, q in zip(found, questions, strict=True)]
    return float(torch.stack(losses).mean())


def _rows(
    question: Question, context: int, rows: Sequence[list[int]], start: list[int], max_length: int
) -> tuple[Example, ...]:
    answers = [len(ids) - context for ids in rows]
    if min(answers) < 1:
        candidate = question.candidates[answers.index(min(answers))]
        raise UsageError(f"the answer {candidate!r} adds no token to it; give one that the tokenizer can tell from its prompt.")
    if not context + len(start):
        raise UsageError("there is no token for the answers to follow; give it some text.")
    longest = max(answers)
    needed = longest + max(len(start), 1)
    if needed > max_length:
        candidate = question.candidates[answers.index(longest)]
        raise UsageError(
            f"the answer {_shown(candidate)} takes {longest} tokens, and what it follows at least {needed - longest}, but "
            f"--max-length is {max_length}; give at least {needed}."
        )
    cut = max(0, len(start) + context + longest - max_length)
    return tuple(Example((*start, *ids[cut:]), len(start) + context - cut) for ids in rows)


def _shown(text: str, width: int = 40) -> str:
    return repr(text if len(text) <= width else text[:width] + "...")
