"""Real files, where this checkout has them beside it: every row is read, and the label counts are the known ones."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from experiments.tasks.language.question import Question
from experiments.tasks.language.sampling import Sampling
from experiments.tasks.language.source import draw, examples

SHARED = Path(__file__).parents[4] / "shared" / "data"
YES_NO_MAYBE = ("Yes", "No", "Maybe")
COUNTS = {
    ("SST-2", "validation"): {" great": 444, " terrible": 428},
    ("RTE", "train"): {"Yes": 1249, "No": 1241},
    ("RTE", "validation"): {"Yes": 146, "No": 131},
    ("CB", "train"): {"No": 119, "Yes": 115, "Maybe": 16},
    ("CB", "validation"): {"No": 28, "Yes": 23, "Maybe": 5},
    ("BoolQ", "train"): {"Yes": 659, "No": 402},
    ("BoolQ", "validation"): {"Yes": 2033, "No": 1237},
}


@pytest.fixture
def data(request: pytest.FixtureRequest) -> str:
    if not all((SHARED / task).is_dir() for task, _ in COUNTS):
        pytest.skip("no ../shared/data with SST-2, RTE, CB and BoolQ beside the repository")
    return str(SHARED)


@pytest.mark.parametrize(("task", "split"), COUNTS)
def test_right_answers_are_as_many_as_is_known(task, split, data):
    found = examples(task, data, split)
    assert Counter(row.candidates[row.answer] for row in found if isinstance(row, Question)) == COUNTS[task, split]


def test_samples_have_the_papers_sizes(data):
    sampling = {"CB": Sampling(150, 100, 1000)}
    sizes = {}
    for task in ("SST-2", "RTE", "CB", "BoolQ"):
        sample = draw(task, data, sampling.get(task, Sampling()), 0)
        sizes[task] = (len(sample.train), len(sample.dev), len(sample.test))
    assert sizes == {"SST-2": (1000, 500, 872), "RTE": (1000, 500, 277), "CB": (150, 100, 56), "BoolQ": (1000, 500, 1000)}


def test_six_thousand_phrases_of_sst2_are_read(data):
    assert len(examples("SST-2", data, "train")) == 6000
