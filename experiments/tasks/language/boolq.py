"""BoolQ: questions that a passage answers with yes or no."""

from __future__ import annotations

from collections.abc import Iterator

from experiments.tasks.language.question import Question, as_question
from experiments.tasks.language.row import Row
from experiments.tasks.language.task import Hub, HubTask


class BoolQ(HubTask):
    """A passage and a question in lower case without its question mark.

    Passages are taken as they are: SuperGLUE's begin with the article's title, those of the hub's google/boolq do not. The
    label is called `label` in SuperGLUE and `answer` on the hub.
    """

    fields = ("question", "passage", "label")
    name = "BoolQ"
    hub = Hub("google/boolq")

    def read(self, row: Row) -> Iterator[Question]:
        """One question; Yes stands before No, so that the right one is 0 where the label is true."""
        true = row.label("answer" if "answer" in row else "label", (False, True))
        prompt = f"{row.text('passage')} {as_question(row.text('question'))}\n"
        yield Question(prompt, ("Yes", "No"), 1 - true)
