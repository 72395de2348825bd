"""The figures that a knot was to reach before any was measured, for the cases that they were set for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from experiments.accounting.targets import ALL, MIB, Judged, Target, as_set_for
from experiments.pages.ties import CHAIN, FIRST, Ties

# In steps of LoRA on a CPU.
PLAIN_LIMIT, FEEDBACK_LIMIT, EXACT_LIMIT = 0.05, 0.16, 0.02
TRANSIENT_LIMIT = 4.0
GAIN_LIMIT, GAIN_MERGES, GAIN_RELATIVE = 0.98, 30, 1e-3


def judged(cases: Sequence[Ties], gains: Sequence[Mapping[str, Any]], config: Mapping[str, Any]) -> Judged:
    """All targets of the cases that were run, each with what was measured.

    Args:
        cases: times and bytes.
        gains: what arrived of merges.
        config: the run's.

    Returns:
        Targets and numbers; None where nothing was measured.
    """
    return [
        *[one for case in cases for one in times(case, config)],
        *[one for case in cases for one in bytes_held(case)],
        *[
            (
                Target("realised gain of 30 merges in bf16", f"|dW|/|W| = {GAIN_RELATIVE:g}", GAIN_LIMIT, at_least=True),
                row["gain"],
            )
            for row in gains
            if (row["way"], row["merges"], row["relative"]) == (CHAIN, GAIN_MERGES, GAIN_RELATIVE)
        ],
    ]


def times(case: Ties, config: Mapping[str, Any]) -> Judged:
    """A knot in steps of LoRA, on a CPU."""
    facts = case.facts
    if case.clock == 0 or facts["targets"] != ALL or not as_set_for(facts, config):
        return []
    measured = None if case.reason is not None else case.typical(CHAIN)
    if facts["dtype"] == "fp32":
        return [(Target("a knot, in steps of LoRA", case.label, EXACT_LIMIT), measured)]
    # There is no such knot: the library keeps what half precision rounds away, whatever it is told.
    without = "a knot without error feedback (half-precision knots always keep it), in steps of LoRA"
    return [
        (Target(without, case.label, PLAIN_LIMIT), None),
        (Target("a knot with error feedback, in steps of LoRA", case.label, FEEDBACK_LIMIT), measured),
    ]


def bytes_held(case: Ties) -> Judged:
    """What a knot holds for a while, the first included."""
    value = None if case.reason is not None else max(case.transient(CHAIN), case.transient(FIRST)) / MIB
    return [(Target("transient memory of a knot, the retired link apart [MiB]", case.label, TRANSIENT_LIMIT), value)]
