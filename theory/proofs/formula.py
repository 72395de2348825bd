"""Reads the real numbers that the Coq files define, so that Python's own can be held against them."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

from theory.errors import ProofError
from theory.proofs.source import Definition

Number = Fraction | float

_TOKEN = re.compile(r"\s*(\d+|[A-Za-z_][\w']*|[-+*/^()])")
_WORDS = {"if", "then", "else"}
_KNOWN: dict[str, tuple[int, Callable[..., Any]]] = {
    "sqrt": (1, lambda x: math.sqrt(max(x, 0))),  # as the Reals have it: 0 below 0
    "Rmin": (2, min),
    "Rmax": (2, max),
    "Rle_dec": (2, operator.le),
    "Rlt_dec": (2, operator.lt),
}
_LEVELS = [{"+": operator.add, "-": operator.sub}, {"*": operator.mul, "/": lambda a, b: a / b if b else Fraction(0)}]


def evaluate(definition: Definition, others: Mapping[str, Definition], values: Mapping[str, Number]) -> Number:
    """The value of a definition: exact for rational arguments, as long as it takes no root.

    Args:
        definition: ``+ - * / ^``, ``sqrt``, ``Rmin``, ``Rmax``, ``if Rle_dec a b then x else y``, and calls of others.
        others: what it may call.
        values: of its parameters, by name.

    Returns:
        The number.

    Raises:
        ProofError: the definition holds something else, or a parameter has no value.

    Example:
        >>> parabola = Definition("parabola", ("x",), "if Rle_dec x 1 then x ^ 2 / 2 else x - 1 / 2")
        >>> evaluate(parabola, {}, {"x": Fraction(1, 3)}), evaluate(parabola, {}, {"x": Fraction(3)})
        (Fraction(1, 18), Fraction(5, 2))
    """
    missing = [name for name in definition.parameters if name not in values]
    if missing:
        raise ProofError(f"`{definition.name}` needs {', '.join(missing)}, and `values` has {', '.join(values)}.")
    reader = _Reader(definition, others, {name: values[name] for name in definition.parameters})
    value = reader.expression()
    reader.end()
    return value


class _Reader:
    """Evaluates an expression while it reads it."""

    def __init__(self, definition: Definition, others: Mapping[str, Definition], values: Mapping[str, Number]) -> None:
        self._definition, self._others, self._values = definition, others, values
        self._tokens = _TOKEN.findall(definition.body)
        if "".join(self._tokens) != re.sub(r"\s", "", definition.body):
            raise ProofError(f"`{definition.name}` is no formula that can be read: {definition.body}")
        self._at = 0

    def expression(self) -> Any:
        """``if c then x else y``, or sums of products of powers of calls."""
        if not self._takes("if"):
            return self._level(0)
        condition = self._call()
        if not isinstance(condition, bool):
            raise self._stuck()
        self._expect("then")
        yes = self.expression()
        self._expect("else")
        no = self.expression()
        return yes if condition else no

    def end(self) -> None:
        """Nothing is left."""
        if self._at < len(self._tokens):
            raise self._stuck()

    def _level(self, level: int) -> Any:
        if level == len(_LEVELS):
            return -self._level(level) if self._takes("-") else self._power()
        value = self._level(level + 1)
        while self._next in _LEVELS[level]:
            value = _LEVELS[level][self._take()](value, self._level(level + 1))
        return value

    def _power(self) -> Any:
        base = self._call()
        return base ** int(self._call()) if self._takes("^") else base

    def _call(self) -> Any:
        """A name before as many arguments as it takes."""
        name = self._next
        if name in _KNOWN:
            arity, function = _KNOWN[self._take()]
            return function(*(self._atom() for _ in range(arity)))
        if name in self._others and name not in self._values:
            called = self._others[self._take()]
            return evaluate(called, self._others, {parameter: self._atom() for parameter in called.parameters})
        return self._atom()

    def _atom(self) -> Any:
        token = self._take()
        if token == "(":
            value = self.expression()
            self._expect(")")
            return value
        if token.isdigit():
            return Fraction(int(token))
        if token in self._values and token not in _WORDS:
            return self._values[token]
        raise self._stuck()

    @property
    def _next(self) -> str:
        return self._tokens[self._at] if self._at < len(self._tokens) else ""

    def _take(self) -> str:
        self._at += 1
        return self._tokens[self._at - 1] if self._at <= len(self._tokens) else ""

    def _takes(self, token: str) -> bool:
        is_there = self._next == token
        self._at += is_there
        return is_there

    def _expect(self, token: str) -> None:
        if not self._takes(token):
            raise self._stuck()

    def _stuck(self) -> ProofError:
        read = " ".join(self._tokens[: self._at])
        return ProofError(f"`{self._definition.name}` is no formula that can be read: stuck after `{read}`.")
