"""Constraint sets, one per file: `lmo`, `support`, `contains`, `diameter`, `radius`, `sample`."""

from theory.sets.convex_set import ConvexSet, NormBall
from theory.sets.frobenius_ball import FrobeniusBall
from theory.sets.l1_ball import L1Ball
from theory.sets.nuclear_ball import NuclearBall
from theory.sets.product import Product
from theory.sets.simplex import Simplex
from theory.sets.spectral_ball import SpectralBall
from theory.sets.support_ball import SupportBall

__all__ = [
    "ConvexSet", "FrobeniusBall", "L1Ball", "NormBall", "NuclearBall", "Product", "Simplex", "SpectralBall", "SupportBall",
]  # fmt: skip
