"""Has Coq check the proofs, and asks it what each theorem rests on."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from theory.errors import ProofError
from theory.proofs.source import FOLDER, LIBRARY, Source, sources

ALLOWED = (
    "ClassicalDedekindReals.sig_not_dec",
    "ClassicalDedekindReals.sig_forall_dec",
    "FunctionalExtensionality.functional_extensionality_dep",
)
"""On which the Reals of Coq's standard library are built: two forms of the excluded middle, and that functions which agree
everywhere are equal."""

_CLOSED, _AXIOMS = "Closed under the global context", "Axioms:"
_TRUSTED = ("Constants/Inductives relying on type-in-type", "Constants/Inductives relying on unsafe (co)fixpoints",
            "Inductives whose positivity is assumed")  # fmt: skip


@dataclass(frozen=True)
class Checked:
    """A file that Coq has accepted.

    Attributes:
        source: the file.
        seconds: wall time of its compilation.
        axioms: what its theorems and lemmas rest on, beside what they ask of their user.
    """

    source: Source
    seconds: float
    axioms: list[str]


def check(scratch: Path, folder: Path = FOLDER, tell: Callable[[Checked], None] = lambda checked: None) -> list[Checked]:
    """Compile every file of a folder, and refuse any theorem that rests on more than the Reals.

    Args:
        scratch: an empty folder, for what Coq writes.
        folder: the files.
        tell: is called with each file once it is through.

    Returns:
        The files in the order in which they were compiled.

    Raises:
        ProofError: there is no Coq, a file has a forbidden word, does not compile, or rests on an axiom of its own.
    """
    found, through = sources(folder), []
    if not found:
        raise ProofError(f"`folder` must hold Coq files, and {folder} holds none.")
    for source in found:
        words = source.forbidden()
        if words:
            raise ProofError(f"{source.path} says {', '.join(words)}: what is not proved must not stand there.")
    for source in found:
        shutil.copy(source.path, scratch)
        begin = time.perf_counter()
        _run(scratch, "coqc", source.path.name)
        checked = Checked(source, time.perf_counter() - begin, _axioms(scratch, source))
        strange = [axiom for axiom in checked.axioms if axiom not in ALLOWED]
        if strange:
            raise ProofError(f"{source.path} rests on {', '.join(strange)}: prove that, or ask it of the user.")
        tell(checked)
        through.append(checked)
    return through


def check_again(scratch: Path, through: Sequence[Checked]) -> None:
    """Have Coq's second, smaller kernel read what the first has accepted. The standard library it takes as Coq ships it.

    Args:
        scratch: the folder that `check` was given.
        through: what it returned.

    Raises:
        ProofError: the second kernel refuses a file, or a rule of the logic was switched off somewhere.
    """
    files = [argument for checked in through for argument in ("-norec", f"{LIBRARY}.{checked.source.name}")]
    report = _run(scratch, "coqchk", "-silent", "-o", *files)
    for what in _TRUSTED:
        if f"* {what}: <none>" not in report:
            raise ProofError(f"Coq's second kernel does not say `{what}: <none>`:\n{report}")


def _axioms(folder: Path, source: Source) -> list[str]:
    """What ``Print Assumptions`` says of all theorems of a compiled file together."""
    if not source.proved:
        return []
    proved = ", ".join(f"@{source.name}.{name}" for name in source.proved)
    question = folder / "question_of_assumptions.v"
    question.write_text(
        f"From {LIBRARY} Require {source.name}.\nDefinition proved := (I, {proved}).\nPrint Assumptions proved.\n",
        encoding="utf-8",
    )
    first, *lines = _run(folder, "coqc", question.name).splitlines()
    # Whatever Coq says at the beginning of a line, other than that there are no axioms, counts as one.
    names = [line.split(":")[0].strip() for line in lines if line and not line[0].isspace()]
    return sorted(names if first == _AXIOMS else [] if first == _CLOSED else [first, *names])


def _run(folder: Path, program: str, *arguments: str) -> str:
    if shutil.which(program) is None:
        raise ProofError(f"There is no `{program}` on PATH; install Coq 8.16 or later (Debian: `apt-get install coq`).")
    quiet = ["-q"] if program == "coqc" else []
    command = [program, *quiet, "-Q", ".", LIBRARY, *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise ProofError(f"{program} refuses {arguments[-1]}:\n{done.stdout}{done.stderr}")
    return done.stdout + done.stderr  # where coqchk writes its summary
