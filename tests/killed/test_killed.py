"""A run that is killed again and again ends as the run that nobody disturbed, bit for bit."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from tests.fwlora.cutting import difference
from tests.killed.script import VARIANTS

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked")

STEPS = 300
ROOT = Path(__file__).parents[2]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def kill_often(
    folder: Path, variant: str, steps: int, kills: int, calls: int = 0, limits: Sequence[int] = ()
) -> dict[str, int]:
    """What the launcher did in a process of its own."""
    arguments = [str(folder), variant, str(steps), json.dumps([kills, calls, list(limits)])]
    command = [sys.executable, "-m", "tests.killed.launcher", *arguments]
    done = subprocess.run(command, env=ENVIRONMENT, cwd=ROOT, check=False, stdout=subprocess.PIPE, text=True)
    assert done.returncode == 0
    return json.loads(done.stdout.splitlines()[-1])


def kill_interpreter(folder: Path, variant: str, steps: int, moment: float) -> None:
    """Start the script as a user does, and kill it some seconds after its first save."""
    command = [sys.executable, "-m", "tests.killed.script", str(folder / "killed"), variant, str(steps)]
    process = subprocess.Popen(command, env=ENVIRONMENT, cwd=ROOT)
    while process.poll() is None and not (folder / "killed" / "state" / "chain.pt").exists():
        time.sleep(0.01)
    time.sleep(moment)
    process.kill()
    assert process.wait() == -9, "the run ended before it was killed"


def assert_undisturbed(folder: Path, steps: int) -> None:
    """Weights, losses, links, residuals, moments, counters and ledger, which tells in `replay` of the loads alone."""
    runs = list(folder.glob("killed*"))
    assert runs
    for killed in runs:
        assert_same_run(killed, folder / "undisturbed", steps)


def assert_same_run(killed: Path, undisturbed: Path, steps: int) -> None:
    losses = json.loads((killed / "state" / "losses.json").read_text())
    assert losses == json.loads((undisturbed / "state" / "losses.json").read_text())
    assert len(losses) == steps
    assert len(set(losses)) > steps // 2, "the run must learn something to compare"
    documents = [[torch.load(run / file) for file in ("model.pt", "state/chain.pt")] for run in (killed, undisturbed)]
    for _, state in documents:
        assert len(state["fwlora"]["ledger"]) == len(state["fwlora"]["links"]) == steps // 3
        assert {record.pop("replay") for record in state["fwlora"]["ledger"]} <= {None, "exact"}
        state["fwlora"].pop("checksum", None)  # of a ledger in which `replay` stands
    assert difference(*documents) is None
    left = {path.name for path in killed.rglob(".*")}
    assert len(left) <= 1, f"at most the last kill's unfinished file may lie about: {left}"


def test_run_killed_at_some_moments_ends_as_the_undisturbed_one(tmp_path):
    """As an interpreter of its own, around each call of the system that makes a file count, within files, and at random."""
    variant, steps = "links on disk", 198
    kill_interpreter(tmp_path, variant, steps, random.Random(0).uniform(0, 0.05))
    # Six steps have three saves and two knots, each of which makes three such calls, and a save one for the losses.
    told = kill_often(tmp_path, variant, steps, kills=4, calls=2 * 21, limits=[500, 4000, 8000])
    assert (told.pop("calls"), told.pop("bytes"), sum(told.values())) == (42, 3, 4)
    assert_undisturbed(tmp_path, steps)


@pytest.mark.long
@pytest.mark.parametrize("variant", VARIANTS)
def test_run_killed_a_hundred_times_ends_as_the_undisturbed_one(tmp_path, variant):
    told = kill_often(tmp_path, variant, STEPS, kills=100)
    print(variant, told)  # noqa: T201 - for the record
    assert sum(told.values()) == 100
    assert all(told[phase] for phase in ("step", "knot", "save", "load"))
    assert_undisturbed(tmp_path, STEPS)
