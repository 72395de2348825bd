"""Many runs that survive: each is keyed by what determines its result, kept when it is finished, and never made twice."""

from __future__ import annotations

import dataclasses
import gc
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from experiments.compare import Run, execute
from experiments.errors import UsageError
from experiments.progress import progress
from experiments.records import plain, revision
from experiments.store import Store
from experiments.tasks.metric import Metric
from experiments.workers import spread
from fwlora.errors import FwloraError

FORMAT = 1  # of a row; raised when rows of before can no longer be compared with new ones


@dataclasses.dataclass(frozen=True)
class Sweep:
    """Runs that are looked up in a store first, and put there as they finish.

    Attributes:
        store: the file of finished runs.
        workers: processes that train at the same time; the results do not depend on it.
        scheduler: address of a Dask scheduler whose workers train instead; None for processes of this machine.
    """

    store: Path
    workers: int = 1
    scheduler: str | None = None

    def rows(self, runs: Sequence[Run], description: str) -> list[dict[str, Any]]:
        """The rows of runs, finished ones from the store.

        Args:
            runs: what to do, in this order.
            description: of the bar.

        Returns:
            One row a run, in their order.

        Raises:
            UsageError: a run's files or its model are not usable.
        """
        store = Store(self.store)
        identities = Identities()
        keys = [key(run, identities) for run in runs]
        configs = dict(zip(keys, runs, strict=True))
        rows = store.rows()
        missing = [Work(name, run) for name, run in configs.items() if name not in rows]

        with progress(total=len(configs), done=len(configs) - len(missing), description=description, unit="run") as bar:

            def keep(done: tuple[str, dict[str, Any]]) -> None:
                name, row = done
                # What did not fit into memory may fit next time, or elsewhere.
                if "failed" not in row:
                    store.add(name, describe(configs[name]), row)
                rows[name] = row
                bar.update()

            spread(carry_out, missing, workers=self.workers, scheduler=self.scheduler, on_done=keep)
        return [_restored(rows[name]) for name in keys]


@dataclasses.dataclass(frozen=True)
class Work:
    """A run under its key."""

    key: str
    run: Run


def carry_out(work: Work) -> tuple[str, dict[str, Any]]:
    """Executes a run; what comes back is plain data.

    Args:
        work: the run.

    Returns:
        Its key and its row; a row with `failed`, the reason, where the device's memory did not suffice.

    Raises:
        UsageError: its files are others here, or the library refuses the method on this model.
    """
    # The files may be others on the worker's machine, or have changed since the worker read them.
    if key(work.run, Identities()) != work.key:
        raise UsageError(f"{work.run.problem.name}: its files are not the same here as where the sweep was begun; copy them.")
    try:
        row = execute(work.run)
    except torch.OutOfMemoryError as error:
        return work.key, {"failed": str(error).split(". ")[0]}
    except FwloraError as error:
        raise UsageError(f"{work.run.method.label}: {' '.join(str(error).split())}") from error
    finally:
        # A model lies in cycles with its scheduler: it has to go before the next one comes.
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return work.key, plain(row | {"revision": revision()})


class Identities:
    """What a problem's files hold, read once a problem however many runs it has."""

    def __init__(self) -> None:
        self._known: dict[Any, Mapping[str, str]] = {}

    def of(self, problem: Any) -> Mapping[str, str]:
        """Digests of a problem's files by what they are; nothing where its class alone determines it."""
        if problem not in self._known:
            identity = getattr(problem, "identity", None)
            self._known[problem] = identity() if identity else {}
        return self._known[problem]


def key(run: Run, identities: Identities) -> str:
    """A name for everything that a run's result depends on: problem, method, seed and the contents of the files.

    Args:
        run: the run.
        identities: of its problem's files.

    Returns:
        The hash of its canonical JSON.
    """
    described = describe(run)
    # Where files lie is no matter, what they hold is.
    for place in getattr(run.problem, "places", ()):
        del described["problem"][place]
    document = {"format": FORMAT, "run": described, "files": identities.of(run.problem)}
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


def describe(value: Any) -> Any:
    """A run in what JSON can say, with the classes' names: two rules may well have the same fields.

    Args:
        value: a dataclass, a container, a class or a plain value.

    Returns:
        Its description.

    Example:
        >>> from fwlora import Every
        >>> describe(Every(500))
        {'': 'fwlora.rules.knots.Every', 'steps': 500}
    """
    if isinstance(value, type):
        return f"{value.__module__}.{value.__qualname__}"
    if dataclasses.is_dataclass(value):
        fields = {field.name: describe(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return {"": describe(type(value)), **fields}
    if isinstance(value, list | tuple):
        return [describe(item) for item in value]
    if isinstance(value, Mapping):
        return {str(name): describe(item) for name, item in value.items()}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"{value!r} has no plain description, so that no run with it can be told from another")


def _restored(row: dict[str, Any]) -> dict[str, Any]:
    return row | {"metric": Metric(**row["metric"])} if "metric" in row else row
