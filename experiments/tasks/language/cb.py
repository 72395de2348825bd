"""CB, the CommitmentBank of SuperGLUE: does a text entail, contradict or leave open a clause that it embeds?"""

from __future__ import annotations

from collections.abc import Iterator

from experiments.tasks.language.question import Question
from experiments.tasks.language.row import Row
from experiments.tasks.language.task import Hub, HubTask


class CB(HubTask):
    """A premise and a hypothesis with three labels, of which neutral is rare."""

    fields = ("premise", "hypothesis", "label")
    name = "CB"
    hub = Hub("aps/super_glue", "cb")

    def read(self, row: Row) -> Iterator[Question]:
        """One pair; Yes, No, Maybe are entailment, contradiction, neutral."""
        premise, hypothesis = row.text("premise"), row.text("hypothesis")
        prompt = f'Suppose {premise} Can we infer that "{hypothesis}"? Yes, No, or Maybe?\n'
        yield Question(prompt, ("Yes", "No", "Maybe"), row.label("label", ("entailment", "contradiction", "neutral")))
