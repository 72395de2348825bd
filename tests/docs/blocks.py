"""The code blocks of a Markdown page: those that run, in order and in one namespace, and those that are only shown."""

from __future__ import annotations

import doctest
import io
import re
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path

from sybil import Document, Example, Region
from sybil.evaluators.doctest import OutputChecker
from sybil.evaluators.python import PythonEvaluator
from sybil.parsers.myst import DocTestDirectiveParser
from sybil.parsers.myst.lexers import DirectiveLexer

FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
SHOWN = re.compile(r"^(?P<fence>`{3,})(?:python|\{code-block\} python)\n(?::[^\n]*\n)*(?P<code>.*?)^(?P=fence)$", re.M | re.S)


class TestCode:
    """``{testcode}`` and the ``{testoutput}`` after it, as Sphinx reads them; sybil knows ``{doctest}`` itself."""

    __test__ = False

    def __init__(self) -> None:
        self.printed: str | None = None

    def __call__(self, document: Document) -> Iterator[Region]:
        for name, evaluate in {"testsetup": self.run, "testcode": self.run, "testoutput": self.compare}.items():
            for lexed in DirectiveLexer(name)(document):
                yield Region(lexed.start, lexed.end, lexed.lexemes["source"], evaluate)

    def run(self, example: Example) -> str | None:
        forgotten = self.unread()
        with redirect_stdout(io.StringIO()) as out:
            PythonEvaluator()(example)
        self.printed = out.getvalue()
        return forgotten

    def compare(self, example: Example) -> str | None:
        got, self.printed = self.printed or "", None
        if OutputChecker().check_output(example.parsed, got, FLAGS):
            return None
        return f"Expected:\n{example.parsed}\nGot:\n{got}"

    def unread(self) -> str | None:
        return f"The block before printed what no {{testoutput}} shows:\n{self.printed}" if self.printed else None


def run(page: Path) -> int:
    """Runs a page; a block that fails, prints something else or prints what is not shown raises. How many blocks ran."""
    code = TestCode()
    examples = list(Document.parse(str(page), DocTestDirectiveParser(FLAGS), code).examples())
    for example in examples:
        example.evaluate()
    assert code.unread() is None, code.unread()
    return len(examples)


def shown(page: Path) -> list[str]:
    """The python blocks that do not run."""
    return [block["code"] for block in SHOWN.finditer(page.read_text())]
