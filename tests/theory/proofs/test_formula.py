"""Formulas are computed as Coq means them."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from theory.errors import ProofError
from theory.proofs import Definition, evaluate

NUMBERS = st.fractions(-20, 20, max_denominator=30)
FORMULAS = {
    "a - b - 1 + 2 * a / 3": lambda a, b: a - b - 1 + 2 * a / 3,
    "- a ^ 2 * b": lambda a, b: -(a**2) * b,
    "(a + b) ^ 2 / (2 * (1 + a ^ 2))": lambda a, b: (a + b) ** 2 / (2 * (1 + a**2)),
    "if Rle_dec a b then a else if Rlt_dec 0 b then b else b - 1": lambda a, b: a if a <= b else b if b > 0 else b - 1,
    "Rmin a (Rmax b 1) * twice (a - b) + 1": lambda a, b: min(a, max(b, 1)) * 2 * (a - b) + 1,
    "a / (b - b)": lambda a, b: 0,
}
TWICE = {"twice": Definition("twice", ("x",), "2 * x")}


@pytest.mark.parametrize("formula", FORMULAS)
@given(a=NUMBERS, b=NUMBERS)
def test_rationals_are_computed_exactly(formula, a, b):
    assert evaluate(Definition("f", ("a", "b"), formula), TWICE, {"a": a, "b": b}) == FORMULAS[formula](a, b)


def test_a_root_is_that_of_the_reals_0_below_0():
    root = Definition("root", ("x",), "sqrt (x / 2)")
    assert [evaluate(root, {}, {"x": Fraction(x)}) for x in (8, -8)] == [2.0, 0.0]


@pytest.mark.parametrize("formula", ["forall x, a", "a +", "(a", "a b", "unknown a", "a ? b", "if a then b else a", ""])
def test_what_is_no_formula_is_refused(formula):
    with pytest.raises(ProofError, match="`f` is no formula that can be read"):
        evaluate(Definition("f", ("a", "b"), formula), {}, {"a": Fraction(1), "b": Fraction(2)})


def test_a_parameter_without_a_value_is_named():
    with pytest.raises(ProofError, match="`f` needs b"):
        evaluate(Definition("f", ("a", "b"), "a"), {}, {"a": Fraction(1)})
