"""Independent pieces of work, spread over processes of this machine or of a Dask cluster, by joblib."""

from __future__ import annotations

import os
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from experiments.errors import UsageError

Item = TypeVar("Item")
Result = TypeVar("Result")


def spread(
    work: Callable[[Item], Result],
    items: Sequence[Item],
    *,
    workers: int,
    on_done: Callable[[Result], object],
    scheduler: str | None = None,
) -> list[Result]:
    """Does the work for every item, in this process or in several.

    Args:
        work: a function of a module, so that another process can find it; its result must depend on the item alone.
        items: what to do.
        workers: processes on this machine; 1 stays in this one.
        on_done: called with each result as it comes, in any order.
        scheduler: address of a Dask scheduler, such as `tcp://host:8786`, whose workers do the work instead.

    Returns:
        The results, in the order of `items`.

    Raises:
        UsageError: the scheduler cannot be used.
    """
    if workers <= 1 and scheduler is None:
        made = []
        for item in items:
            made.append(work(item))
            on_done(made[-1])
        return made
    from joblib import Parallel, delayed, parallel_config

    results: dict[int, Result] = {}
    with _backend(workers, scheduler) as (backend, jobs), parallel_config(backend, n_jobs=jobs):
        # One item at a time, and no more of them under way than there are processes: whatever comes back is finished work.
        pool = Parallel(return_as="generator_unordered", batch_size=1, pre_dispatch=jobs)  # pyright: ignore[reportArgumentType]
        parent = None if scheduler else os.getpid()
        arriving = pool(delayed(_numbered)(work, number, item, parent) for number, item in enumerate(items))
        for number, result in arriving:  # pyright: ignore[reportGeneralTypeIssues]
            results[number] = result
            on_done(result)
    return [results[number] for number in range(len(items))]


def reach(scheduler: str | None) -> None:
    """Refuses a scheduler that cannot be used, before anything is written.

    Args:
        scheduler: its address; None is this machine.

    Raises:
        UsageError: it does not answer, or its workers do not suit.
    """
    if scheduler is not None:
        with _backend(1, scheduler):
            pass


@contextmanager
def _backend(workers: int, scheduler: str | None) -> Iterator[tuple[str, int]]:
    """Joblib's backend and how many pieces of work it does at a time."""
    if scheduler is None:
        yield "loky", workers
        return
    with _client(scheduler) as client:
        threads = [worker["nthreads"] for worker in client.scheduler_info(n_workers=-1)["workers"].values()]
        if not threads:
            raise UsageError(
                f"--scheduler {scheduler}: it has no workers; start some with `dask worker {scheduler} --nthreads 1`."
            )
        if max(threads) > 1:
            # Torch's generator and number of threads belong to a process, and a run's result is to depend on the run alone.
            raise UsageError(f"--scheduler {scheduler}: a worker has {max(threads)} threads; start workers with --nthreads 1.")
        with client.as_current():
            yield "dask", len(threads)


@contextmanager
def _client(scheduler: str) -> Iterator:
    from distributed import Client

    try:
        client = Client(scheduler, timeout=10, set_as_default=False)
    except (OSError, ValueError, TimeoutError) as error:
        said = str(error).splitlines()[0].rstrip(".") if str(error) else type(error).__name__
        raise UsageError(
            f"--scheduler {scheduler}: no Dask scheduler answers ({said}); start one with `dask scheduler`."
        ) from None
    with client:
        yield client


def _numbered(work: Callable[[Item], Result], number: int, item: Item, parent: int | None) -> tuple[int, Result]:
    # A worker's warnings would tear the parent's progress bar; errors travel back as exceptions.
    warnings.simplefilter("ignore")
    if parent is not None:
        _attend(parent)
    return number, work(item)


def _attend(parent: int) -> None:
    """Once a process: leave Ctrl-C to the parent, and end when the parent does, for a killed one cannot say so."""
    global _attending
    if _attending:
        return
    _attending = True
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.2)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


_attending = False
