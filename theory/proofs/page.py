"""The page of the documentation on which every theorem stands twice."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from theory.bounds import Bound, all_bounds
from theory.proofs.machine import ALLOWED
from theory.proofs.source import FOLDER, Source, sources
from theory.proofs.twins import Twin

COMMAND = "python -m theory.proofs --page docs/theory/proofs.md"

_HEAD = f"""# Machine-checked proofs

Every theorem of `theory.bounds` has a proof that Coq has checked, in `theory/proofs/`. Nobody has to trust it: `make proofs`
compiles the files (Coq 8.16, nothing but its standard library), asks `Print Assumptions` what they rest on, has the second
kernel, `coqchk`, read them, and fails on whatever is admitted. `{COMMAND}` writes this page, and a test holds it
against both languages.

This page is there to be compared: what Python checks on a run (`requires`) beside what Coq assumes.
"""

_AXIOMS = """## What all of it rests on

The real numbers of Coq's standard library are built on three axioms, and no theorem here rests on any other:
"""

_SETTING = """## The setting

Every theorem is about an arbitrary real inner-product space, a problem in it and the record of a run. The space, the problem
and the run are arguments, so that nothing is assumed of them but these hypotheses (`setting.v`):
"""

_NOT_ASKED = """No completeness, no definiteness of the inner product, no compactness, no differentiability: "gradient" is what
satisfies the quadratic upper bound, and a minimum need not exist.
"""

_NOT_EMPTY = """## No theorem is empty

A theorem whose hypotheses contradict each other holds for any right-hand side. So Coq has checked the converse too: if Theorem
A, B, D, E or F held with another right-hand side in place of `value`, that would have to be as large, at the points that
`tight.v` names, because a concrete run attains the bound there; and for Theorem C and the convex rates `examples.v` gives runs
that satisfy all hypotheses. The runs are walks on the real line and on a triangle (`line.v`, `valleys.v`, `triangle.v`).
`matrices.v` states Theorem F for real matrices, with a singular value decomposition of each gradient as its only hypothesis
beside those above.
"""


def page() -> str:
    """All of it.

    Returns:
        Markdown.
    """
    setting = Source(FOLDER / "setting.v")
    space = ("InnerProductSpace", "Problem", "Run")
    asked = ("Convex_set", "Upper_smooth", "Inexact_oracle", "Gap_attained", "Setting")
    constants = ("Diameter", "Ball", "Initial_gap", "Oscillation")
    blocks = [
        _HEAD,
        _AXIOMS,
        "\n".join(f"- `{axiom}`" for axiom in ALLOWED) + "\n",
        _SETTING,
        _coq(setting.verbatim(name) for name in (*space, *asked, *constants)),
        _NOT_ASKED,
        "What single theorems ask beyond that (`assumptions.v`) has the names of `theory.bounds.assumptions`:\n",
        _coq(_assumptions()),
        *(_section(bound) for bound in all_bounds()),
        _NOT_EMPTY,
        "## The files\n",
        _table(("file", "lines", "proved", "theorems among them"), (_file(source) for source in sources())),
    ]
    return "\n".join(blocks)


def _section(bound: Bound) -> str:
    """One theorem."""
    twin = Twin.of(bound)
    source, statements = twin.source, twin.statements()
    python, coq = [f"`{asked!r}`" for asked in bound.requires], [f"`{said}`" for said in twin.shared(statements[0])]
    return "\n".join([
        f"## {bound.name}\n",
        f"`theory.bounds.{twin.theorem}`, {_link(source)}: `{bound.statement}`\n",
        _coq(source.verbatim(name) for name in source.used([twin.statement])),
        _table(("`requires` in Python", "hypothesis in Coq"), zip(python, coq, strict=True)),
        f"Beside these: {', '.join(f'`{said}`' for said in twin.others())}.\n",
    ])


def _assumptions() -> Iterator[str]:
    source = Source(FOLDER / "assumptions.v")
    for name in source.definitions:
        yield source.verbatim(name)


def _file(source: Source) -> tuple[str, ...]:
    return _link(source), str(source.lines), str(len(source.proved)), ", ".join(f"`{name}`" for name in source.theorems)


def _link(source: Source) -> str:
    return f"[`{source.path.name}`](../../theory/proofs/{source.path.name})"


def _coq(definitions) -> str:
    return "```coq\n" + "\n\n".join(definitions) + "\n```\n"


def _table(head: Sequence[str], rows) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"
