"""What a decoder writes is greedy and its own, and is measured as rouge-score measures."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from experiments.compare import Run, execute
from experiments.errors import UsageError
from experiments.language import generating
from experiments.methods import ChainOfLoRA, LoRA
from experiments.tasks.jsonl import nats
from experiments.tasks.language.source import Sampling
from experiments.tasks.prompted import problem
from experiments.tasks.writing import Writing
from fwlora import Evenly
from tests.experiments.decoders import CLASSES, decoder, on_disk, words, write_task

PROMPTS = ["the cat sat", "a dog ran under the tree on the mat", "it", "is it so"]
PAIRS = [{"prompt": f"the {animal}", "completion": completion}
         for animal, completion in (("cat", "sat on the mat"), ("dog", "ran under a tree"), ("bird", "flew"))]  # fmt: skip


@pytest.fixture
def writing(tiny_model: Path, tmp_path: Path) -> Writing:
    data = write_task(tmp_path, "texts", PAIRS * 4, PAIRS)
    found = problem(
        "texts", base=str(tiny_model), data_dir=data, sampling=Sampling(8, 4, 3), draw=0, batch_size=4, epochs=20,
        max_length=24, max_new_tokens=6, device="cpu",
    )  # fmt: skip
    assert isinstance(found, Writing)
    return found


@pytest.mark.parametrize("kind", CLASSES)
def test_what_is_written_is_the_greedy_continuation_of_each_prompt_alone(kind: str):
    model, tokenizer = decoder(kind, torch.float64), words(begins=kind != "gpt2")
    expected = []
    for prompt in PROMPTS:
        ids, new = list(tokenizer(prompt)["input_ids"]), []
        while len(new) < 7 and 2 not in new:
            with torch.no_grad():
                new.append(int(model(input_ids=torch.tensor([ids + new])).logits[0, -1].argmax()))
        expected.append(tokenizer.decode(new, skip_special_tokens=True))
    for size in (1, 40, 1000):
        assert generating.write(model, tokenizer, PROMPTS, max_new_tokens=7, max_length=32, tokens=size) == expected


def test_a_model_that_would_sample_is_greedy_here():
    model, tokenizer = decoder("llama"), words(begins=True)
    options = {"max_new_tokens": 6, "max_length": 32}
    plain = generating.write(model, tokenizer, PROMPTS, **options)
    model.generation_config.do_sample = True  # pyright: ignore[reportAttributeAccessIssue]
    model.generation_config.repetition_penalty = 5.0  # pyright: ignore[reportAttributeAccessIssue]
    model.generation_config.temperature = 3.0  # pyright: ignore[reportAttributeAccessIssue]
    assert generating.write(model, tokenizer, PROMPTS, **options) == plain


def test_a_long_prompt_loses_its_beginning_and_keeps_its_first_token():
    model, tokenizer = decoder("llama"), words(begins=True)
    long = "a dog sat on the mat and a bird flew under the tree"
    short = "under the tree"
    options = {"max_new_tokens": 4, "max_length": 8}
    assert generating.write(model, tokenizer, [long], **options) == generating.write(model, tokenizer, [short], **options)


def test_measures_of_exact_strings():
    """ROUGE by hand: 2 of 3 words; one of two pairs; the longest common subsequence of "a b c d" and "a c b d" is 3."""
    assert list(generating.measures(["the cat sat"], ["the cat sat\n"]).values()) == pytest.approx([100] * 4)
    found = generating.measures(["the cat sat", " The cat sat. "], ["the cat ran", "the cat sat"])
    assert found == pytest.approx({
        "exact match (%)": 0, "ROUGE-1 (%)": (200 / 3 + 100) / 2, "ROUGE-2 (%)": 75, "ROUGE-L (%)": (200 / 3 + 100) / 2,
    })  # fmt: skip
    found = generating.measures(["a b c d"], ["a c b d"])
    assert found["ROUGE-1 (%)"] == pytest.approx(100)
    assert found["ROUGE-L (%)"] == pytest.approx(75)
    assert found["ROUGE-2 (%)"] == 0
    assert set(generating.measures([""], ["a"]).values()) == {0.0}


def test_words_of_other_scripts_count():
    """Precision 1/2 and recall 1; rouge-score's own tokenizer finds no word here."""
    assert generating.measures(["кошка спит"], ["кошка"])["ROUGE-1 (%)"] == pytest.approx(200 / 3)


def test_the_task_is_the_loss_of_the_completions_alone(writing: Writing):
    batch = writing.task(0).batches(0)[0]
    rows = [writing.rows("train")[index] for index in writing.order(0).rows_of(0)]
    model = writing.model()
    total = sum(len(row.ids) - row.context for row in rows)
    assert writing.task(0).targets(batch) == total
    assert all(row.context == 3 and row.ids[-1] == 2 for row in rows)  # <s> the cat | ... </s>
    assert float(writing.task(0).loss(model, batch).detach()) == pytest.approx(float(nats(model, batch).detach()) / total)


@pytest.mark.parametrize(
    "method", [LoRA("LoRA", 3e-2, 4), ChainOfLoRA("chain", 3e-2, 4, Evenly(2))], ids=lambda method: method.label
)
def test_a_decoder_learns_to_write_in_the_one_loop(writing: Writing, method):
    before = writing.evaluate(writing.model())
    row = execute(Run(writing, method, seed=0))
    assert row["value"] > before + 10
    assert row["details"]["test ROUGE-L (%)"] == row["value"]
    assert set(row["details"]) == {
        "validation loss", "test exact match (%)", "test ROUGE-1 (%)", "test ROUGE-2 (%)", "test ROUGE-L (%)",
    }  # fmt: skip
    shapes = [batch.input_ids.shape for step in range(writing.steps) for batch in writing.task(0).batches(step)]
    assert row["extent"] == {
        "examples": sum(n for n, _ in shapes),
        "tokens": sum(n * width for n, width in shapes),
        "squares": sum(n * width**2 for n, width in shapes),
    }


def test_details_write_nothing_anew_unless_the_model_has_changed(writing: Writing, monkeypatch: pytest.MonkeyPatch):
    calls = []
    write = generating.write
    monkeypatch.setattr(generating, "write", lambda *a, **k: calls.append(1) or write(*a, **k))
    model = writing.model()
    value = writing.evaluate(model)
    assert writing.details(model)["test ROUGE-L (%)"] == value
    assert len(calls) == 1
    with torch.no_grad():
        next(model.parameters()).zero_()
    changed = writing.details(model)
    assert len(calls) == 2
    assert changed["test ROUGE-L (%)"] == writing.evaluate(model)


@pytest.mark.parametrize(("new", "line"), [(23, "give at most 22"), (0, "at least 1")])
def test_no_room_for_a_prompt_is_refused(writing: Writing, new: int, line: str):
    with pytest.raises(UsageError, match=rf"--max-new-tokens {new}: .*{line}"):
        problem(
            "texts", base=writing.base, data_dir=writing.data_dir, sampling=writing.sampling, draw=0, max_length=24,
            max_new_tokens=new,
        )  # fmt: skip


@pytest.mark.parametrize("kind", CLASSES)
def test_any_architecture_may_be_asked_to_write(kind: str, tmp_path: Path):
    data = write_task(tmp_path, "texts", PAIRS, PAIRS)
    targets = {"gpt2": ("c_attn",), "gpt-neox": ("query_key_value",)}.get(kind, ("q_proj", "v_proj"))
    found = problem(
        "texts", base=on_disk(tmp_path / kind, kind), data_dir=data, sampling=Sampling(2, 1, 2), draw=0, limit=2, batch_size=2,
        max_length=24, max_new_tokens=4, device="cpu", targets=targets,
    )  # fmt: skip
    row = execute(Run(found, LoRA("LoRA", 1e-2, 2), seed=0))
    assert 0 <= row["value"] <= 100
