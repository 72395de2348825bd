"""A sample's parts have their sizes, share nothing, and are a function of the seed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.errors import UsageError
from experiments.tasks.language.sampling import Sampling, allot
from experiments.tasks.language.source import draw

SIZES = st.integers(1, 60)


@given(SIZES, SIZES, SIZES, SIZES, SIZES, st.integers(0, 2**32 - 1))
def test_parts_have_their_sizes_and_share_nothing_or_the_sample_is_refused(train, dev, test, rows, held_out, seed):
    asked = Sampling(train, dev, test)
    enough = rows >= train + dev
    if not enough and (rows < train or held_out <= dev):
        with pytest.raises(UsageError, match="TRAIN DEV TEST"):
            allot("RTE", asked, train=rows, validation=held_out, seed=seed)
        return
    which = allot("RTE", asked, train=rows, validation=held_out, seed=seed)
    assert which.dev_from == ("train" if enough else "validation")
    parts = (
        {("train", i) for i in which.train},
        {(which.dev_from, i) for i in which.dev},
        {("validation", i) for i in which.test},
    )
    assert [len(part) for part in parts] == [train, dev, min(test, held_out if enough else held_out - dev)]
    assert len(set.union(*parts)) == sum(map(len, parts))
    assert all(0 <= i < {"train": rows, "validation": held_out}[split] for part in parts for split, i in part)


@pytest.mark.parametrize(
    ("task", "rows", "asked", "sizes", "dev_from"),
    [
        ("SST-2", (67349, 872), Sampling(), (1000, 500, 872), "train"),
        ("WSC", (554, 104), Sampling(54, 500, 1000), (54, 500, 104), "train"),
        ("CB", (250, 56), Sampling(150, 100, 1000), (150, 100, 56), "train"),
        ("WiC", (5428, 638), Sampling(), (1000, 500, 638), "train"),
        ("BoolQ", (9427, 3270), Sampling(), (1000, 500, 1000), "train"),
        ("BoolQ", (1061, 3270), Sampling(), (1000, 500, 1000), "validation"),
        ("MultiRC", (27243, 4848), Sampling(), (1000, 500, 1000), "train"),
        ("RTE", (2490, 277), Sampling(), (1000, 500, 277), "train"),
    ],
)
def test_the_papers_tasks_give_the_papers_sizes(task, rows, asked, sizes, dev_from):
    which = allot(task, asked, train=rows[0], validation=rows[1], seed=3)
    assert ((len(which.train), len(which.dev), len(which.test)), which.dev_from) == (sizes, dev_from)


def test_dev_and_test_do_not_depend_on_how_much_is_trained_on():
    small, large = (allot("RTE", Sampling(n, 20, 30), train=200, validation=90, seed=5) for n in (10, 180))
    assert (small.dev, small.test) == (large.dev, large.test)
    assert large.train[:10] == small.train


def sentences(prefix: str, count: int) -> list[dict[str, object]]:
    return [{"sentence": f"{prefix} {index} ", "label": index % 2, "idx": index} for index in range(count)]


def test_no_row_is_in_two_parts_and_the_seed_decides(folder):
    data = folder("SST-2", sentences("train", 40), sentences("validation", 25))
    sample = draw("SST-2", data, Sampling(20, 15, 100), 0)
    prompts = [[question.prompt for question in part] for part in (sample.train, sample.dev, sample.test)]
    assert [len(part) for part in prompts] == [20, 15, 25]
    assert len({prompt for part in prompts for prompt in part}) == 60
    assert {prompt.split()[0] for prompt in prompts[0] + prompts[1]} == {"train"}
    assert {prompt.split()[0] for prompt in prompts[2]} == {"validation"}
    draw.cache_clear()
    assert draw("SST-2", data, Sampling(20, 15, 100), 0) == sample
    other = draw("SST-2", data, Sampling(20, 15, 100), 1)
    assert all(getattr(other, part) != getattr(sample, part) for part in ("train", "dev", "test"))


def test_dev_comes_from_validation_where_train_rows_are_few_and_is_no_part_of_the_test(folder):
    data = folder("SST-2", sentences("train", 24), sentences("validation", 30))
    sample = draw("SST-2", data, Sampling(20, 10, 100), 0)
    dev, test = ({question.prompt for question in part} for part in (sample.dev, sample.test))
    assert (len(dev), len(test), len(sample.train)) == (10, 20, 20)
    assert not dev & test
    assert {prompt.split()[0] for prompt in dev | test} == {"validation"}


def test_of_multirc_answers_are_drawn(folder, official):
    data = folder("MultiRC", official["MultiRC"])
    sample = draw("MultiRC", data, Sampling(2, 2, 9), 0)
    assert [len(sample.train), len(sample.dev), len(sample.test)] == [2, 2, 4]
    assert not set(sample.train) & set(sample.dev)


@pytest.mark.parametrize(
    ("task", "asked", "words"),
    [
        (
            "CB", Sampling(), "--examples-cb 1000 500 1000: CB has 250 training examples and 56 for validation; give "
            "--examples-cb TRAIN DEV TEST with TRAIN + DEV of at most 250, or with TRAIN of at most 250 and DEV below 56.",
        ),
        (
            "WSC", Sampling(200, 60, 9), "--examples-wsc 200 60 9: WSC has 250 training examples and 56 for validation; give "
            "--examples-wsc TRAIN DEV TEST with TRAIN + DEV of at most 250, or with TRAIN of at most 250 and DEV below 56.",
        ),
        (
            "RTE", Sampling(251, 1, 1), "--examples 251 1 1: RTE has 250 training examples and 56 for validation; give "
            "--examples TRAIN DEV TEST with TRAIN + DEV of at most 250, or with TRAIN of at most 250 and DEV below 56.",
        ),
        (
            "RTE", Sampling(9, 0, 9),
            "--examples 9 0 9: each part of the sample needs an example; give numbers of at least 1.",
        ),
    ],
)  # fmt: skip
def test_too_few_rows_are_said_with_the_numbers_and_the_option(task, asked, words):
    with pytest.raises(UsageError) as raised:
        allot(task, asked, train=250, validation=56, seed=0)
    assert str(raised.value) == words
