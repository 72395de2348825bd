"""MultiRC of SuperGLUE: questions on a paragraph, each with several answers of which any number is right."""

from __future__ import annotations

from collections.abc import Iterator

from experiments.tasks.language.question import Question
from experiments.tasks.language.row import Row
from experiments.tasks.language.task import Hub, HubTask


class MultiRC(HubTask):
    """Each answer is one example, to be called right or wrong.

    An official row is a passage with its questions and their answers nested in it; a row of the hub is one answer, with the
    paragraph and the question repeated.
    """

    fields = ("passage",)
    name = "MultiRC"
    hub = Hub("aps/super_glue", "multirc")

    def read(self, row: Row) -> Iterator[Question]:
        """Every answer of a passage, or the one of a flat row."""
        if "paragraph" in row:
            yield _asked(row.text("paragraph"), row.text("question"), row.text("answer"), row)
            return
        passage = row.inside("passage")
        for question in passage.each("questions"):
            for answer in question.each("answers"):
                yield _asked(passage.text("text"), question.text("question"), answer.text("text"), answer)


def _asked(paragraph: str, question: str, answer: str, labelled: Row) -> Question:
    prompt = f'{paragraph}\nQuestion: {question}\nI found this answer "{answer}". Is that correct? Yes or No?\n'
    return Question(prompt, ("No", "Yes"), labelled.label("label", (0, 1)))
