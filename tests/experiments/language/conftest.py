"""Two rows of every task, as the official files and as the hub have them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest
from datasets import ClassLabel, Dataset

from experiments.tasks.language.source import draw, examples

Rows = list[dict[str, Any]]
BOOLEAN = ("False", "True")


@pytest.fixture(scope="session")
def official() -> dict[str, Rows]:
    """Two rows a task in the form of the official jsonl files."""
    rain = {
        "text": "It rained. Ann stayed in.",
        "questions": [
            {
                "question": "Why did Ann stay in?",
                "answers": [
                    {"text": "Rain", "idx": 0, "label": 1},
                    {"text": "She was ill", "idx": 1, "label": 0},
                ],
                "idx": 0,
            },
            {"question": "Who stayed in?", "answers": [{"text": "Ann", "idx": 2, "label": 1}], "idx": 1},
        ],
    }
    snow = {
        "text": "It snowed.",
        "questions": [{"question": "What fell?", "answers": [{"text": "Hail", "idx": 3, "label": 0}], "idx": 2}],
    }
    return {
        "SST-2": [
            {"sentence": "a fine film ", "label": 1, "idx": 0},
            {"sentence": "dull , very dull ", "label": 0, "idx": 1},
        ],
        "WSC": [
            {
                "text": "Mark told Pete many lies. He was hurt.",
                "target": {"span1_text": "Pete", "span1_index": 2, "span2_text": "He", "span2_index": 5},
                "idx": 0,
                "label": True,
            },
            {
                "text": "The cup fits the case because it is small.",
                "target": {"span1_text": "the case", "span1_index": 3, "span2_text": "it", "span2_index": 6},
                "idx": 1,
                "label": False,
            },
        ],
        "CB": [
            {"premise": "She knew it rained.", "hypothesis": "it rained", "label": "entailment", "idx": 0},
            {"premise": "Does he say he won?", "hypothesis": "he won", "label": "neutral", "idx": 1},
            {"premise": "It is false that he won.", "hypothesis": "he won", "label": "contradiction", "idx": 2},
        ],
        "WiC": [
            {"word": "place", "sentence1": "A place to sit.", "sentence2": "Place it here.", "idx": 0, "label": False,
             "start1": 2, "start2": 0, "end1": 7, "end2": 5, "version": 1.1},
            {"word": "go", "sentence1": "Go home.", "sentence2": "We go home.", "idx": 1, "label": True, "start1": 0,
             "start2": 3, "end1": 2, "end2": 5, "version": 1.1},
        ],
        "BoolQ": [
            {"question": "is the sea salt", "passage": "The sea holds salt.", "idx": 0, "label": True},
            {"question": "can a stone swim?", "passage": "Stones sink.", "idx": 1, "label": False, "title": "Stone"},
        ],
        "MultiRC": [{"idx": 0, "passage": rain}, {"idx": 1, "passage": snow}],
        "RTE": [
            {"premise": "Ann sang.", "hypothesis": "Somebody sang.", "label": "entailment", "idx": 0},
            {"premise": "Ann sang.", "hypothesis": "Ann slept.", "label": "not_entailment", "idx": 1},
        ],
    }  # fmt: skip


@pytest.fixture(scope="session")
def hub(official) -> dict[tuple[str, str | None], Dataset]:
    """The same rows as tables of the hub: flat, and a label is the number of a class."""

    def labelled(rows: Rows, *labels: str) -> Dataset:
        names = list(labels)
        numbered = [
            row | {"label": names.index(str(row["label"])) if isinstance(row["label"], (bool, str)) else row["label"]}
            for row in rows
        ]
        return Dataset.from_list(numbered).cast_column("label", ClassLabel(names=names))

    wsc = [{"text": row["text"], "idx": row["idx"], "label": row["label"]} | row["target"] for row in official["WSC"]]
    multirc = [
        {
            "paragraph": row["passage"]["text"],
            "question": question["question"],
            "answer": answer["text"],
            "idx": {"paragraph": row["idx"], "question": question["idx"], "answer": answer["idx"]},
            "label": answer["label"],
        }
        for row in official["MultiRC"]
        for question in row["passage"]["questions"]
        for answer in question["answers"]
    ]
    boolq = [{"question": row["question"], "answer": row["label"], "passage": row["passage"]} for row in official["BoolQ"]]
    return {
        ("nyu-mll/glue", "sst2"): labelled(official["SST-2"], "negative", "positive"),
        ("aps/super_glue", "wsc.fixed"): labelled(wsc, *BOOLEAN),
        ("aps/super_glue", "cb"): labelled(official["CB"], "entailment", "contradiction", "neutral"),
        ("aps/super_glue", "wic"): labelled(official["WiC"], *BOOLEAN),
        ("google/boolq", None): Dataset.from_list(boolq),
        ("aps/super_glue", "multirc"): labelled(multirc, *BOOLEAN),
        ("aps/super_glue", "rte"): labelled(official["RTE"], "entailment", "not_entailment"),
    }


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[object], list[tuple[str, str | None, str]]]]:
    """`served(what)`: the hub answers with a table, with what a function of (path, config) gives, or by raising an error.

    What was asked for is in the list that it returns.
    """

    def serve(what: Any) -> list[tuple[str, str | None, str]]:
        asked: list[tuple[str, str | None, str]] = []

        def load_dataset(path: str, name: str | None = None, *, split: str):
            asked.append((path, name, split))
            if isinstance(what, Exception):
                raise what
            return what(path, name) if callable(what) else what

        monkeypatch.setattr(datasets, "load_dataset", load_dataset)
        return asked

    yield serve
    for cached in (draw, examples):
        cached.cache_clear()  # what was served here is no one else's


@pytest.fixture
def folder(tmp_path: Path) -> Callable[..., str]:
    """`folder(task, train, validation)`: a data folder where the task has these rows; one that is text is written as it is."""

    def write(task: str, train: list, validation: list | None = None) -> str:
        place = tmp_path / "data" / task
        place.mkdir(parents=True)
        for split, rows in {"train": train, "validation": train if validation is None else validation}.items():
            lines = (row if isinstance(row, str) else json.dumps(row) for row in rows)
            (place / f"{split}.jsonl").write_text("".join(line + "\n" for line in lines), encoding="utf-8")
        return str(tmp_path / "data")

    return write
