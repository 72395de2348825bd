"""What a problem is measured by."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """A number with a name and a good direction.

    Attributes:
        name: as it is written on an axis.
        unit: after a difference, such as "points"; may be empty.
        higher_is_better: which direction is good.
        digits: decimals worth printing.
    """

    name: str
    unit: str
    higher_is_better: bool
    digits: int


ACCURACY = Metric("test accuracy (%)", "points", higher_is_better=True, digits=2)
RELATIVE_ERROR = Metric("relative error", "", higher_is_better=False, digits=5)
NATS = Metric("held-out loss (nats per character)", "nats", higher_is_better=False, digits=4)
PERPLEXITY = Metric("held-out perplexity", "", higher_is_better=False, digits=2)
