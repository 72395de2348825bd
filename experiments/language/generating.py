"""Texts that a decoder writes after prompts, and how near they come to those that were wanted."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch

from experiments.errors import UsageError
from experiments.language.lengths import batches, evaluating
from experiments.language.scoring import beginning

# Of one batch, with what is written: each keeps keys and values of every layer.
TOKENS = 16384
MEASURES = {"rouge1": "ROUGE-1 (%)", "rouge2": "ROUGE-2 (%)", "rougeL": "ROUGE-L (%)"}
EXACT = "exact match (%)"


def check_room(max_new_tokens: int, max_length: int) -> None:
    """Refuses to write more than a row has room for.

    Args:
        max_new_tokens: to be written.
        max_length: tokens of prompt and text together.

    Raises:
        UsageError: no prompt fits beside them.
    """
    if max_new_tokens < 1:
        raise UsageError(f"--max-new-tokens {max_new_tokens}: give a number of at least 1.")
    if max_new_tokens >= max_length - 1:
        raise UsageError(
            f"--max-new-tokens {max_new_tokens}: leaves no room for a prompt in --max-length {max_length}; "
            f"give at most {max(1, max_length - 2)}."
        )


def write(
    model: Any, tokenizer: Any, prompts: Sequence[str], *, max_new_tokens: int, max_length: int, tokens: int = TOKENS
) -> list[str]:
    """Continues prompts greedily until the end-of-text token.

    Args:
        model: a decoder; its mode is put back.
        tokenizer: its tokenizer.
        prompts: in any order; one that is too long loses its beginning, but for the token that begins a text.
        max_new_tokens: to be written, at most.
        max_length: tokens of prompt and text together, at most.
        tokens: of a batch, at most.

    Returns:
        The texts, in the order of the prompts, without special tokens.
    """
    from transformers import GenerationConfig

    start = beginning(tokenizer)
    room = max_length - max_new_tokens - len(start)
    plain = tokenizer(list(prompts), add_special_tokens=False, verbose=False)["input_ids"] if prompts else []
    rows = [[*start, *ids[max(0, len(ids) - room) :]] for ids in plain]
    end = tokenizer.eos_token_id
    padding = next((token for token in (tokenizer.pad_token_id, end) if token is not None), 0)
    # Said in full: what a folder's own generation config says of sampling or penalties is not for a measurement.
    config = GenerationConfig(
        max_new_tokens=max_new_tokens, do_sample=False, num_beams=1, temperature=1.0, top_p=1.0, top_k=50,
        repetition_penalty=1.0, no_repeat_ngram_size=0, eos_token_id=end, pad_token_id=padding, use_cache=True,
    )  # fmt: skip
    device = next(model.parameters()).device
    written = [""] * len(rows)
    with evaluating(model):
        for chosen in batches([len(row) + max_new_tokens for row in rows], tokens):
            width = max(len(rows[index]) for index in chosen)
            ids = torch.full((len(chosen), width), padding)
            mask = torch.zeros_like(ids)
            for line, index in enumerate(chosen):
                # On the left, for what is written goes to the right.
                ids[line, width - len(rows[index]) :] = torch.tensor(rows[index])
                mask[line, width - len(rows[index]) :] = 1
            found = model.generate(input_ids=ids.to(device), attention_mask=mask.to(device), generation_config=config)
            for index, text in zip(chosen, found[:, width:].tolist(), strict=True):
                written[index] = tokenizer.decode(text, skip_special_tokens=True)
    return written


def measures(written: Sequence[str], wanted: Sequence[str]) -> dict[str, float]:
    """Mean exact match and ROUGE F-measures in percent, as rouge-score computes them without stemming.

    Blanks and newlines around a text do not count.

    Args:
        written: by the model.
        wanted: what should have been written.

    Returns:
        The means by their names.

    Example:
        >>> measures(["the cat sat"], ["the cat ran"])["ROUGE-L (%)"]
        66.66666666666666
    """
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(list(MEASURES), tokenizer=_Words())
    sums = dict.fromkeys((EXACT, *MEASURES.values()), 0.0)
    for text, target in zip(written, wanted, strict=True):
        sums[EXACT] += text.strip() == target.strip()
        for name, score in scorer.score(target, text).items():
            sums[MEASURES[name]] += score.fmeasure
    return {name: 100 * value / len(wanted) for name, value in sums.items()}


class _Words:
    """Lower-case words of letters and digits, of any script; rouge-score's own tokenizer knows none but a to z."""

    def tokenize(self, text: str) -> list[str]:
        return re.findall(r"[^\W_]+", text.lower())
