"""Generation from files of the user's own: any rows with a prompt and its completion, such as a text and its summary."""

from __future__ import annotations

from collections.abc import Iterator

from experiments.errors import UsageError
from experiments.tasks.language.question import Completion
from experiments.tasks.language.row import Row
from experiments.tasks.language.task import FolderTask


class Generation(FolderTask):
    """A prompt and what should be written after it."""

    fields = ("prompt", "completion")

    def read(self, row: Row) -> Iterator[Completion]:
        """One pair, as it is written.

        Args:
            row: with `prompt` and `completion`.

        Yields:
            The pair.

        Raises:
            UsageError: the completion is empty, so that there is nothing to learn.
        """
        completion = row.text("completion")
        if not completion.strip():
            raise UsageError(f"{row.where}: 'completion' is empty; give the text that should follow the prompt.")
        yield Completion(row.text("prompt"), completion)
