"""``python -m theory.proofs``: Coq checks every proof, twice, and says what each file rests on."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from theory.errors import ProofError
from theory.proofs.machine import Checked, check, check_again
from theory.proofs.page import page
from theory.proofs.source import FOLDER


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints a line a file, or writes the page.

    Args:
        arguments: of the command line.

    Returns:
        0 if all is proved, else 1.
    """
    parser = argparse.ArgumentParser(prog="python -m theory.proofs", description=__doc__)
    parser.add_argument("--folder", type=Path, default=FOLDER, help="the Coq files (the project's)")
    parser.add_argument(
        "--page", type=Path, metavar="FILE", help="write the page that holds Python beside Coq, and prove nothing"
    )
    options = parser.parse_args(arguments)
    if options.page:
        options.page.write_text(page(), encoding="utf-8")
        return 0
    try:
        _prove(options.folder)
    except ProofError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _prove(folder: Path) -> None:
    print(f"{'file':<18}{'lines':>6}{'proved':>8}{'seconds':>9}  rests on, beside its hypotheses")
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        through = check(Path(scratch), folder, _tell)
        check_again(Path(scratch), through)
    proved = sum(len(checked.source.proved) for checked in through)
    print(f"{proved} theorems and lemmas, accepted by both of Coq's kernels: {time.perf_counter() - begin:.0f} s.")


def _tell(checked: Checked) -> None:
    source, axioms = checked.source, ", ".join(axiom.rsplit(".", 1)[1] for axiom in checked.axioms) or "nothing"
    counted = f"{source.lines:>6}{len(source.proved):>8}{checked.seconds:>9.1f}"
    print(f"{source.path.name:<18}{counted}  {axioms}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
