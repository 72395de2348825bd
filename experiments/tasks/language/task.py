"""What a language task is. To add one is to add a file with a class to this folder.

A `HubTask` has a name of its own and lies on the Hugging Face hub, or in a folder of that name. A `FolderTask` is any folder of
the user's whose rows have its fields.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from experiments.tasks.language.question import Completion, Question
from experiments.tasks.language.row import Row


@dataclass(frozen=True)
class Hub:
    """A labelled data set on the Hugging Face hub.

    Attributes:
        path: its name there.
        config: its part, where it has several.
        train: the split that examples for training come from.
        validation: the split that examples for the test come from; the labels of the hub's own test splits are withheld.
    """

    path: str
    config: str | None = None
    train: str = "train"
    validation: str = "validation"

    def __str__(self) -> str:
        return self.path if self.config is None else f"{self.path} {self.config}"


class Task(ABC):
    """How a row is read.

    Attributes:
        fields: what a row has at its top, as messages name it.
    """

    fields: ClassVar[tuple[str, ...]]

    @abstractmethod
    def read(self, row: Row) -> Iterable[Question | Completion]:
        """The examples that a row holds: one, or for nested rows several or none."""


class HubTask(Task):
    """A task known by name.

    Attributes:
        name: in tables, and of its folder below --data-dir.
        hub: where it lies on the hub.
    """

    name: ClassVar[str]
    hub: ClassVar[Hub]


class FolderTask(Task):
    """A task known by its rows' fields."""
