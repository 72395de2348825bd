"""Language tasks as problems: what is trained, measured, counted and refused."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig

from experiments.compare import LanguageProblem, Run, execute
from experiments.errors import UsageError
from experiments.language import bases, loading, scoring
from experiments.methods import ChainOfLoRA, LoRA, PrefixTuning
from experiments.tasks.answering import Answering
from experiments.tasks.language.source import Sampling
from experiments.tasks.pretrained import COMMONEST, Pretrained
from experiments.tasks.prompted import problem
from fwlora import Evenly
from tests.experiments.conftest import SHARED
from tests.experiments.decoders import CLASSES, TARGETS, encoder_on_disk, on_disk, words, write_task
from tests.experiments.test_scoring import slow

ANIMALS, PLACES = ("cat", "dog", "bird"), ("on the mat", "under a tree", "and then it was red")
ROWS: list[dict[str, Any]] = [
    {"question": f"the {animal} sat {place} and it was", "choices": ["red", "blue", "red and blue"][: 2 + (animal == "cat")],
     "answer": int(animal == "dog")}
    for animal in ANIMALS for place in PLACES
]  # fmt: skip


def make(base: str | Path, data: str, **fields: Any) -> Pretrained:
    defaults = {"sampling": Sampling(7, 2, 6), "draw": 0, "batch_size": 3, "epochs": 8, "max_length": 24, "device": "cpu"}
    return problem("animals", base=str(base), data_dir=data, **{**defaults, **fields})


@pytest.fixture
def data(tmp_path: Path) -> str:
    return write_task(tmp_path / "data", "animals", ROWS, ROWS)


@pytest.fixture
def answering(tiny_model: Path, data: str) -> Answering:
    found = make(tiny_model, data)
    assert isinstance(found, Answering)
    return found


def test_a_problem_is_what_studies_ask_for(answering: Answering):
    assert isinstance(answering, LanguageProblem)
    assert (answering.name, answering.steps, answering.trained) == ("animals", 8 * 3, ())
    assert answering.watched == "model.layers.1.self_attn.v_proj"
    assert answering.metric.higher_is_better
    assert pickle.loads(pickle.dumps(answering)) == answering
    assert hash(answering) == hash(pickle.loads(pickle.dumps(answering)))


def test_steps_are_the_epochs_batches_or_the_limit(tiny_model: Path, data: str):
    assert make(tiny_model, data, epochs=5, batch_size=2).steps == 5 * 4
    assert make(tiny_model, data, limit=9).steps == 9


@pytest.mark.parametrize("limit", [None, 5])
def test_extent_is_a_recount_over_the_batches(tiny_model: Path, data: str, limit: int | None):
    found = make(tiny_model, data, limit=limit)
    shapes = [tuple(b.rows.input_ids.shape) for step in range(found.steps) for b in found.task(3).batches(step)]
    extent = found.extent(3)
    assert extent.examples == sum(rows for rows, _ in shapes)
    assert extent.tokens == sum(rows * width for rows, width in shapes)
    assert extent.squares == sum(rows * width**2 for rows, width in shapes)


def test_a_batch_has_every_candidate_of_its_questions_and_seeds_order_them(answering: Answering):
    (batch,) = answering.task(0).batches(0)
    questions = [answering.examples("train")[index] for index in answering.order(0).rows_of(0)]
    assert batch.counts == tuple(len(q.candidates) for q in questions)
    assert set(batch.counts) <= {2, 3}
    assert batch.answers == tuple(q.answer for q in questions)
    assert answering.task(0).targets(batch) == 3
    assert [answering.order(seed).rows_of(0) for seed in (0, 1)] == [answering.order(seed).rows_of(0) for seed in (0, 1)]
    assert answering.order(0).rows_of(0) != answering.order(1).rows_of(0)


def test_copies_are_the_files_and_share_nothing(answering: Answering):
    one, two = answering.model(), answering.model()
    for (name, parameter), other in zip(one.named_parameters(), two.parameters(), strict=True):
        assert torch.equal(parameter, other), name
        assert parameter.data_ptr() != other.data_ptr()
    before = answering.evaluate(two)
    with torch.no_grad():
        for parameter in one.parameters():
            parameter.fill_(0.1)
    assert answering.evaluate(answering.model()) == before


@pytest.mark.parametrize("kind", CLASSES)
def test_copies_keep_what_is_tied(kind: str, data: str, tmp_path: Path):
    found = make(on_disk(tmp_path / kind, kind), data, targets=TARGETS[kind])
    model: Any = found.model()
    whole = CLASSES[kind].from_pretrained(found.base)
    tied = whole.get_output_embeddings().weight is whole.get_input_embeddings().weight
    assert (model.get_output_embeddings().weight is model.get_input_embeddings().weight) == tied
    ids = torch.tensor([[1, 4, 6, 9]])
    with torch.no_grad():
        assert torch.equal(model(input_ids=ids).logits, whole.eval()(input_ids=ids).logits)


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_the_base_is_in_the_dtype_that_was_asked_for(tiny_model: Path, data: str, dtype: str):
    found = make(tiny_model, data, dtype=dtype, limit=2)
    assert {parameter.dtype for parameter in found.model().parameters()} == {loading.DTYPES[dtype]}
    assert all(loss == loss for loss in execute(Run(found, LoRA("LoRA", 1e-3, 2), 0))["losses"])


METHODS = [LoRA("LoRA", 3e-2, 4), ChainOfLoRA("chain", 3e-2, 4, Evenly(2))]


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.label)
def test_a_decoder_learns_a_task_in_the_one_loop(answering: Answering, method, tmp_path: Path):
    is_chain = isinstance(method, ChainOfLoRA)
    row = execute(Run(answering, method, seed=0, export_to=str(tmp_path / "adapter") if is_chain else None))
    assert len(row["losses"]) == answering.steps
    assert sum(row["losses"][-3:]) < 0.3 * sum(row["losses"][:3])
    assert row["value"] > 80
    answers = [question.answer for question in answering.examples("test")]
    assert set(row["details"]) == {"validation loss", COMMONEST}
    assert row["details"][COMMONEST] == 100 * max(map(answers.count, answers)) / len(answers)
    assert row == {**execute(Run(answering, method, seed=0)), "export": row["export"], "seconds": row["seconds"]}
    if is_chain:
        assert row["export"]["largest_difference"] < 1e-4 * row["export"]["largest_output"]


@pytest.mark.parametrize("kind", CLASSES)
def test_any_architecture_of_decoders_is_served(kind: str, data: str, tmp_path: Path):
    found = make(on_disk(tmp_path / kind, kind), data, targets=TARGETS[kind], limit=3)
    assert found.watched.endswith(TARGETS[kind][-1])
    row = execute(Run(found, LoRA("LoRA", 1e-2, 2), seed=0))
    assert 0 <= row["value"] <= 100
    assert len(row["spectrum"]) > 0


def test_prefixes_are_scored_too(answering: Answering):
    row = execute(Run(answering, PrefixTuning("prefix", 1e-2, 2), seed=0))
    assert row["losses"][-1] < row["losses"][0]


def test_accuracy_and_loss_are_those_of_each_candidate_alone(answering: Answering):
    model = answering.model().eval()
    questions = answering.rows("dev") + answering.rows("test")
    with torch.no_grad():
        expected = slow(model, questions)
    right = [int(s.argmax()) == q.answer for s, q in zip(expected, questions, strict=True)]
    assert answering.validate(model) == pytest.approx(100 * sum(right[:2]) / 2)
    assert answering.evaluate(model) == pytest.approx(100 * sum(right[2:]) / 6)
    losses = [-float(s.log_softmax(0)[q.answer]) for s, q in zip(expected[:2], questions[:2], strict=True)]
    assert answering.details(model)["validation loss"] == pytest.approx(sum(losses) / 2, abs=1e-6)


def test_details_score_nothing_anew_unless_the_model_has_changed(answering: Answering, monkeypatch: pytest.MonkeyPatch):
    calls, score = [], scoring.score_all
    monkeypatch.setattr(scoring, "score_all", lambda *a: calls.append(1) or score(*a))
    model = answering.model()
    answering.validate(model)
    kept = answering.details(model)
    assert len(calls) == 1
    assert kept == answering.details(answering.model())
    assert len(calls) == 2
    with torch.no_grad():
        next(model.parameters()).mul_(-1)
    assert answering.details(model) != kept
    assert len(calls) == 3


def test_identity_changes_with_the_rows_and_with_the_models_files_alone(data: str, tmp_path: Path):
    folder = Path(on_disk(tmp_path / "model", "llama"))
    found = make(folder, data)
    before = found.identity()
    assert {"data train.jsonl", "data validation.jsonl", "examples", "model config.json"} <= before.keys()
    assert "model model.safetensors" in before
    assert found.identity() == before
    (folder / "README.md").write_text("words")
    assert found.identity() == before
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 1e-4}))
    assert {name for name, value in found.identity().items() if value != before[name]} == {"model config.json"}
    assert make(folder, data, draw=1).identity()["examples"] != before["examples"]


def test_importing_the_problems_loads_no_model_and_reads_no_file():
    code = (
        "import sys, experiments.tasks.prompted as p\n"
        "p.Answering('RTE', 'no/where', 'nowhere', p.Sampling(), 0)\n"
        "assert 'rouge_score' not in sys.modules and 'datasets' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


def test_what_a_model_is_by_its_config(data: str, tmp_path: Path):
    for kind in CLASSES:
        assert bases.is_decoder(on_disk(tmp_path / kind, kind))
    for kind in ("bert", "roberta"):
        assert not bases.is_decoder(encoder_on_disk(tmp_path / kind, kind))
    (tmp_path / "t5").mkdir()
    (tmp_path / "t5" / "config.json").write_text(json.dumps({"model_type": "t5", "is_encoder_decoder": True}))
    with pytest.raises(UsageError, match="an encoder with a decoder; give a decoder, or an encoder alone"):
        make(tmp_path / "t5", data)


def test_a_decoder_without_its_head_is_refused(data: str, tmp_path: Path):
    folder = on_disk(tmp_path / "bare", "llama")
    from safetensors.torch import load_file, save_file

    weights = load_file(Path(folder) / "model.safetensors")
    save_file({k: v for k, v in weights.items() if k != "lm_head.weight"}, Path(folder) / "model.safetensors", {"format": "pt"})
    with pytest.raises(UsageError, match=r"its files have no weights for lm_head\.weight"):
        make(folder, data).model()


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"max_length": 33}, "--max-length 33: this model reads at most 32 tokens; give that or less."),
        ({"targets": ("q_proj", "c_attn")}, "has no layer 'c_attn'; choose from q_proj, k_proj, v_proj, o_proj"),
        ({"sampling": Sampling(90, 1, 1)}, "--examples 90 1 1"),
    ],
    ids=["max-length", "targets", "examples"],
)
def test_what_cannot_be_is_refused_before_anything_is_loaded(
    tiny_model: Path, data: str, fields: dict, line: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(bases, "_loaded", lambda *a: pytest.fail("the weights were read"))
    with pytest.raises(UsageError) as error:
        make(tiny_model, data, **fields)
    assert line in str(error.value)
    assert "\n" not in str(error.value)


def test_a_model_that_is_nowhere_is_one_line(data: str, tmp_path: Path):
    with pytest.raises(UsageError, match=r"--model \./no/where: there is no such folder"):
        make("./no/where", data)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=r"has no config\.json"):
        make(tmp_path / "empty", data)
    (tmp_path / "empty" / "config.json").write_text("{ not json")
    with pytest.raises(UsageError, match="its config cannot be loaded") as error:
        make(tmp_path / "empty", data)
    assert "\n" not in str(error.value)


def test_a_torn_weights_file_is_one_line(data: str, tmp_path: Path):
    folder = on_disk(tmp_path / "torn", "llama")
    weights = Path(folder) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(UsageError, match=r"torn: it cannot be loaded") as error:
        make(folder, data).model()
    assert "\n" not in str(error.value)


def test_a_hub_that_cannot_be_reached_is_asked_once_and_named_with_the_remedy(data: str, monkeypatch: pytest.MonkeyPatch):
    calls = []

    def unreachable(name: str):
        calls.append(name)
        raise OSError("We couldn't connect to 'https://hub' to load the files.\nCheck your internet connection.")

    monkeypatch.setattr(AutoConfig, "from_pretrained", unreachable)
    for _ in range(2):
        with pytest.raises(UsageError) as error:
            make("some/model-of-the-hub", data)
        assert str(error.value) == (
            "--model some/model-of-the-hub: no folder here, and its config cannot be loaded from the hub (We couldn't connect "
            "to 'https://hub' to load the files); give a folder that `save_pretrained` has written, or a connection."
        )
    assert calls == ["some/model-of-the-hub"]


def test_real_questions_under_a_real_model_score_as_each_candidate_alone(stories: Path):
    for task, length in (("RTE", 512), ("CB", 96)):
        if not (SHARED / task).is_dir():
            pytest.skip(f"no ../shared/data/{task} beside the repository")
        found = problem(
            task,
            base=str(stories),
            data_dir=str(SHARED),
            sampling=Sampling(20, 10, 6),
            draw=0,
            max_length=length,
            device="cpu",
        )
        assert isinstance(found, Answering)
        model = found.model().eval()
        questions = found.rows("test")
        assert all(row.ids[0] == 1 and len(row.ids) <= length for question in questions for row in question.rows)
        with torch.no_grad():
            expected = slow(model, questions)
        for one, other in zip(scoring.score_all(model, questions), expected, strict=True):
            assert torch.allclose(one.float(), other, atol=2e-5, rtol=0)
        tokenizer = found.start.tokenizer()
        whole, question = found.rows("test")[0].rows, found.examples("test")[0]
        text = tokenizer.decode(whole[0].ids[whole[0].context :])
        assert text.strip() == question.candidates[0].strip()


def test_a_tokenizer_that_begins_no_text_gives_no_beginning():
    assert scoring.beginning(words(begins=False)) == []
    assert scoring.beginning(words(begins=True, ends=True)) == [1]
