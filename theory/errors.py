"""What can go wrong, by name. Every message names the argument as typed, the rule, the value and the way out."""

from __future__ import annotations


class TheoryError(ValueError):
    """Root of every error that the theory package raises on its own account."""


class ArgumentError(TheoryError):
    """An argument breaks a rule."""


class AssumptionError(TheoryError):
    """A bound was asked about a run or a problem that does not meet its assumptions: it has nothing to say."""


class ConvergenceError(TheoryError):
    """An iterative computation did not reach the accuracy that its answer promises."""


class ProofError(TheoryError):
    """A proof was refused, could not be read, or there is no machine to check it."""


def positive(argument: str, value: float) -> float:
    """`value` as a float.

    Args:
        argument: its name as the user typed it.
        value: a number.

    Returns:
        The number.

    Raises:
        ArgumentError: it is not a finite number above zero.
    """
    number = _number(argument, value)
    if not 0 < number < float("inf"):
        raise ArgumentError(f"`{argument}` must be a finite number above 0, and is {value!r}.")
    return number


def unit_interval(argument: str, value: float) -> float:
    """`value` as a float in (0, 1].

    Args:
        argument: its name as the user typed it.
        value: a number.

    Returns:
        The number.

    Raises:
        ArgumentError: it lies outside.
    """
    number = _number(argument, value)
    if not 0 < number <= 1:
        raise ArgumentError(f"`{argument}` must be above 0 and at most 1, and is {value!r}.")
    return number


def at_least_zero(argument: str, value: float) -> float:
    """`value` as a float.

    Args:
        argument: its name as the user typed it.
        value: a number.

    Returns:
        The number.

    Raises:
        ArgumentError: it is not a finite number of at least zero.
    """
    number = _number(argument, value)
    if not 0 <= number < float("inf"):
        raise ArgumentError(f"`{argument}` must be finite and at least 0, and is {value!r}.")
    return number


def count(argument: str, value: int, least: int = 1) -> int:
    """`value` as a whole number.

    Args:
        argument: its name as the user typed it.
        value: a number.
        least: the smallest one allowed.

    Returns:
        The number.

    Raises:
        ArgumentError: it is not whole, or is smaller.
    """
    if isinstance(value, bool) or not hasattr(value, "__index__") or int(value) < least:
        raise ArgumentError(f"`{argument}` must be a whole number of at least {least}, and is {value!r}.")
    return int(value)


def _number(argument: str, value: float) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise ArgumentError(f"`{argument}` must be a number, and is {value!r}.") from None
