"""The theorems of `theory.bounds` in Coq, one file each, and what reads and checks them: ``python -m theory.proofs``."""

from theory.proofs.formula import evaluate
from theory.proofs.machine import ALLOWED, Checked, check, check_again
from theory.proofs.page import page
from theory.proofs.source import FOLDER, Definition, Source, sources
from theory.proofs.twins import Twin, twins

__all__ = [
    "ALLOWED", "FOLDER", "Checked", "Definition", "Source", "Twin", "check", "check_again", "evaluate", "page", "sources",
    "twins",
]  # fmt: skip
