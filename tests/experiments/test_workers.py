"""Work is spread over processes, of this machine or of a Dask cluster, and comes back in order."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from experiments.compare import Run
from experiments.errors import UsageError
from experiments.methods import ChainOfLoRA, LoRA
from experiments.sweep import Sweep
from experiments.tasks.regression import Regression
from experiments.workers import spread
from fwlora import Evenly


def process(item: int) -> tuple[int, int]:
    return item, os.getpid()


def fail(item: int) -> int:
    if item == 1:
        raise UsageError("item 1 is wrong")
    return item


@pytest.fixture(scope="module")
def cluster() -> Iterator:
    """A scheduler with two worker processes of one thread."""
    distributed = pytest.importorskip("distributed", reason="the experiments group is not installed")
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=":0", silence_logs=50
    ) as made:
        yield made


@pytest.mark.parametrize("workers", [1, 2])
def test_results_come_in_the_order_of_the_items(workers):
    done = []
    results = spread(process, list(range(6)), workers=workers, on_done=done.append)
    assert [item for item, _ in results] == list(range(6))
    assert sorted(done) == sorted(results)
    assert (os.getpid() in {pid for _, pid in results}) == (workers == 1)


@pytest.mark.parametrize("workers", [1, 2])
def test_error_of_a_worker_is_the_error_of_the_whole(workers):
    with pytest.raises(UsageError, match="item 1 is wrong"):
        spread(fail, [0, 1, 2], workers=workers, on_done=lambda result: None)


def test_dask_cluster_gives_what_this_process_gives(cluster, tmp_path):
    """The same sweep, on the scheduler's two workers and here: the same rows, by two processes that are not this one."""
    problem = Regression(true_rank=2, steps=4, batch_size=16)
    runs = [
        Run(problem, method, seed)
        for seed in range(3)
        for method in (LoRA("LoRA", 1e-2, 2), ChainOfLoRA("c", 1e-2, 2, Evenly(2)))
    ]
    there = Sweep(tmp_path / "there.sqlite", scheduler=cluster.scheduler_address).rows(runs, "runs")
    here = Sweep(tmp_path / "here.sqlite").rows(runs, "runs")
    for row in [*there, *here]:
        del row["seconds"]
    assert there == here
    results = spread(process, list(range(8)), workers=1, on_done=lambda result: None, scheduler=cluster.scheduler_address)
    assert [item for item, _ in results] == list(range(8))
    assert os.getpid() not in {pid for _, pid in results}


def test_error_of_a_dask_worker_is_the_error_of_the_whole(cluster):
    with pytest.raises(UsageError, match="item 1 is wrong"):
        spread(fail, [0, 1, 2], workers=1, on_done=lambda result: None, scheduler=cluster.scheduler_address)


def test_scheduler_that_is_none_is_told_in_one_line():
    with pytest.raises(UsageError, match=r"^--scheduler 127.0.0.1.nowhere: no Dask scheduler answers") as caught:
        spread(process, [0], workers=1, on_done=lambda result: None, scheduler="127.0.0.1.nowhere")
    assert "\n" not in str(caught.value)


def test_cluster_without_workers_or_with_threads_is_refused():
    distributed = pytest.importorskip("distributed", reason="the experiments group is not installed")
    with (
        distributed.LocalCluster(n_workers=0, dashboard_address=":0", silence_logs=50) as empty,
        pytest.raises(UsageError, match="it has no workers"),
    ):
        spread(process, [0], workers=1, on_done=lambda result: None, scheduler=empty.scheduler_address)
    with (
        distributed.LocalCluster(
            n_workers=1, threads_per_worker=2, processes=False, dashboard_address=":0", silence_logs=50
        ) as threads,
        pytest.raises(UsageError, match="a worker has 2 threads; start workers with --nthreads 1"),
    ):
        spread(process, [0], workers=1, on_done=lambda result: None, scheduler=threads.scheduler_address)
