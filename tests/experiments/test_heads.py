"""Encoders get a head for a task's labels, drawn from the sample's seed and trained in full."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from torch import nn
from torch.nn import functional

from experiments.compare import Run, execute
from experiments.errors import UsageError
from experiments.language import heads
from experiments.language.bases import Base
from experiments.methods import ChainOfLoRA, LoRA
from experiments.tasks.labelling import Labelling
from experiments.tasks.language.question import Question
from experiments.tasks.language.source import Sampling
from experiments.tasks.prompted import problem
from fwlora import Evenly
from tests.experiments.decoders import encoder_on_disk, words, write_task

RATE = 2e-2
ROWS = [{"question": f"is the {animal} on {place}", "choices": ["yes", "no"], "answer": "yes" if animal == "cat" else "no"}
        for animal in ("cat", "dog", "cat", "bird") for place in ("the mat", "a tree", "it", "the bird on it")]  # fmt: skip


@pytest.fixture(scope="module", params=["bert", "roberta"])
def encoder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    return encoder_on_disk(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture
def labelling(encoder: str, tmp_path: Path) -> Labelling:
    data = write_task(tmp_path, "animals", ROWS, ROWS)
    found = problem(
        "animals", base=encoder, data_dir=data, sampling=Sampling(8, 4, 6), draw=0, batch_size=4, epochs=40, max_length=28,
        device="cpu", targets=("query", "value"),
    )  # fmt: skip
    assert isinstance(found, Labelling)
    return found


def test_the_head_and_what_no_file_has_are_trained(labelling: Labelling):
    assert labelling.trained == ("classifier",) or labelling.trained == ("bert.pooler.dense", "classifier")
    assert isinstance(labelling.model().get_submodule("classifier"), nn.Module)
    assert labelling.watched.endswith("layer.1.attention.self.value")


def test_the_head_is_the_samples_and_the_encoder_is_the_files(labelling: Labelling):
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    one, two = labelling.model(), Base(labelling.base, 2, 0).copy("fp32", "cpu")
    assert torch.equal(before, torch.random.get_rng_state())
    other = Base(labelling.base, 2, 1).copy("fp32", "cpu")
    drawn = 0
    for (name, parameter), same, different in zip(one.named_parameters(), two.parameters(), other.parameters(), strict=True):
        assert torch.equal(parameter, same), name
        assert parameter is not same
        if not torch.equal(parameter, different):
            assert name.startswith(labelling.trained), name
            drawn += 1
    assert drawn > 0


def test_logits_are_those_of_each_text_alone(labelling: Labelling):
    model = labelling.model().eval()
    rows = labelling.rows("test")
    assert len({len(row.ids) for row in rows}) > 1
    for size in (8, 30, 1000):
        for row, found in zip(rows, heads.logits_of_all(model, rows, labelling.padding, size), strict=True):
            with torch.no_grad():
                alone = model(input_ids=torch.tensor([row.ids])).logits[0]
            assert torch.allclose(found, alone.double(), atol=1e-5)


def test_loss_is_the_cross_entropy_of_the_answers(labelling: Labelling):
    model = labelling.model().eval()
    batch = labelling.task(0).batches(0)[0]
    expected = functional.cross_entropy(heads.logits(model, batch), batch.labels)
    assert torch.equal(heads.loss(model, batch), expected)
    rows = labelling.rows("train")
    assert batch.labels.tolist() == [rows[index].label for index in labelling.order(0).rows_of(0)]


def test_a_long_text_loses_its_beginning(encoder: str):
    tokenizer = Base(encoder, 2).tokenizer()
    (row,) = heads.label_all([Question("the cat sat on the mat", (" a", " b"), 1)], tokenizer, 5)
    assert row.ids == (1, *words(begins=False)("on the mat")["input_ids"], 2)
    assert row.label == 1


def test_roberta_reads_less_than_its_table_of_positions_holds(encoder: str):
    assert Base(encoder, 2).longest == (28 if "roberta" in encoder else 32)


@pytest.mark.parametrize(
    "method", [LoRA("LoRA", RATE, 2), ChainOfLoRA("chain", RATE, 2, Evenly(2))], ids=lambda method: method.label
)
def test_an_encoder_learns_a_task_in_the_one_loop(labelling: Labelling, method, tmp_path: Path):
    is_chain = isinstance(method, ChainOfLoRA)
    row = execute(Run(labelling, method, seed=0, export_to=str(tmp_path / "adapter") if is_chain else None))
    assert sum(row["losses"][-4:]) < 0.5 * sum(row["losses"][:4])
    assert row["value"] > 60
    assert row["details"]["validation loss"] > 0
    if is_chain:  # a head that came back otherwise would show here
        assert row["export"]["largest_difference"] < 1e-4 * row["export"]["largest_output"] + 1e-5
        assert row["export"]["base_difference"] > 1e-2


def test_varying_candidates_are_refused(encoder: str, tmp_path: Path):
    rows = [*ROWS[:3], {"question": "it is", "choices": ["so", "the mat", "no"], "answer": 0}]
    data = write_task(tmp_path, "varying", rows, rows)
    with pytest.raises(UsageError, match="--tasks varying: candidates differ from question to question") as error:
        problem("varying", base=encoder, data_dir=data, sampling=Sampling(2, 1, 3), draw=0, targets=("query",), max_length=28)
    assert "give --model a decoder" in str(error.value)


def test_half_precision_is_refused(encoder: str, tmp_path: Path):
    data = write_task(tmp_path, "animals", ROWS, ROWS)
    with pytest.raises(UsageError, match="--dtype bf16: an encoder's new head"):
        problem("animals", base=encoder, data_dir=data, sampling=Sampling(2, 1, 3), draw=0, dtype="bf16")


def test_an_encoder_writes_nothing(encoder: str, tmp_path: Path):
    rows = [{"prompt": "the cat", "completion": "sat"}] * 4
    data = write_task(tmp_path, "texts", rows, rows)
    with pytest.raises(UsageError, match="--tasks texts: its rows are completions"):
        problem("texts", base=encoder, data_dir=data, sampling=Sampling(2, 1, 3), draw=0)


def test_the_head_survives_its_adapter(labelling: Labelling, tmp_path: Path):
    """The exported folder on a fresh base gives the trained model's answers."""
    method = ChainOfLoRA("chain", RATE, 2, Evenly(2))
    execute(Run(labelling, method, seed=1, export_to=str(tmp_path / "adapter")))
    reloaded = PeftModel.from_pretrained(labelling.model(), str(tmp_path / "adapter"))  # pyright: ignore[reportArgumentType]
    assert labelling.evaluate(reloaded) > 60
