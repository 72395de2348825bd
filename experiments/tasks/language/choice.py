"""Multiple choice from files of the user's own: any rows with a question, its choices and the answer."""

from __future__ import annotations

from collections.abc import Iterator

from experiments.errors import UsageError
from experiments.tasks.language.question import Question
from experiments.tasks.language.row import Row, shown
from experiments.tasks.language.task import FolderTask
from experiments.tasks.lines import as_text


class Choice(FolderTask):
    """A question whose answer is one of its choices, which may be of any number and differ from row to row."""

    fields = ("question", "choices", "answer")

    def read(self, row: Row) -> Iterator[Question]:
        """One question; the prompt is its text, and each choice follows after a blank.

        Args:
            row: `answer` is the number of a choice, from 0, or its text.

        Yields:
            The question.

        Raises:
            UsageError: the question is empty, there are no two distinct choices, or the answer is none of them.
        """
        question = row.text("question")
        if not question.strip():
            raise UsageError(f"{row.where}: 'question' is empty; give a question.")
        choices = [as_text(choice, f"choices[{i}]", row.where).strip() for i, choice in enumerate(row.items("choices"))]
        if len(choices) < 2 or "" in choices or len(set(choices)) < len(choices):
            raise UsageError(
                f"{row.where}: 'choices' is {shown(choices)}; give two or more, none of them empty or given twice."
            )
        yield Question(question, tuple(f" {choice}" for choice in choices), _chosen(row, choices))


def _chosen(row: Row, choices: list[str]) -> int:
    answer = row.value("answer")
    if type(answer) is int and 0 <= answer < len(choices):
        return answer
    if isinstance(answer, str) and answer.strip() in choices:
        return choices.index(answer.strip())
    raise UsageError(
        f"{row.where}: 'answer' is {shown(answer)}; give a number from 0 to {len(choices) - 1} or the text of a choice."
    )
