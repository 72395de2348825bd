"""Testbeds, one per file: a loss on a set with certified constants, a gradient, and the truth where it is known."""

from theory.problems.audits import Audit, audit
from theory.problems.completion import Completion
from theory.problems.concave import Concave
from theory.problems.drifting_completion import DriftingCompletion
from theory.problems.indefinite import Indefinite
from theory.problems.logistic import Logistic
from theory.problems.observed_point import ObservedPoint
from theory.problems.phase_retrieval import PhaseRetrieval
from theory.problems.problem import FiniteSum, Problem
from theory.problems.robust import GemanMcClure, Welsch
from theory.problems.sensing import Sensing
from theory.problems.sparse_completion import SparseCompletion
from theory.problems.tanh_network import TanhNetwork
from theory.problems.trust_region import TrustRegion
from theory.problems.worst_case import WorstCase, WorstCentred, WorstDrift

__all__ = [
    "Audit", "Completion", "Concave", "DriftingCompletion", "FiniteSum", "GemanMcClure", "Indefinite", "Logistic",
    "ObservedPoint", "PhaseRetrieval", "Problem", "Sensing", "SparseCompletion", "TanhNetwork", "TrustRegion", "Welsch",
    "WorstCase", "WorstCentred", "WorstDrift", "audit",
]  # fmt: skip
