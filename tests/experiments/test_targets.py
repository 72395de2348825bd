"""Verdicts follow from unrounded numbers."""

from __future__ import annotations

import pytest

from experiments.accounting.targets import Target, as_set_for, findings, is_plain, table

MOST = Target("step", "here", 0.7, stretch=0.6)
LEAST = Target("gain", "there", 0.98, at_least=True)


@pytest.mark.parametrize(
    ("target", "value", "verdict"),
    [
        (MOST, 0.7, "met"),
        (MOST, 0.7004, "missed"),
        (MOST, 0.6, "stretch met"),
        (MOST, None, "not measured"),
        (MOST, float("nan"), "not measured"),
        (LEAST, 0.98, "met"),
        (LEAST, 0.9799, "missed"),
        (Target("step", "here", 0.7), 0.1, "met"),
        (Target("gain", "there", 0.9, at_least=True, stretch=0.95), 0.96, "stretch met"),
    ],
)
def test_verdict_follows_from_the_number(target: Target, value: float | None, verdict: str):
    assert target.verdict(value) == verdict


def test_table_has_bound_number_and_verdict_of_each():
    assert table([(MOST, 0.653), (LEAST, 0.5), (LEAST, None)]).rows == [
        ["step", "here", "<= 0.7 (stretch 0.6)", "0.653", "met"],
        ["gain", "there", ">= 0.98", "0.5", "missed"],
        ["gain", "there", ">= 0.98", "-", "not measured"],
    ]


def test_missed_targets_are_said_and_those_not_measured_counted():
    assert findings([(MOST, 0.65), (LEAST, 0.5), (LEAST, None)]) == [
        "targets: 1 of 3 met, 1 missed, 1 not measured.",
        "missed: gain, there: 0.5, where >= 0.98 was the target.",
    ]
    assert findings([(MOST, None)]) == ["targets: 0 missed, 1 not measured."]
    assert findings([]) == []


@pytest.mark.parametrize(
    ("changed", "plain", "same"),
    [
        ({}, True, True),
        ({"base": "llama-1b"}, True, False),
        ({"rows": 8}, True, False),
        ({"rows": 8, "length": 128}, True, True),
        ({"rank": 64}, False, False),
        ({"autocast": True}, False, False),
        ({"checkpointing": True}, False, False),
    ],
    ids=str,
)
def test_figures_are_for_the_runs_that_they_were_set_for(changed: dict, plain: bool, same: bool):
    run = {"base": "opt-512", "rows": 4, "length": 256, "rank": 8, "autocast": False, "checkpointing": False} | changed
    assert is_plain(run) == plain
    assert as_set_for(run, run) == same
