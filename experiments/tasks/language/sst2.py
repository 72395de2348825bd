"""SST-2 of GLUE: is a phrase of a film review positive?"""

from __future__ import annotations

from collections.abc import Iterator

from experiments.tasks.language.question import Question
from experiments.tasks.language.row import Row
from experiments.tasks.language.task import Hub, HubTask


class SST2(HubTask):
    """One sentence, which GLUE writes with a trailing blank; 1 is positive."""

    fields = ("sentence", "label")
    name = "SST-2"
    hub = Hub("nyu-mll/glue", "sst2")

    def read(self, row: Row) -> Iterator[Question]:
        """A review's sentence, called terrible or great."""
        sentence = row.text("sentence").strip()
        yield Question(f"{sentence} It was", (" terrible", " great"), row.label("label", (0, 1)))
