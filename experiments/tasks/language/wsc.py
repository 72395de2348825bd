"""WSC of SuperGLUE: does a pronoun refer to this noun?"""

from __future__ import annotations

from collections.abc import Iterator

from experiments.tasks.language.question import Question
from experiments.tasks.language.row import Row
from experiments.tasks.language.task import Hub, HubTask


class WSC(HubTask):
    """A sentence and two of its spans, the noun and the pronoun; official files nest the spans in `target`, the hub does not.

    The hub's wsc.fixed repairs a few spans of the official file.
    """

    fields = ("text", "target", "label")
    name = "WSC"
    hub = Hub("aps/super_glue", "wsc.fixed")

    def read(self, row: Row) -> Iterator[Question]:
        """One sentence with its pronoun, in lower case, and its noun."""
        spans = row if "span1_text" in row else row.inside("target")
        noun, pronoun = spans.text("span1_text"), spans.text("span2_text").lower()
        prompt = f'{row.text("text")}\nIn the previous sentence, does the pronoun "{pronoun}" refer to {noun}? Yes or No?\n'
        yield Question(prompt, ("No", "Yes"), row.label("label", (False, True)))
