"""Theorems about runs, one per file. Each says its assumptions and its value, and checks itself on a trajectory."""

import sys

from theory.bounds.anytime import AnytimeBound
from theory.bounds.bound import Bound, Certificate, TightExample
from theory.bounds.chain import ChainBound
from theory.bounds.circumradius import CircumradiusBound
from theory.bounds.convex_rate import ConvexGapRate, ConvexRate
from theory.bounds.drift import DriftBound
from theory.bounds.fixed_step import FixedStepBound
from theory.bounds.printed import PrintedBound
from theory.bounds.short_step import ShortStepBound
from theory.discovery import concrete_classes


def all_bounds() -> list[Bound]:
    """One of each theorem of this folder."""
    return [kind() for kind in concrete_classes(sys.modules[__name__], Bound)]  # pyright: ignore[reportAbstractUsage]


__all__ = [
    "AnytimeBound", "Bound", "Certificate", "ChainBound", "CircumradiusBound", "ConvexGapRate", "ConvexRate", "DriftBound",
    "FixedStepBound", "PrintedBound", "ShortStepBound", "TightExample", "all_bounds",
]  # fmt: skip
