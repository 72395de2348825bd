"""How far a measurement may be off: intervals, Student's t, and what random projections cannot miss.

Two kinds of chance are at work. Minibatches make means noisy, which a t interval covers. Random directions see only part of a
gradient, and two inequalities say how little they may see; both hold for every gradient, not for typical ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from fwlora.errors import ArgumentError

# In a smaller tail of Student's t, rounding of 1 - probability would make intervals visibly too narrow.
_TAIL = 1e-9


class Interval(NamedTuple):
    """A number that was measured: it lies in ``[lower, upper]`` with some confidence, and `point` is the best guess.

    Arithmetic is that of the extremes, so it needs no independence: what follows from several intervals fails only where one
    of them does, with at most the sum of their failure probabilities.

    Example:
        >>> quotient = Interval(1.0, 2.0, 4.0).over(Interval(0.5, 1.0, 2.0))
        >>> quotient, str(quotient)
        (Interval(lower=0.5, point=2.0, upper=8.0), '2 [0.5, 8]')
    """

    lower: float
    point: float
    upper: float

    def over(self, other: Interval) -> Interval:
        """The quotient.

        Args:
            other: the divisor, all of it above 0.

        Returns:
            Every quotient of a number here and a number there.

        Raises:
            ArgumentError: the divisor may be 0.
        """
        if not other.lower > 0:
            raise ArgumentError(f"A quotient's divisor must lie above 0, and is {other}.")
        ends = [end / divisor for end in (self.lower, self.upper) for divisor in (other.lower, other.upper)]
        return Interval(min(ends), self.point / other.point, max(ends))

    def clip(self, lower: float, upper: float) -> Interval:
        """The three numbers pushed into ``[lower, upper]``, where the truth is known to lie."""
        return Interval(*(min(max(number, lower), upper) for number in self))

    def __str__(self) -> str:
        return f"{self.point:.3g} [{self.lower:.3g}, {self.upper:.3g}]"


def student_quantile(probability: float, degrees: int) -> float:
    """The t with ``P(T <= t) = probability`` for Student's T of a whole number of degrees of freedom.

    By bisection of the closed form of ``P(|T| < t)``, a finite sum (Abramowitz and Stegun 26.7.3 and 26.7.4). Right to nine
    digits where both tails are above 1e-6; a tail of 1e-9 leaves six, and smaller ones are refused.

    Args:
        probability: from 1e-9 to 1 - 1e-9.
        degrees: of freedom, at least 1.

    Returns:
        The quantile.

    Raises:
        ArgumentError: an argument lies outside.

    Example:
        >>> round(student_quantile(0.75, 1), 9)  # Cauchy's: tan(pi/4)
        1.0
        >>> student_quantile(0.025, 5) == -student_quantile(0.975, 5)
        True
    """
    _probability("probability", probability)
    _whole("degrees", degrees)
    if not _TAIL <= probability <= 1 - _TAIL:
        raise ArgumentError(
            f"`probability` must leave both tails {_TAIL:g} or more, and is {probability!r}: ask for less confidence."
        )
    if probability == 0.5:
        return 0.0
    central = abs(2 * probability - 1)
    upper = 1.0
    while _within(upper, degrees) < central:
        upper *= 2
    return math.copysign(_bisect(lambda t: _within(t, degrees) - central, 0.0, upper), probability - 0.5)


def standard_error(samples: Tensor) -> float:
    """The standard error of the mean, ``(sum (x - mean)^2/(n (n - 1)))^(1/2)``, summed in float64.

    Args:
        samples: n independent measurements, at least 2.

    Returns:
        The error.

    Raises:
        ArgumentError: one measurement tells nothing of its own error.

    Example:
        >>> import torch
        >>> standard_error(torch.tensor([1.0, 3.0]))
        1.0
    """
    n = samples.numel()
    if n < 2:
        raise ArgumentError(f"`standard_error(samples=...)` takes at least 2 independent measurements, and got {n}.")
    return (samples.detach().cpu().double().var() / n).sqrt().item()


def range_finder_factor(failure: float, columns: int) -> float:
    """The alpha such that ``sigma_1 <= max_j |G x_j|/alpha`` for Gaussian ``x_1, ..., x_n``, except with probability `failure`.

    ``|G x_j| >= sigma_1 |<v_1, x_j>|``, and ``<v_1, x_j>`` is N(0, 1), whose density is at most ``1/sqrt(2 pi)``. Hence
    ``P(max_j |<v_1, x_j>| < alpha) <= (2 alpha/sqrt(2 pi))^n``, which is `failure` at ``alpha = failure^(1/n) sqrt(pi/2)``.
    The same alpha serves powers: ``|(G^T G)^q x_j| >= sigma_1^(2q) |<v_1, x_j>|``, so that the bound sharpens as
    ``alpha^(-1/(2q))`` (Dixon 1983).

    Args:
        failure: probability, in (0, 1).
        columns: n, the directions drawn.

    Returns:
        alpha.

    Example:
        >>> alpha = range_finder_factor(1e-3, columns=8)
        >>> abs((2 * alpha / math.sqrt(2 * math.pi)) ** 8 - 1e-3) < 1e-12
        True
    """
    _probability("failure", failure)
    _whole("columns", columns)
    return failure ** (1 / columns) * math.sqrt(math.pi / 2)


def frobenius_factor(failure: float, columns: int) -> float:
    """The t < 1 such that ``|G X|_F^2 >= t n |G|_F^2`` for a Gaussian X of n columns, except with probability `failure`.

    With ``lambda_i = sigma_i^2/|G|_F^2``, which sum to 1, ``|G X|_F^2/|G|_F^2 = sum_i lambda_i chi_i`` with independent
    chi-squares of n degrees. By Markov's inequality, for every s > 0,

        P(sum_i lambda_i chi_i <= t n) <= exp(s t n) prod_i (1 + 2 s lambda_i)^(-n/2) <= exp(s t n) (1 + 2 s)^(-n/2):

    ``log(1 + 2 s lambda)`` is concave and 0 at 0, so it lies above its chord, ``>= lambda log(1 + 2 s)``: rank one is the
    worst. At ``1 + 2 s = 1/t`` the bound is ``exp((n/2) (1 - t + log t))``, and t is where that is `failure`.

    Args:
        failure: probability, in (0, 1).
        columns: n, the directions drawn.

    Returns:
        t.

    Example:
        >>> t = frobenius_factor(1e-3, columns=8)
        >>> abs(math.exp(4 * (1 - t + math.log(t))) - 1e-3) < 1e-12
        True
    """
    _probability("failure", failure)
    _whole("columns", columns)
    # In u = -log t the equation is u - 1 + exp(-u) = target, whose left side grows and exceeds u - 1.
    target = -2 * math.log(failure) / columns
    return math.exp(-_bisect(lambda u: u + math.expm1(-u) - target, 0.0, target + 1))


def _within(t: float, degrees: int) -> float:
    """``P(|T| < t)`` for t > 0."""
    root = math.hypot(t, math.sqrt(degrees))
    sine, cosine = t / root, math.sqrt(degrees) / root  # of theta = atan(t/sqrt(degrees))
    odd = degrees % 2
    # Odd: (2/pi) (theta + sin (cos + 2/3 cos^3 + 2 4/(3 5) cos^5 + ...)). Even: sin (1 + 1/2 cos^2 + 1 3/(2 4) cos^4 + ...).
    # Both end with cos^(degrees - 2).
    term, total = cosine if odd else 1.0, 0.0
    for power in range(odd, degrees - 1, 2):
        total += term
        term *= (power + 1) / (power + 2) * cosine**2
    return 2 / math.pi * (math.atan2(t, math.sqrt(degrees)) + sine * total) if odd else sine * total


def _bisect(rising: Callable[[float], float], lower: float, upper: float) -> float:
    """Where `rising` crosses zero between its two ends, to the last place."""
    while lower < (middle := (lower + upper) / 2) < upper:
        lower, upper = (middle, upper) if rising(middle) < 0 else (lower, middle)
    return upper


def _probability(argument: str, value: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1:
        raise ArgumentError(f"`{argument}` is a probability, strictly between 0 and 1, and is {value!r}.")


def _whole(argument: str, value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ArgumentError(f"`{argument}` is a whole number of at least 1, and is {value!r}.")
