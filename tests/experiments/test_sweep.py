"""A sweep keeps what is finished: in any process, after any kill, and never makes it twice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from experiments import sweep as module
from experiments.compare import Run, execute
from experiments.errors import UsageError
from experiments.methods import ChainOfLoRA, FullFineTuning, LoRA
from experiments.store import Store
from experiments.sweep import Identities, Sweep, Work, carry_out, describe, key
from experiments.tasks.adaptation import Adaptation
from experiments.tasks.regression import Regression
from fwlora import At, Evenly, Every, StepDown

ROOT = Path(__file__).parents[2]
SMALL = Regression(true_rank=2, steps=4, batch_size=16)
RUNS = [
    Run(SMALL, method, seed) for seed in (0, 1) for method in (LoRA("LoRA", 1e-2, 2), ChainOfLoRA("chain", 1e-2, 2, At([2])))
]
# A sweep long enough to be killed in its middle; it says when a run is kept.
SCRIPT = """
import sys
from pathlib import Path
from experiments.compare import Run
from experiments.methods import ChainOfLoRA, LoRA
from experiments.sweep import Sweep
from experiments.tasks.regression import Regression
from fwlora import Evenly
if __name__ == "__main__":
    methods = LoRA("LoRA", 1e-2, 2), ChainOfLoRA("chain", 1e-2, 2, Evenly(2))
    runs = [Run(Regression(true_rank=2, steps=60), method, seed) for seed in range(8) for method in methods]
    Sweep(Path(sys.argv[1]), workers=2).rows(runs, "sweep")
"""


def timeless(rows):
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


def test_rows_are_those_of_the_runs_themselves(tmp_path):
    rows = Sweep(tmp_path / "runs.sqlite").rows(RUNS, "runs")
    expected = [execute(run) for run in RUNS]
    for row, own in zip(timeless(rows), timeless(expected), strict=True):
        assert row.pop("revision") is not None
        assert row == own


def test_finished_run_is_never_made_again(tmp_path, monkeypatch):
    sweep = Sweep(tmp_path / "runs.sqlite")
    first = sweep.rows(RUNS[:3], "runs")
    made = []
    monkeypatch.setattr(module, "execute", lambda run: made.append(run) or execute(run))
    again = sweep.rows([RUNS[3], *RUNS[:3], RUNS[0]], "runs")
    assert made == [RUNS[3]]
    assert again[1:] == [*first, first[0]]


def test_rows_do_not_depend_on_the_number_of_workers(tmp_path):
    alone = Sweep(tmp_path / "alone.sqlite").rows(RUNS, "runs")
    together = Sweep(tmp_path / "together.sqlite", workers=2).rows(RUNS, "runs")
    assert timeless(together) == timeless(alone)


def test_failure_of_a_run_loses_none_that_is_finished(tmp_path, monkeypatch):
    def fail(run):
        if run is RUNS[2]:
            raise UsageError("a file is missing")
        return execute(run)

    monkeypatch.setattr(module, "execute", fail)
    sweep = Sweep(tmp_path / "runs.sqlite")
    with pytest.raises(UsageError, match="a file is missing"):
        sweep.rows(RUNS, "runs")
    assert len(Store(sweep.store).rows()) == 2


def test_run_that_does_not_fit_is_a_row_with_the_reason_and_is_tried_again(tmp_path, monkeypatch):
    def overflow(run):
        raise torch.OutOfMemoryError("out of memory. Tried to allocate 2 GiB")

    sweep = Sweep(tmp_path / "runs.sqlite")
    with monkeypatch.context() as patch:
        patch.setattr(module, "execute", overflow)
        assert sweep.rows(RUNS[:1], "runs") == [{"failed": "out of memory"}]
    assert "value" in sweep.rows(RUNS[:1], "runs")[0]


@pytest.mark.parametrize(
    "other",
    [
        replace(RUNS[0], seed=1),
        replace(RUNS[0], method=replace(RUNS[0].method, lr=2e-2)),
        replace(RUNS[0], problem=replace(SMALL, steps=5)),
        # Another class with the same fields is another method.
        replace(RUNS[0], method=FullFineTuning("LoRA", 1e-2)),
    ],
)
def test_key_tells_runs_apart(other):
    assert key(other, Identities()) != key(RUNS[0], Identities())


def test_key_is_the_same_in_every_process():
    code = (
        "from experiments.sweep import *; from experiments.tasks.regression import Regression;"
        "from experiments.methods import LoRA; from experiments.compare import Run;"
        "print(key(Run(Regression(true_rank=2, steps=4, batch_size=16), LoRA('LoRA', 1e-2, 2), 0), Identities()))"
    )
    said = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert said.stdout.strip() == key(RUNS[0], Identities())


def test_key_follows_the_contents_of_the_files_and_not_their_place(tiny_model, jsonl, sentences, tmp_path):
    def keyed(problem):
        return key(Run(problem, RUNS[0].method, 0), Identities())

    text = jsonl("text.jsonl", [{"text": sentence} for sentence in sentences])
    problem = Adaptation(str(tiny_model), str(text), held_out=2)
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    (moved / "text.jsonl").write_bytes(text.read_bytes())
    before = keyed(problem)
    assert keyed(replace(problem, text=str(moved / "text.jsonl"))) == before
    text.write_text(text.read_text() + json.dumps({"text": "a dog sat"}) + "\n")
    assert keyed(problem) != before


def test_worker_refuses_files_that_are_others_than_those_of_the_sweep(tiny_model, jsonl, sentences):
    text = jsonl("text.jsonl", [{"text": sentence} for sentence in sentences])
    run = Run(Adaptation(str(tiny_model), str(text), steps=1, held_out=2), RUNS[0].method, 0)
    begun = key(run, Identities())
    text.write_text(text.read_text() + json.dumps({"text": "a dog sat"}) + "\n")
    with pytest.raises(UsageError, match="its files are not the same here"):
        carry_out(Work(begun, run))


def test_description_names_classes_and_refuses_what_it_cannot_tell_apart():
    assert describe(StepDown([4, 2])) == {"": "fwlora.rules.ranks.StepDown", "widths": [4, 2]}
    assert describe(torch.optim.SGD) == "torch.optim.sgd.SGD"
    assert describe(Every(3)) != describe(Evenly(3))
    with pytest.raises(TypeError, match="no plain description"):
        describe(lambda: None)


def test_store_that_is_no_store_is_left_alone(tmp_path):
    file = tmp_path / "runs.sqlite"
    file.write_bytes(b"something else entirely, and long enough to be looked at" * 40)
    with pytest.raises(UsageError, match=r"runs.sqlite: not a file of finished runs"):
        Store(file)
    assert file.read_bytes().startswith(b"something else")


def test_first_row_of_a_key_stays(tmp_path):
    store = Store(tmp_path / "runs.sqlite")
    store.add("a", {}, {"value": 1.0})
    store.add("a", {}, {"value": 2.0})
    assert Store(store.path).rows() == {"a": {"value": 1.0}}


def test_sweep_killed_at_any_moment_goes_on_where_it_stopped(tmp_path):
    """SIGKILL once 1, 5 and 9 runs are kept: none is lost, and the rows come out as those of an uninterrupted sweep."""
    file = tmp_path / "runs.sqlite"
    command = [sys.executable, "-W", "ignore", "-c", SCRIPT, str(file)]
    kept: set[str] = set()
    for enough in (1, 5, 9):
        child = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL, start_new_session=True)
        while child.poll() is None and len(_keys(file)) < enough:
            time.sleep(0.02)
        child.send_signal(signal.SIGKILL)  # the parent alone: its workers are to notice
        child.wait()
        now = _keys(file)
        assert kept <= now
        assert len(now) < 16
        kept = now
        assert _gone(child.pid)
    subprocess.run(command, cwd=ROOT, stderr=subprocess.DEVNULL, check=True)
    whole = Path(tmp_path / "whole.sqlite")
    subprocess.run([*command[:-1], str(whole)], cwd=ROOT, stderr=subprocess.DEVNULL, check=True)
    rows, expected = Store(file).rows(), Store(whole).rows()
    assert len(rows) == 16
    assert {name: timeless([row]) for name, row in rows.items()} == {name: timeless([row]) for name, row in expected.items()}


def _keys(file: Path) -> set[str]:
    return set(Store(file).rows()) if file.exists() else set()


def _gone(group: int) -> bool:
    """Whether every process of the group ends: workers look for their parent several times a second."""
    for _ in range(500):
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.02)
    return False
