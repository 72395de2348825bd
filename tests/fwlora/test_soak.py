"""Thousands of knots, links on the disk: memory stays but for the ledger, a knot costs what it did, nothing is lost."""

from __future__ import annotations

import gc
import statistics
import sys
import tracemalloc
from itertools import pairwise

import pytest
import torch
from tqdm import trange

from fwlora import Every
from tests.conftest import assert_same, make_chain, train
from tests.tables import CASES

RECORD = 4096  # bytes that a knot of two sites may leave in memory: its record, and the name and checksum of a file
KNOTS = [60, pytest.param(2000, marks=pytest.mark.long)]


class Work:
    """Counts the calls of functions, Python's and C's: what takes time, by no clock."""

    def __init__(self) -> None:
        self.calls = 0

    def __enter__(self) -> Work:
        gc.disable()  # what it calls back is not ours
        self._before = sys.getprofile()
        sys.setprofile(self._count)
        return self

    def __exit__(self, *error: object) -> None:
        sys.setprofile(self._before)
        gc.enable()

    def _count(self, frame: object, event: str, arg: object) -> None:
        self.calls += event in {"call", "c_call"}


def tensors() -> int:
    gc.collect()
    return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("knots", KNOTS)
def test_long_chain_is_kept_on_disk_and_loses_nothing(tmp_path, dtype, knots):
    case, links = CASES["linear"], tmp_path / "links"
    model = case.model(dtype)
    optimizer = make_chain(case, model, knots=Every(1), chain_dir=links)
    batch, warm = case.batch(), knots // 4

    def knot() -> int:
        with Work() as work:
            train(optimizer, model, batch, 1)
        return work.calls

    train(optimizer, model, batch, warm - 1)
    calls, living = knot(), tensors()
    left = range(warm, knots - 1)
    ends = {left[len(left) * i // 5 - 1] for i in range(1, 6)}
    tracemalloc.start()
    held = [tracemalloc.get_traced_memory()[0]]
    for knotted in trange(warm, knots - 1, disable=knots < 1000):
        train(optimizer, model, batch, 1)
        if knotted in ends:
            gc.collect()
            held.append(tracemalloc.get_traced_memory()[0])
    tracemalloc.stop()
    # The median of five stretches: a cache that another library fills once is in one of them, a leak is in all.
    grown = 5 * statistics.median(after - before for before, after in pairwise(held)) / len(left)
    print(f"{dtype}: {grown:.0f} bytes and {calls} calls a knot")  # noqa: T201 - for the record
    assert grown < RECORD
    assert tensors() == living
    assert knot() == pytest.approx(calls, rel=0.02)
    assert len(list(links.iterdir())) == knots

    assert optimizer.ledger.column("step") == list(range(1, knots + 1))
    assert optimizer.ledger.column("knot") == list(range(knots))
    optimizer.save(tmp_path)
    other_model = case.model(dtype)
    other = make_chain(case, other_model, knots=Every(1), chain_dir=links)
    original = {name: site.weight.detach().clone() for name, site in other.sites.items()}
    other.load(tmp_path)
    assert {record.replay for record in other.ledger} == {"exact"}
    for name, site in other.sites.items():
        assert not torch.equal(site.weight, original[name])
    assert_same(model, optimizer, other_model, other)
    assert train(other, other_model, batch, 1) == train(optimizer, model, batch, 1)
