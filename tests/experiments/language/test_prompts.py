"""Every prompt, letter by letter; rows of the hub read as rows of the official files do."""

from __future__ import annotations

import pytest

from experiments.tasks.language.question import Completion, Question
from experiments.tasks.language.source import _known as known  # pyright: ignore[reportPrivateUsage]
from experiments.tasks.language.source import examples, names

RAIN = "It rained. Ann stayed in."
EXPECTED = {
    "SST-2": [
        Question("a fine film It was", (" terrible", " great"), 1),
        Question("dull , very dull It was", (" terrible", " great"), 0),
    ],
    "WSC": [
        Question(
            "Mark told Pete many lies. He was hurt.\n"
            'In the previous sentence, does the pronoun "he" refer to Pete? Yes or No?\n',
            ("No", "Yes"),
            1,
        ),
        Question(
            "The cup fits the case because it is small.\n"
            'In the previous sentence, does the pronoun "it" refer to the case? Yes or No?\n',
            ("No", "Yes"),
            0,
        ),
    ],
    "CB": [
        Question('Suppose She knew it rained. Can we infer that "it rained"? Yes, No, or Maybe?\n', ("Yes", "No", "Maybe"), 0),
        Question('Suppose Does he say he won? Can we infer that "he won"? Yes, No, or Maybe?\n', ("Yes", "No", "Maybe"), 2),
        Question(
            'Suppose It is false that he won. Can we infer that "he won"? Yes, No, or Maybe?\n', ("Yes", "No", "Maybe"), 1
        ),
    ],
    "WiC": [
        Question(
            'Does the word "place" have the same meaning in these two sentences? Yes, No?\nA place to sit.\nPlace it here.\n',
            ("No", "Yes"),
            0,
        ),
        Question(
            'Does the word "go" have the same meaning in these two sentences? Yes, No?\nGo home.\nWe go home.\n',
            ("No", "Yes"),
            1,
        ),
    ],
    "BoolQ": [
        Question("The sea holds salt. Is the sea salt?\n", ("Yes", "No"), 0),
        Question("Stones sink. Can a stone swim?\n", ("Yes", "No"), 1),
    ],
    "MultiRC": [
        Question(
            f'{RAIN}\nQuestion: Why did Ann stay in?\nI found this answer "Rain". Is that correct? Yes or No?\n',
            ("No", "Yes"),
            1,
        ),
        Question(
            f'{RAIN}\nQuestion: Why did Ann stay in?\nI found this answer "She was ill". Is that correct? Yes or No?\n',
            ("No", "Yes"),
            0,
        ),
        Question(
            f'{RAIN}\nQuestion: Who stayed in?\nI found this answer "Ann". Is that correct? Yes or No?\n', ("No", "Yes"), 1
        ),
        Question(
            'It snowed.\nQuestion: What fell?\nI found this answer "Hail". Is that correct? Yes or No?\n', ("No", "Yes"), 0
        ),
    ],
    "RTE": [
        Question('Ann sang.\nDoes this mean that "Somebody sang." is true? Yes or No?\n', ("Yes", "No"), 0),
        Question('Ann sang.\nDoes this mean that "Ann slept." is true? Yes or No?\n', ("Yes", "No"), 1),
    ],
}


def test_the_papers_seven_tasks_are_known_by_name():
    assert names() == ["BoolQ", "CB", "MultiRC", "RTE", "SST-2", "WSC", "WiC"]
    assert set(EXPECTED) == set(names())


@pytest.mark.parametrize("task", EXPECTED)
def test_an_official_file_reads_as_these_questions(task, official, folder):
    assert list(examples(task, folder(task, official[task]), "train")) == EXPECTED[task]


@pytest.mark.parametrize("task", EXPECTED)
def test_the_hubs_rows_read_as_the_official_ones(task, hub, served):
    asked = served(lambda path, name: hub[path, name])
    examples.cache_clear()
    assert list(examples(task, None, "validation")) == EXPECTED[task]
    place = known()[task].hub
    assert asked == [(place.path, place.config, "validation")]


@pytest.mark.parametrize("task", EXPECTED)
def test_an_official_file_may_hold_the_hubs_rows(task, hub, folder):
    place = known()[task].hub
    rows = hub[place.path, place.config].to_list()
    assert list(examples(task, folder(task, rows), "train")) == EXPECTED[task]


def test_a_passage_that_begins_with_its_title_is_left_so(folder):
    row = {"question": "is it salt", "passage": "Sea -- The sea holds salt.", "label": True, "title": "Sea"}
    (question,) = examples("BoolQ", folder("BoolQ", [row]), "train")
    assert isinstance(question, Question)
    assert question.prompt == "Sea -- The sea holds salt. Is it salt?\n"


def test_a_choice_follows_after_one_blank_and_the_answer_is_a_number_or_a_text(folder):
    rows = [
        {"question": "2 + 2 = ", "choices": ["3", "4", "5"], "answer": "4"},
        {"question": "The sky is\n", "choices": [" blue", "a cat "], "answer": 1},
        {"question": "The sky is", "choices": ["1", "0"], "answer": "0"},
    ]
    assert examples("sums", folder("sums", rows), "train") == (
        Question("2 + 2 =", (" 3", " 4", " 5"), 1),
        Question("The sky is\n", (" blue", " a cat"), 1),
        Question("The sky is", (" 1", " 0"), 1),
    )


def test_a_prompt_with_its_completion_is_taken_as_it_is(folder):
    rows = [{"prompt": " Sum up: rain. ", "completion": " Wet.\n", "source": "x"}, {"prompt": "", "completion": "Dry"}]
    assert examples("notes", folder("notes", rows), "validation") == (
        Completion(" Sum up: rain. ", " Wet.\n"),
        Completion("", "Dry"),
    )


def test_blanks_around_a_prompt_are_dropped_and_newlines_stay(folder):
    row = {"premise": "  Ann sang.", "hypothesis": "She did.", "label": "entailment"}
    (question,) = examples("RTE", folder("RTE", [row]), "train")
    assert isinstance(question, Question)
    assert question.prompt.startswith("Ann sang.\n")
    assert question.prompt.endswith("?\n")
