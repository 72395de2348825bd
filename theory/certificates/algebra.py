"""Exact linear combinations of formal unknowns: numbers such as ``f_1``, vectors such as ``G_1``, and their inner products."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from fractions import Fraction
from typing import Self, TypeAlias

from theory.errors import ArgumentError

Exact: TypeAlias = int | str | Fraction
"""A rational number as one may type it: ``3``, ``"1/10"``, ``"0.1"`` or a `Fraction`."""

ONE = "1"
"""The unknown that a number is a multiple of."""


def rational(argument: str, value: Exact) -> Fraction:
    """`value` as a fraction.

    Args:
        argument: its name as the user typed it.
        value: a whole number, a fraction, or either as text.

    Returns:
        The fraction.

    Raises:
        ArgumentError: it is a float, or no rational number.

    Example:
        >>> rational("eta", "0.1") == Fraction(1, 10)
        True
    """
    if isinstance(value, float):
        raise ArgumentError(
            f"`{argument}` must be exact, and {value!r} is a float: not the number that was typed but a binary fraction near "
            f"it; write text, {str(value)!r}, or a Fraction."
        )
    if isinstance(value, int | str | Fraction) and not isinstance(value, bool):
        with suppress(ValueError, ZeroDivisionError):
            return Fraction(value)
    raise ArgumentError(f"`{argument}` must be a whole number, a Fraction or text such as '1/10', and is {value!r}.")


class Combination:
    """``sum_i c_i u_i`` with rational c_i and formal unknowns u_i, of which no two are related.

    Two combinations are equal for all values of the unknowns exactly if their coefficients are, which is what makes an identity
    of combinations a proof. They are values: no operation changes its operands.

    Args:
        terms: the coefficient of each unknown; zeros are dropped.

    Example:
        >>> f, g = Combination.unknown("f"), Combination.unknown("g")
        >>> (f + g) * Fraction(1, 2) - (f - g) * Fraction(1, 2) == g
        True
    """

    __slots__ = ("terms",)

    def __init__(self, terms: Mapping[str, Fraction] | None = None) -> None:
        self.terms = {unknown: c for unknown, c in (terms or {}).items() if c}

    @classmethod
    def unknown(cls, name: str) -> Self:
        """One unknown, once."""
        return cls({name: Fraction(1)})

    @classmethod
    def constant(cls, value: Fraction) -> Self:
        """A number."""
        return cls({ONE: value})

    @classmethod
    def total(cls, weighted: Iterable[tuple[Fraction | int, Combination]]) -> Self:
        """``sum_k w_k x_k``.

        Args:
            weighted: pairs of a weight and a combination.

        Returns:
            The sum.
        """
        terms: dict[str, Fraction] = {}
        for weight, combination in weighted:
            if weight:
                for unknown, c in combination.terms.items():
                    terms[unknown] = terms.get(unknown, Fraction(0)) + weight * c
        return cls(terms)

    def __add__(self, other: Combination) -> Self:
        return self.total([(1, self), (1, other)])

    def __sub__(self, other: Combination) -> Self:
        return self.total([(1, self), (-1, other)])

    def __mul__(self, factor: Fraction | int) -> Self:
        return self.total([(factor, self)])

    __rmul__ = __mul__

    def __neg__(self) -> Self:
        return -1 * self

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Combination) and self.terms == other.terms

    __hash__ = None  # pyright: ignore[reportAssignmentType]

    def __bool__(self) -> bool:
        """Whether any coefficient is left: False for the zero combination alone."""
        return bool(self.terms)

    def __repr__(self) -> str:
        return " + ".join(f"{c}" if unknown == ONE else f"{c} {unknown}" for unknown, c in self.terms.items()) or "0"


class Vector(Combination):
    """A combination of unknown vectors of one Euclidean space, of any dimension.

    Example:
        >>> x, y = Vector.unknown("x"), Vector.unknown("y")
        >>> (x + y) @ (x + y) + (x - y) @ (x - y) == 2 * (x @ x) + 2 * (y @ y)
        True
    """

    __slots__ = ()

    def __matmul__(self, other: Vector) -> Combination:
        """``<x, y>``, in the inner products of the unknowns: the entries of the Gram matrix, unknowns in their turn."""
        terms: dict[str, Fraction] = {}
        for u, a in self.terms.items():
            for v, b in other.terms.items():
                # <u, v> = <v, u> is one unknown, whichever way it comes.
                product = f"<{u}, {v}>" if u <= v else f"<{v}, {u}>"
                terms[product] = terms.get(product, Fraction(0)) + a * b
        return Combination(terms)
