"""RTE of SuperGLUE: does a text entail a sentence?"""

from __future__ import annotations

from collections.abc import Iterator

from experiments.tasks.language.question import Question
from experiments.tasks.language.row import Row
from experiments.tasks.language.task import Hub, HubTask


class RTE(HubTask):
    """A premise and a hypothesis."""

    fields = ("premise", "hypothesis", "label")
    name = "RTE"
    hub = Hub("aps/super_glue", "rte")

    def read(self, row: Row) -> Iterator[Question]:
        """One pair; Yes is entailment, No is not_entailment."""
        premise, hypothesis = row.text("premise"), row.text("hypothesis")
        prompt = f'{premise}\nDoes this mean that "{hypothesis}" is true? Yes or No?\n'
        yield Question(prompt, ("Yes", "No"), row.label("label", ("entailment", "not_entailment")))
