"""Sentences that numbers decide: no verdict is written down before it is measured."""

from __future__ import annotations

import math

from experiments.statistics import Comparison, Interval
from experiments.tasks.metric import Metric


def probability(p: float) -> str:
    """A p-value as readers know it."""
    if math.isnan(p):
        return "-"
    return f"{p:.0e}".replace("e-0", "e-") if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


def spread(value: Interval, metric: Metric) -> str:
    """Mean and standard deviation over seeds."""
    mean = f"{value.mean:.{metric.digits}f}"
    return mean if math.isnan(value.deviation) else f"{mean} ± {value.deviation:.{metric.digits}f}"


def signed(value: Interval, metric: Metric) -> str:
    """A mean difference with its interval, signs shown."""
    digits = metric.digits
    if math.isnan(value.low):
        return f"{value.mean:+.{digits}f}"
    return f"{value.mean:+.{digits}f} [{value.low:+.{digits}f}, {value.high:+.{digits}f}]"


def versus(treatment: str, control: str, comparison: Comparison, metric: Metric) -> str:
    """One sentence on a paired comparison.

    Args:
        treatment: a method.
        control: the method it is compared with.
        comparison: what was measured.
        metric: in which unit.

    Returns:
        The sentence.
    """
    evidence = (
        f"{signed(comparison.difference, metric)} {metric.unit}".strip()
        + f", p {_bounded(comparison.p)}, better on {comparison.wins} of {comparison.seeds} seeds"
    )
    if math.isnan(comparison.p):
        why = "too few seeds for a test" if comparison.seeds < 2 else "the same on every seed, so that there is no test"
        evidence = f"{signed(comparison.difference, metric)} {metric.unit}".strip() + f", {why}"
    if comparison.verdict == "no clear difference":
        return f"{treatment} shows no clear difference from {control} ({evidence})."
    return f"{treatment} is {comparison.verdict} than {control} ({evidence})."


def _bounded(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"= {probability(p)}"
