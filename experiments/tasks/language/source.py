"""Where the examples come from: a local folder in the official form, or the Hugging Face hub."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from experiments.errors import UsageError
from experiments.tasks import language
from experiments.tasks.language.question import Completion, Question
from experiments.tasks.language.row import Row
from experiments.tasks.language.sampling import Sampling, allot
from experiments.tasks.language.task import FolderTask, HubTask, Task
from experiments.tasks.lines import read_objects
from theory.discovery import concrete_classes

SPLITS = ("train", "validation")


@dataclass(frozen=True)
class Splits:
    """A sample; no example is in two of its parts.

    Attributes:
        train: examples to train on, all of them `Question`, or all of them `Completion`.
        dev: examples to choose a learning rate by.
        test: examples to test on.
    """

    train: tuple[Question | Completion, ...]
    dev: tuple[Question | Completion, ...]
    test: tuple[Question | Completion, ...]


def names() -> list[str]:
    """The tasks that are known by name, sorted."""
    return sorted(_known())


@lru_cache(maxsize=8)
def draw(task: str, data_dir: str | None, sampling: Sampling, seed: int) -> Splits:
    """A sample of a task's examples.

    Rows are flattened before they are drawn from: of MultiRC an answer is an example, so that a paragraph's answers may be in
    several parts, though none of them is in two.

    Args:
        task: one of `names`, or a folder below `data_dir` whose rows' fields say what it is.
        data_dir: folder of the tasks' folders; None for the hub.
        sampling: how many examples; `allot` says which.
        seed: of the draw.

    Returns:
        The sample.

    Raises:
        UsageError: the data cannot be read, or do not suffice.

    Example:
        >>> draw("CB", "nowhere", Sampling(150, 100, 56), seed=0)
        Traceback (most recent call last):
        experiments.errors.UsageError: --data-dir nowhere: there is no such folder; ...
    """
    train, validation = (examples(task, data_dir, split) for split in SPLITS)
    which = allot(task, sampling, train=len(train), validation=len(validation), seed=seed)
    source = train if which.dev_from == "train" else validation
    return Splits(
        train=tuple(train[index] for index in which.train),
        dev=tuple(source[index] for index in which.dev),
        test=tuple(validation[index] for index in which.test),
    )


@lru_cache(maxsize=4)
def examples(task: str, data_dir: str | None, split: str) -> tuple[Question | Completion, ...]:
    """All examples of a split.

    Args:
        task: as in `draw`.
        data_dir: as in `draw`.
        split: "train" or "validation".

    Returns:
        The examples, in the order of the rows.

    Raises:
        UsageError: the data cannot be read.
    """
    if data_dir is None:
        reader = _known().get(task)
        if reader is None:
            raise UsageError(f"--tasks {task}: {_suggestion(task)}a task of your own needs --data-dir with a folder {task}.")
        rows, place = _hub_rows(reader, split), f"--tasks {task}: {reader.hub}, {split}"
    else:
        path = files(task, data_dir)[SPLITS.index(split)]
        reader = _reader(task, data_dir)
        wanted = ", ".join(map(repr, reader.fields))
        rows, place = (Row(row, where) for where, row in read_objects(path, "--data-dir", wanted)), f"--data-dir {path}"
    found = tuple(example for row in rows for example in reader.read(row))
    if not found:
        raise UsageError(f"{place}: the split has no examples; give one that has.")
    return found


def files(task: str, data_dir: str) -> list[Path]:
    """The files that a task is read from.

    Args:
        task: as in `draw`.
        data_dir: folder of the tasks' folders.

    Returns:
        The train file and the validation file.

    Raises:
        UsageError: a folder or a file is missing.
    """
    root = Path(data_dir)
    if not root.is_dir():
        raise UsageError(
            f"--data-dir {data_dir}: there is no such folder; give one with <task>/train.jsonl and <task>/validation.jsonl."
        )
    if not task.strip(".") or Path(task).name != task or not (root / task).is_dir():
        way = f"leave --data-dir out to read {task} from the hub" if task in _known() else f"{_suggestion(task)}add it"
        raise UsageError(f"--data-dir {data_dir}: has no folder {task!r}, but {_listed(root)}; {way}.")
    paths = [root / task / f"{split}.jsonl" for split in SPLITS]
    for path in paths:
        if not path.is_file():
            raise UsageError(
                f"--data-dir {path}: there is no such file, but {_listed(path.parent)}; give train.jsonl and validation.jsonl."
            )
    return paths


def _reader(task: str, data_dir: str) -> Task:
    if task in _known():
        return _known()[task]
    kinds = [kind() for kind in concrete_classes(language, FolderTask)]  # pyright: ignore[reportAbstractUsage]
    wanted = ", or ".join(" and ".join(map(repr, kind.fields)) for kind in kinds)
    where, row = next(read_objects(files(task, data_dir)[0], "--data-dir", wanted))
    for kind in kinds:
        if all(name in row for name in kind.fields):
            return kind
    raise UsageError(f"{where}: has the fields {', '.join(map(repr, row)) or 'none'}; {_suggestion(task)}give {wanted}.")


def _hub_rows(task: HubTask, split: str) -> Iterator[Row]:
    way = f"give --data-dir with {task.name}/train.jsonl and {task.name}/validation.jsonl"
    try:
        import datasets
    except ImportError:
        raise UsageError(
            f"--tasks {task.name}: the package datasets, which reads the hub, is not installed; pip install datasets, or {way}."
        ) from None
    try:
        table = datasets.load_dataset(task.hub.path, task.hub.config, split=getattr(task.hub, split))
    # Whatever it is, from no network to a data set that has moved, the remedy is the same.
    except Exception as error:
        reason = str(error).split("\n", 1)[0].strip() or "no reason given"
        raise UsageError(
            f"--tasks {task.name}: {task.hub} cannot be read from the hub ({type(error).__name__}: {reason}); {way}."
        ) from error
    for number, row in enumerate(table, start=1):
        yield Row(dict(row), f"--tasks {task.name}: {task.hub}, {split}, row {number}")


@lru_cache(maxsize=1)
def _known() -> dict[str, HubTask]:
    tasks = [kind() for kind in concrete_classes(language, HubTask)]  # pyright: ignore[reportAbstractUsage] - none is abstract
    return {task.name: task for task in tasks}


def _suggestion(task: str) -> str:
    """The known name that may have been meant; what was typed is compared without hyphens and capitals."""
    plain = {name.lower().replace("-", ""): name for name in names()}
    near = difflib.get_close_matches(task.lower().replace("-", "").replace("_", ""), plain, n=1, cutoff=0.75)
    return f"did you mean {plain[near[0]]}? Else " if near else ""


def _listed(folder: Path) -> str:
    names = sorted(entry.name for entry in folder.iterdir())
    return ", ".join(names[:8] + ["..."] * (len(names) > 8)) or "nothing"
