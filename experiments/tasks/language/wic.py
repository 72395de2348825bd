"""WiC of SuperGLUE: has a word the same meaning in two sentences?"""

from __future__ import annotations

from collections.abc import Iterator

from experiments.tasks.language.question import Question
from experiments.tasks.language.row import Row
from experiments.tasks.language.task import Hub, HubTask


class WiC(HubTask):
    """A word and two sentences that use it."""

    fields = ("word", "sentence1", "sentence2", "label")
    name = "WiC"
    hub = Hub("aps/super_glue", "wic")

    def read(self, row: Row) -> Iterator[Question]:
        """One word in its two sentences."""
        word, first, second = row.text("word"), row.text("sentence1"), row.text("sentence2")
        prompt = f'Does the word "{word}" have the same meaning in these two sentences? Yes, No?\n{first}\n{second}\n'
        yield Question(prompt, ("No", "Yes"), row.label("label", (False, True)))
