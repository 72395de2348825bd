"""Independent pieces of work, spread over processes."""

from __future__ import annotations

import multiprocessing
import signal
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def spread(
    work: Callable[[Item], Result], items: Sequence[Item], *, workers: int, on_done: Callable[[Result], object]
) -> list[Result]:
    """Does the work for every item, in this process or in several.

    Args:
        work: a function of a module, so that another process can find it; its result must depend on the item alone.
        items: what to do.
        workers: processes; 1 stays in this one.
        on_done: called with each result as it comes, in any order.

    Returns:
        The results, in the order of `items`.
    """
    if workers <= 1:
        made = []
        for item in items:
            made.append(work(item))
            on_done(made[-1])
        return made
    results: dict[int, Result] = {}
    # Spawned, not forked: a forked child inherits torch's thread pool in whatever state it was.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_quiet) as pool:
        waiting: dict[Future[Result], int] = {pool.submit(work, item): index for index, item in enumerate(items)}
        try:
            while waiting:
                done, _ = wait(waiting, return_when=FIRST_COMPLETED)
                for future in done:
                    index = waiting.pop(future)
                    results[index] = future.result()
                    on_done(results[index])
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return [results[index] for index in range(len(items))]


def _quiet() -> None:
    # A worker's standard error would tear the parent's progress bar; errors travel back as exceptions, and it is the parent
    # that hears of Ctrl-C.
    warnings.simplefilter("ignore")
    signal.signal(signal.SIGINT, signal.SIG_IGN)
