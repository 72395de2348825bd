"""Rows become tokens, targets and losses; a wrong row is named by its line."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer

from experiments.errors import UsageError
from experiments.tasks.jsonl import IGNORED, Example, collate, evaluate, nats, read_rows, tokenize


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path):
    return AutoTokenizer.from_pretrained(tiny_model)


@pytest.fixture(scope="module")
def model(tiny_model: Path):
    return AutoModelForCausalLM.from_pretrained(tiny_model)


def test_text_is_all_target_and_starts_as_the_tokenizer_starts_it(tokenizer):
    (example,) = tokenize([{"text": "the cat sat"}], tokenizer, 32)
    assert example.ids == tuple(tokenizer("the cat sat")["input_ids"])
    assert (example.ids[0], example.targets) == (tokenizer.bos_token_id, 3)
    (ended,) = tokenize([{"text": "the cat sat"}], tokenizer, 32, end_texts=True)
    assert ended.ids == (*example.ids, tokenizer.eos_token_id)


def test_only_the_completion_is_a_target_and_it_is_ended(tokenizer):
    (example,) = tokenize([{"prompt": "the cat", "completion": "sat on"}], tokenizer, 32)
    words = tokenizer.convert_ids_to_tokens(list(example.ids))
    assert words == ["<s>", "the", "cat", "sat", "on", "</s>"]
    labels = collate([example]).labels[0]
    assert labels.tolist() == [IGNORED] * 3 + list(example.ids[3:])


def test_a_long_prompt_loses_its_beginning_but_not_the_start_token_nor_the_completion(tokenizer):
    (example,) = tokenize([{"prompt": "the cat sat on the mat and then", "completion": "it was"}], tokenizer, 6)
    words = tokenizer.convert_ids_to_tokens(list(example.ids))
    assert words == ["<s>", "and", "then", "it", "was", "</s>"]


def test_rows_with_nothing_to_predict_are_left_out(tokenizer):
    assert len(tokenize([{"text": ""}, {"text": "cat"}], tokenizer, 32)) == 1


def test_loss_on_the_completion_does_not_see_the_prompts_own_loss(model, tokenizer):
    (example,) = tokenize([{"prompt": "the cat", "completion": "sat"}], tokenizer, 32)
    with torch.no_grad():
        logits = model(torch.tensor([example.ids])).logits[0]
        expected = functional.cross_entropy(logits[2:4], torch.tensor(example.ids[3:]), reduction="sum")
        assert float(nats(model, collate([example]))) == pytest.approx(float(expected), rel=1e-5)


def test_padding_changes_no_loss(model):
    short, long = Example((1, 3, 5), 0), Example((1, 4, 6, 7, 8, 9), 0)
    with torch.no_grad():
        apart = sum(float(nats(model, collate([row]))) for row in (short, long))
        assert float(nats(model, collate([short, long]))) == pytest.approx(apart, rel=1e-5)
    assert evaluate(model, [short, long], 2) == pytest.approx(apart / 7, rel=1e-5)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (['{"text": "a"}', "{text: 1}"], r"line 2: not JSON \(.* at column 2\)"),
        (['{"text": "a"}', "", '{"words": "a"}'], r"line 3: has the fields 'words'; give 'text', or 'prompt' and 'completion'"),
        (['{"prompt": "a"}'], r"line 1: has the fields 'prompt'"),
        (['{"text": 3}'], r"line 1: 'text' is of type int; give a string"),
        (["[1]"], r"line 1: list instead of an object"),
        ([], r"the file has no rows"),
    ],
)
def test_a_wrong_row_is_named_by_option_file_and_line(jsonl, rows, words):
    path = jsonl("rows.jsonl", rows)
    with pytest.raises(UsageError, match=words) as raised:
        read_rows(path, "--train")
    assert str(raised.value).startswith(f"--train {path}")
    assert "\n" not in str(raised.value)


def test_a_missing_or_unreadable_file_is_named(tmp_path: Path):
    with pytest.raises(UsageError, match=r"--eval .*nowhere.jsonl: there is no such file"):
        read_rows(tmp_path / "nowhere.jsonl", "--eval")
    (tmp_path / "latin.jsonl").write_bytes(b'{"text": "caf\xe9"}')
    with pytest.raises(UsageError, match="not UTF-8"):
        read_rows(tmp_path / "latin.jsonl", "--train")
