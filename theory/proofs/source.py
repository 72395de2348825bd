"""A Coq file as text: what it imports, defines and proves, and the words that must not stand in it."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from graphlib import TopologicalSorter
from pathlib import Path

from theory.errors import ProofError

FOLDER = Path(__file__).parent
LIBRARY = "FrankWolfe"
"""What the files call each other by: ``From FrankWolfe Require Import setting.``"""

FORBIDDEN = (
    "Admitted", "admit", "give_up", "Axiom", "Axioms", "Parameter", "Parameters", "Conjecture", "Primitive", "bypass_check",
    "Unset Guard Checking", "Unset Positivity Checking", "Unset Universe Checking", "Add LoadPath", "Declare ML Module",
)  # fmt: skip
"""Ways to have a theorem without its proof."""

_PROVED = re.compile(r"^(?:Local\s+|Global\s+)?(Theorem|Lemma|Corollary|Remark|Fact|Proposition)\s+(\w+)(?: : (\w+)$)?")
_DEFINED = re.compile(r"^(?:Definition|Record)\s+(\w+)\s*(.*?):=(.*)$", re.DOTALL)
_JOINED = re.compile(r"~ \w+|\w+( /\\ \w+)+")
_IMPORTED = re.compile(rf"^From\s+{LIBRARY}\s+Require\s+(?:Import|Export)?\s*(.*)$", re.DOTALL)


@dataclass(frozen=True)
class Definition:
    """A definition, or a record of hypotheses.

    Attributes:
        name: what it is called.
        parameters: the names of its arguments.
        body: what stands behind ``:=``, on one line.
    """

    name: str
    parameters: tuple[str, ...]
    body: str


@dataclass(frozen=True)
class Source:
    """One file.

    Args:
        path: where it is.

    Example:
        >>> huber = Source(FOLDER / "huber.v")
        >>> huber.definitions["phi"].body
        'if Rle_dec g C then g ^ 2 / (2 * C) else g - C / 2'
    """

    path: Path

    @property
    def name(self) -> str:
        """By which other files import it."""
        return self.path.stem

    @cached_property
    def text(self) -> str:
        """All that is written in it."""
        return self.path.read_text(encoding="utf-8")

    @property
    def lines(self) -> int:
        """How long it is."""
        return len(self.text.splitlines())

    @cached_property
    def sentences(self) -> list[str]:
        """Its commands, without comments, each on one line."""
        parts = re.split(r"\.(?=\s|$)", "".join(_code(self.text)))
        return [" ".join(part.split()) for part in parts if part.strip()]

    @cached_property
    def imports(self) -> list[str]:
        """The files of this folder that it stands on."""
        return [
            name for sentence in self.sentences for found in [_IMPORTED.match(sentence)] if found for name in found[1].split()
        ]

    @cached_property
    def proved(self) -> list[str]:
        """Names of what it proves, lemmas among them."""
        return [found[2] for found in map(_PROVED.match, self.sentences) if found]

    @cached_property
    def theorems(self) -> dict[str, str | None]:
        """Of each ``Theorem name : statement``, the name of the definition that it states; None where it is written out."""
        return {found[2]: found[3] for found in map(_PROVED.match, self.sentences) if found and found[1] == "Theorem"}

    @cached_property
    def definitions(self) -> dict[str, Definition]:
        """What it defines, by name."""
        found = {}
        for sentence in self.sentences:
            match = _DEFINED.match(sentence)
            if match:
                name, header, body = match.groups()
                groups = re.findall(r"[({]([^:(){}]*):", header)
                found[name] = Definition(name, tuple(word for group in groups for word in group.split()), body.strip())
        return found

    def forbidden(self) -> list[str]:
        """The words of `FORBIDDEN` that stand in its code."""
        code = "\n".join(self.sentences)
        return [word for word in FORBIDDEN if re.search(rf"(?<![\w']){re.escape(word)}(?![\w'])", code)]

    def parts(self, name: str) -> Iterator[str]:
        """What a definition joins or denies: of a conjunction all, of ``~ A`` the A; else itself.

        Args:
            name: of the definition.

        Yields:
            Names of definitions.

        Raises:
            ProofError: there is no such definition.

        Example:
            >>> list(Source(FOLDER / "circumradius.v").parts("statement"))
            ['statement_from_centre', 'statement_from_anywhere']
        """
        body = self.definition(name).body
        if _JOINED.fullmatch(body):
            for part in re.findall(r"\w+", body):
                yield from self.parts(part)
        else:
            yield name

    def definition(self, name: str) -> Definition:
        """One of `definitions`.

        Args:
            name: of the definition.

        Returns:
            It.

        Raises:
            ProofError: there is none.
        """
        if name not in self.definitions:
            raise ProofError(f"{self.path} has no definition of `{name}`; it has {', '.join(self.definitions)}.")
        return self.definitions[name]

    def hypotheses(self, statement: str) -> list[str]:
        """What a statement asks: of ``forall ..., A -> B -> C``, A and B.

        Args:
            statement: name of its definition.

        Returns:
            The hypotheses in order, as they are written.

        Raises:
            ProofError: there is no such definition.
        """
        return _arrows(self.definition(statement).body)[:-1]

    def used(self, names: Iterable[str]) -> list[str]:
        """The definitions of this file that some of them are made of, and they themselves.

        Args:
            names: of definitions.

        Returns:
            Names, in the order of the file.
        """
        waiting, found = list(names), set()
        while waiting:
            name = waiting.pop()
            found.add(name)
            waiting += [
                word for word in re.findall(r"\w+", self.definition(name).body) if word in self.definitions.keys() - found
            ]
        return [name for name in self.definitions if name in found]

    def verbatim(self, name: str) -> str:
        """A definition as it stands in the file, with the comment above it.

        Args:
            name: of the definition.

        Returns:
            The text.

        Raises:
            ProofError: there is no such definition.
        """
        self.definition(name)
        comment = r"(?:[ ]*\(\*\* (?:(?!\*\)).)*\*\)\n)?"
        found = re.search(rf"^{comment}[ ]*(?:Definition|Record) {name}\b.*?\.$", self.text, re.DOTALL | re.MULTILINE)
        assert found is not None
        return textwrap.dedent(found[0])


def sources(folder: Path = FOLDER) -> list[Source]:
    """The files of a folder, each after those that it imports.

    Args:
        folder: where they are.

    Returns:
        The files.

    Raises:
        ProofError: one imports a file that is not there.

    Example:
        >>> sources()[0].name
        'setting'
    """
    files = {path.stem: Source(path) for path in sorted(folder.glob("*.v"))}
    for source in files.values():
        strange = [name for name in source.imports if name not in files]
        if strange:
            raise ProofError(f"{source.path} imports {', '.join(strange)}, and there is no such file in {folder}.")
    return [files[name] for name in TopologicalSorter({name: source.imports for name, source in files.items()}).static_order()]


def _code(text: str) -> Iterator[str]:
    """The text without comments, which nest."""
    depth = 0
    for piece in re.split(r"(\(\*|\*\))", text):
        if piece == "(*":
            depth += 1
        elif piece == "*)" and depth:
            depth -= 1
        elif depth == 0:
            yield piece


def _arrows(body: str) -> list[str]:
    """A proposition's parts between the arrows that stand in no brackets, its leading ``forall ...,`` left out."""
    parts, depth, begin = [], 0, 0
    for at, letter in enumerate(body):
        depth += (letter in "([{") - (letter in ")]}")
        if depth == 0 and letter == "," and not parts and body.startswith("forall"):
            begin = at + 1
            body = body.replace("forall", "      ", 1)
        elif depth == 0 and body.startswith("->", at):
            parts.append(body[begin:at])
            begin = at + 2
    return [part.strip() for part in (*parts, body[begin:])]
