"""What is wrong with the data is said in one line, with file and line or with the way out."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from datasets import Dataset
from datasets.exceptions import DatasetNotFoundError

from experiments.errors import UsageError
from experiments.tasks.language.sampling import Sampling
from experiments.tasks.language.source import draw, examples, files


def message(task: str, data_dir: str | None, split: str = "train") -> str:
    with pytest.raises(UsageError) as raised:
        examples(task, data_dir, split)
    assert "\n" not in str(raised.value)
    return str(raised.value)


RTE = {"premise": "Ann sang.", "hypothesis": "She did.", "label": "entailment"}
SPANS = {"span1_text": "Ann", "span2_text": "She"}
PASSAGE = {"text": "Rain.", "questions": [{"question": "What?", "answers": [{"text": "Rain", "label": 1}, {"text": "Sun"}]}]}
RULE = "which is no label; known are"


@pytest.mark.parametrize(
    ("task", "row", "words"),
    [
        ("RTE", RTE | {"label": "maybe"}, f"'label' is \"maybe\", {RULE} \"entailment\", \"not_entailment\", 0, 1."),
        ("RTE", RTE | {"label": True}, f"'label' is true, {RULE} \"entailment\", \"not_entailment\", 0, 1."),
        ("RTE", RTE | {"label": -1}, f"'label' is -1, {RULE} \"entailment\", \"not_entailment\", 0, 1."),
        ("RTE", RTE | {"label": ["x" * 90]}, f"'label' is [\"{'x' * 55}..., {RULE} \"entailment\", \"not_entailment\", 0, 1."),
        ("RTE", {"premise": "A", "sentence2": "B", "label": 0}, "there is no field 'hypothesis', but 'premise', 'sentence2', "
         "'label'; give 'hypothesis'."),
        ("RTE", {}, "there is no field 'premise', but none; give 'premise'."),
        ("RTE", RTE | {"premise": 3}, "'premise' is of type int; give a string."),
        ("RTE", '{"premise": "\\ud800", "hypothesis": "", "label": 0}', "'premise' holds half of a surrogate pair, which is no "
         "text; repair the row."),
        ("RTE", "[1]", "list instead of an object; give 'premise', 'hypothesis', 'label'."),
        ("RTE", "{premise: 1}", "not JSON (Expecting property name enclosed in double quotes at column 2); each line must "
         "be one object."),
        ("SST-2", {"sentence": "a", "label": "1"}, f"'label' is \"1\", {RULE} 0, 1."),
        ("CB", RTE | {"label": 3}, f"'label' is 3, {RULE} \"entailment\", \"contradiction\", \"neutral\", 0, 1, 2."),
        ("WiC", {"word": "a", "sentence1": "b", "sentence2": "c", "label": "T"},
         f"'label' is \"T\", {RULE} false, true, 0, 1."),
        ("BoolQ", {"question": "a", "passage": "b"}, "there is no field 'label', but 'question', 'passage'; give 'label'."),
        ("BoolQ", {"question": "a", "passage": "b", "answer": None}, f"'answer' is null, {RULE} false, true, 0, 1."),
        ("WSC", {"text": "a", "label": True}, "there is no field 'target', but 'text', 'label'; give 'target'."),
        ("WSC", {"text": "a", "label": True, "target": "b"}, "'target' is of type str; give an object."),
        ("WSC", {"text": "a", "label": True, "target": {"span1_text": "b"}}, "in 'target': there is no field 'span2_text', but "
         "'span1_text'; give 'span2_text'."),
        ("WSC", {"text": "a", "label": 2, "target": SPANS}, f"'label' is 2, {RULE} false, true, 0, 1."),
        ("MultiRC", {"passage": PASSAGE}, "in 'passage', in 'questions[0]', in 'answers[1]': there is no field 'label', but "
         "'text'; give 'label'."),
        ("MultiRC", {"passage": {"text": "a", "questions": {}}}, "in 'passage': 'questions' is of type dict; give a list."),
    ],
)  # fmt: skip
def test_a_wrong_row_is_named_by_file_and_line(task, row, words, official, folder):
    data = folder(task, [official[task][0], "", row])
    path = Path(data) / task / "train.jsonl"
    # "line 3: rule", or "line 3, in 'target': rule" where the fault lies deeper.
    said = message(task, data)
    assert said in {f"--data-dir {path}, line 3: {words}", f"--data-dir {path}, line 3, {words}"}


CHOICES = "give two or more, none of them empty or given twice."


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"question": "a", "choices": ["b", "c"]}, "there is no field 'answer', but 'question', 'choices'; give 'answer'."),
        ({"question": " ", "choices": ["b", "c"], "answer": 0}, "'question' is empty; give a question."),
        ({"question": "a", "choices": "bc", "answer": 0}, "'choices' is of type str; give a list."),
        ({"question": "a", "choices": ["b", 1], "answer": 0}, "'choices[1]' is of type int; give a string."),
        ({"question": "a", "choices": ["b"], "answer": 0}, f"'choices' is [\"b\"]; {CHOICES}"),
        ({"question": "a", "choices": ["b", " "], "answer": 0}, f'\'choices\' is ["b", ""]; {CHOICES}'),
        ({"question": "a", "choices": ["b", "b "], "answer": 0}, f'\'choices\' is ["b", "b"]; {CHOICES}'),
        (
            {"question": "a", "choices": ["b", "c"], "answer": 2},
            "'answer' is 2; give a number from 0 to 1 or the text of a choice.",
        ),
        (
            {"question": "a", "choices": ["b", "c"], "answer": -1},
            "'answer' is -1; give a number from 0 to 1 or the text of a choice.",
        ),
        (
            {"question": "a", "choices": ["b", "c"], "answer": True},
            "'answer' is true; give a number from 0 to 1 or the text of a choice.",
        ),
        (
            {"question": "a", "choices": ["b", "c"], "answer": "d"},
            "'answer' is \"d\"; give a number from 0 to 1 or the text of a choice.",
        ),
    ],
)
def test_a_wrong_choice_is_named_by_file_and_line(row, words, folder):
    data = folder("own", [{"question": "a", "choices": ["b", "c"], "answer": 0}, row])
    assert message("own", data) == f"--data-dir {Path(data) / 'own' / 'train.jsonl'}, line 2: {words}"


def test_a_completion_must_be_there_in_every_row(folder):
    data = folder("own", [{"prompt": "a", "completion": "b"}], [{"prompt": "a", "completion": " "}])
    where = f"--data-dir {Path(data) / 'own' / 'validation.jsonl'}, line 1"
    assert message("own", data, "validation") == f"{where}: 'completion' is empty; give the text that should follow the prompt."


def test_a_folder_whose_rows_are_neither_kind_is_refused(folder):
    data = folder("own", [{"text": "a"}])
    assert message("own", data) == (
        f"--data-dir {Path(data) / 'own' / 'train.jsonl'}, line 1: has the fields 'text'; "
        "give 'question' and 'choices' and 'answer', or 'prompt' and 'completion'."
    )


def test_a_name_that_was_mistyped_is_suggested(folder):
    assert message("sst2", None).startswith("--tasks sst2: did you mean SST-2? ")
    assert message("stories", None) == "--tasks stories: a task of your own needs --data-dir with a folder stories."
    assert "did you mean MultiRC? " in message("multi_rc", folder("multi_rc", [{"text": "a"}]))


def test_a_missing_folder_or_file_is_named_with_what_is_there(tmp_path, folder, official):
    nowhere = tmp_path / "nowhere"
    ask = "give one with <task>/train.jsonl and <task>/validation.jsonl."
    assert message("CB", str(nowhere)) == f"--data-dir {nowhere}: there is no such folder; {ask}"
    data = folder("CB", official["CB"])
    assert (
        message("RTE", data)
        == f"--data-dir {data}: has no folder 'RTE', but CB; leave --data-dir out to read RTE from the hub."
    )
    assert message("own", data) == f"--data-dir {data}: has no folder 'own', but CB; add it."
    for outside in ("../data/CB", "", "..", "."):
        assert f"has no folder {outside!r}" in message(outside, data)
    path = Path(data) / "CB" / "validation.jsonl"
    assert files("CB", data) == [path.with_name("train.jsonl"), path]
    path.rename(path.with_name("val.jsonl"))
    words = f"--data-dir {path}: there is no such file, but train.jsonl, val.jsonl; give train.jsonl and validation.jsonl."
    assert message("CB", data) == words
    with pytest.raises(UsageError, match="there is no such file"):
        files("CB", data)


@pytest.mark.parametrize(
    ("task", "rows", "words"),
    [
        ("CB", [], "the file has no rows; give one JSON object a line."),
        ("own", ["", " "], "the file has no rows; give one JSON object a line."),
        ("MultiRC", [{"passage": {"text": "a", "questions": []}}], "the split has no examples; give one that has."),
    ],
)
def test_an_empty_split_is_refused(task, rows, words, folder):
    data = folder(task, rows)
    assert message(task, data) == f"--data-dir {Path(data) / task / 'train.jsonl'}: {words}"


def test_what_is_not_utf8_is_refused(folder, official):
    data = folder("CB", official["CB"])
    (Path(data) / "CB" / "train.jsonl").write_bytes(b'{"premise": "caf\xe9"}')
    assert "not UTF-8 text" in message("CB", data)


def test_a_number_too_long_to_read_and_brackets_too_deep_are_no_json(folder):
    assert "line 1: not JSON (Exceeds the limit" in message("CB", folder("CB", ['{"idx": ' + "1" * 5000 + "}"]))
    assert "line 1: not JSON (" in message("RTE", folder("RTE", ["[" * 200_000]))


REMEDY = "give --data-dir with WSC/train.jsonl and WSC/validation.jsonl."


@pytest.mark.parametrize(
    "error",
    [
        ConnectionError("Couldn't reach 'aps/super_glue' on the Hub (OfflineModeIsEnabled)\nand more"),
        DatasetNotFoundError("Dataset 'aps/super_glue' doesn't exist on the Hub or cannot be accessed."),
        RuntimeError("Dataset scripts are no longer supported, but found super_glue.py"),
        ValueError(""),
    ],
)
def test_a_hub_that_cannot_be_read_names_the_way_out(error, served):
    served(error)
    reason = str(error).split("\n")[0] or "no reason given"
    kind = type(error).__name__
    assert message("WSC", None) == (
        f"--tasks WSC: aps/super_glue wsc.fixed cannot be read from the hub ({kind}: {reason}); {REMEDY}"
    )


def test_an_offline_environment_is_answered_at_once(monkeypatch, tmp_path):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    said = message("WSC", None)
    assert said.startswith("--tasks WSC: aps/super_glue wsc.fixed cannot be read from the hub (ConnectionError: ")
    assert "OfflineModeIsEnabled" in said
    assert said.endswith(REMEDY)


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert message("WSC", None) == (
        f"--tasks WSC: the package datasets, which reads the hub, is not installed; pip install datasets, or {REMEDY}"
    )


def test_a_wrong_row_of_the_hub_is_named_by_its_number(served):
    served(Dataset.from_list([RTE | {"label": 0}, RTE | {"label": -1}]))
    words = f'--tasks RTE: aps/super_glue rte, train, row 2: \'label\' is -1, {RULE} "entailment", "not_entailment", 0, 1.'
    assert message("RTE", None) == words
    served(Dataset.from_list([]))
    assert message("RTE", None) == "--tasks RTE: aps/super_glue rte, train: the split has no examples; give one that has."


def test_what_was_refused_is_read_once_it_is_repaired(folder, official):
    data = folder("CB", [{"premise": "a"}])
    with pytest.raises(UsageError):
        draw("CB", data, Sampling(1, 1, 1), 0)
    again = Path(data) / "CB"
    for path in again.iterdir():
        path.unlink()
    again.rmdir()
    folder("CB", official["CB"])
    assert len(draw("CB", data, Sampling(1, 1, 1), 0).train) == 1
