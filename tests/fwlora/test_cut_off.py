"""A knot that is cut off anywhere is completed exactly by whatever is called next."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.fwlora.cutting import CUTS, EXCEPTIONS, VARIANTS, Run, difference, interruptible

WAYS = ["step", "tie_knot", "state_dict", "export_adapter", "save", "zero_grad"]
MODES = {"scheduled": True, "by hand": False}
TRIALS = 2  # of each variant and mode


class Trials:
    """One variant's knot, cut off at places of choice."""

    def __init__(self, name: str, scheduled: bool, folder: Path) -> None:
        self.name, self.scheduled, self.folder = name, scheduled, folder
        self._expected: dict[tuple[str, bool], tuple[list[float], dict[str, Any]]] = {}
        self._runs = 0
        before, after = self._run(), self._run()
        with pytest.raises(MemoryError):
            before.knot(1, CUTS["MemoryError"])
        self.operations = after.knot().count
        self.before, self.after, self.right = before.sites(), after.sites(), after.function()

    def cut(self, place: int, cut: str, way: str) -> None:
        """Cut the knot off, go on, and hold it against the run that nothing cut off."""
        run = self._run()
        with pytest.raises(EXCEPTIONS), interruptible():
            run.knot(place, CUTS[cut])
        self._check_between_sites(run)
        losses = run.go_on(way)
        # By hand it may have been cut off before it had begun: then nobody goes on with it, and nothing of it is left.
        tied = self.scheduled or len(run.optimizer.chain) == self._knots(way)
        expected_losses, expected = self.expected(way, tied)
        told = f"{self.name}, operation {place} of {self.operations}, {cut}, then {way}"
        assert losses == expected_losses, told
        assert difference(run.everything(), expected) is None, told

    def expected(self, way: str, tied: bool = True) -> tuple[list[float], dict[str, Any]]:
        """Losses and all that is left of the run that nothing cut off; untied, nobody asked for the knot."""
        if (way, tied) not in self._expected:
            run = self._run()
            if tied:
                run.knot()
            self._expected[way, tied] = run.go_on(way), copy.deepcopy(run.everything())
        return self._expected[way, tied]

    def _knots(self, way: str) -> int:
        return len(self.expected(way)[1]["optimizer"]["fwlora"]["links"])

    def _check_between_sites(self, run: Run) -> None:
        """Where every site is as before the knot or as after it, the function is right, which only Algorithm 2 changes."""
        if run.optimizer.merge.ball is not None:
            return
        sites = zip(run.sites(), self.before, self.after, strict=True)
        if all(_same(now, before) or _same(now, after) for now, before, after in sites):
            change = (run.function() - self.right).norm() / self.right.norm()
            assert change <= {torch.float32: 1e-6, torch.float16: 2e-3, torch.bfloat16: 1.2e-2}[run.variant.dtype]

    def _run(self) -> Run:
        self._runs += 1
        return Run(self.name, self.folder / str(self._runs), scheduled=self.scheduled)


def _same(some: Iterable[torch.Tensor], others: Iterable[torch.Tensor]) -> bool:
    return all(map(torch.equal, some, others))


@pytest.fixture
def trials(tmp_path, monkeypatch):
    """`trials(name, mode)`, with chunks so small that a merge has several."""
    monkeypatch.setattr("fwlora.layers.rounding.CHUNK", 16)
    return lambda name, mode: Trials(name, MODES[mode], tmp_path)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", VARIANTS)
def test_knot_cut_off_somewhere_is_completed_exactly_by_the_next_call(trials, name, mode):
    some = trials(name, mode)
    generator = random.Random(f"{name} {mode}")
    for _ in range(TRIALS):
        some.cut(generator.randint(1, some.operations), generator.choice([*CUTS]), generator.choice(WAYS))


@pytest.mark.long
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", VARIANTS)
def test_knot_cut_off_anywhere_is_completed_exactly_by_the_next_call(trials, name, mode):
    """Every operation, every cut; what is called next goes round, and another way at each cut."""
    every = trials(name, mode)
    for place in range(1, every.operations + 1):
        for number, cut in enumerate(CUTS):
            every.cut(place, cut, WAYS[(place + 2 * number) % len(WAYS)])
