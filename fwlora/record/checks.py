"""What a document must be like, said as it is to be read: each check tells what is wrong with a value, or None.

sites = mapping(record({"A": tensor(), "B": tensor()}, bias=tensor()))
sites({"q": {"A": torch.ones(2, 3)}})      # "['q'] lacks 'B'"
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import Tensor

Check = Callable[[Any], str | None]
_INT64 = 2**63


def whole(least: int = 0, most: int = _INT64 - 1) -> Check:
    """A whole number within bounds, no bool."""
    return lambda x: None if type(x) is int and least <= x <= most else f" is {_told(x)}, no whole number of at least {least}"


def number(x: Any) -> str | None:
    """A float that is finite; an integer would come back as another document."""
    is_one = type(x) is float and math.isfinite(x)
    return None if is_one else f" is {_told(x)}, no finite number"


def any_number(x: Any) -> str | None:
    """A number; a diverged run's may be inf or nan."""
    return None if type(x) in (int, float) else f" is {_told(x)}, no number"


def text(x: Any) -> str | None:
    """A string."""
    return None if type(x) is str else f" is {_told(x)}, no text"


def file_name(x: Any) -> str | None:
    """The name of a file, which leads to no other folder."""
    is_one = type(x) is str and 0 < len(x.encode(errors="replace")) < 256 and not set(x) & set("/\\:\0")
    return None if is_one else f" is {_told(x)}, no file's name"


def one_of(*values: str | None) -> Check:
    """One of these texts, or None where it is among them."""
    return lambda x: (
        None if (x is None or type(x) is str) and x in values else f" is {_told(x)}, none of {', '.join(map(repr, values))}"
    )


def anything(x: Any) -> str | None:
    """A value that is only shown."""
    return None


def tensor(*dtypes: torch.dtype, shape: tuple[int, ...] | None = None, least: int = 0) -> Check:
    """A tensor of one of these types, any floating one where none is named, of this shape or of so many axes."""

    def check(x: Any) -> str | None:
        if not isinstance(x, Tensor):
            return f" is {_told(x)}, no tensor"
        if _is_strange(x):
            return " is a tensor that is sparse, nested or without numbers"
        if x.dtype not in dtypes if dtypes else not x.dtype.is_floating_point:
            return f" is a tensor of {x.dtype}, not of {', '.join(map(str, dtypes)) or 'floating numbers'}"
        if x.ndim < least or shape not in (None, tuple(x.shape)):
            return f" is a tensor of shape {tuple(x.shape)}, not of {shape or f'{least} or more axes'}"
        return None

    return check


def any_tensor(x: Any) -> str | None:
    """A tensor of any type and shape."""
    if not isinstance(x, Tensor):
        return f" is {_told(x)}, no tensor"
    return " is a tensor that is sparse, nested or without numbers" if _is_strange(x) else None


def maybe(check: Check) -> Check:
    """None, or what the check wants."""
    return lambda x: None if x is None else check(x)


def either(tell: Callable[[Any], Check]) -> Check:
    """The check that the value itself chooses."""
    return lambda x: tell(x)(x)


def sequence(check: Check) -> Check:
    """A list, each of whose entries is checked."""

    def of(x: Any) -> str | None:
        if type(x) not in (list, tuple):
            return f" is {_told(x)}, no list"
        return next((f"[{i}]{wrong}" for i, entry in enumerate(x) if (wrong := check(entry))), None)

    return of


def mapping(check: Check) -> Check:
    """A dict by names, each of whose values is checked."""

    def of(x: Any) -> str | None:
        if not isinstance(x, Mapping):
            return f" is {_told(x)}, no dict"
        strange = [key for key in x if type(key) is not str]
        if strange:
            return f" has the key {_told(strange[0])}, no text"
        return next((f"[{key!r}]{wrong}" for key, value in x.items() if (wrong := check(value))), None)

    return of


def record(must: Mapping[str, Check], **may: Check) -> Check:
    """A dict of these keys, each with a check of its own.

    Args:
        must: keys that are there.
        may: keys that need not be.

    Returns:
        The check.

    Example:
        >>> check = record({"step": whole()}, loss=number)
        >>> check({"step": 3}), check({"step": -1}), check({"step": 1, "los": 2.0})
        (None, "['step'] is -1, no whole number of at least 0", " has the unknown 'los'")
    """

    def of(x: Any) -> str | None:
        wrong = mapping(anything)(x)
        if wrong:
            return wrong
        for what, names in (("has the unknown", set(x) - set(must) - set(may)), ("lacks", set(must) - set(x))):
            if names:
                return f" {what} {', '.join(map(repr, sorted(names)))}"
        checks = {**must, **may}
        return next((f"[{key!r}]{wrong}" for key, value in x.items() if (wrong := checks[key](value))), None)

    return of


def _is_strange(x: Tensor) -> bool:
    return x.layout is not torch.strided or x.is_nested or x.is_meta


def same_names(one: Collection[str], other: Collection[str]) -> str | None:
    """A name that only one of two collections has."""
    return next(iter(sorted(set(one) ^ set(other))), None)


def _told(x: Any) -> str:
    """A value as an error shows it, in a few words."""
    if isinstance(x, Tensor | list | tuple | Mapping):
        return f"a {type(x).__name__}"
    told = repr(x)
    return told if len(told) <= 40 else f"{told[:37]}..."
