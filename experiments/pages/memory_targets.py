"""The figures that a chain's memory was to reach before any was measured, for the cases that they were set for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from experiments.accounting.targets import ALL, FAMILIES, QV, Judged, Target, as_set_for, is_plain
from experiments.pages.weighings import B_ONLY, CHAIN, FLOOR, LORA, Weighing

# By dtype and targets: at most so much of what autograd keeps under LoRA.
SAVED = {
    ("bf16", ALL): {"llama": 0.66, "opt": 0.48},
    ("fp32", ALL): {"llama": 1.00, "opt": 1.00},
    ("bf16", QV): {"llama": 0.87, "opt": 0.87},
}
B_ONLY_LIMIT, FLOOR_LIMIT = 0.78, 1.00
# On a CUDA device, all linear layers on a bf16 base.
CUDA_LIMIT = 0.70


def judged(cases: Sequence[Weighing], config: Mapping[str, Any]) -> Judged:
    """All targets of the cases that were run, each with what was measured.

    Args:
        cases: what was weighed.
        config: the run's.

    Returns:
        Targets and numbers; None where a method was not weighed.
    """
    return [one for case in cases for one in (*kept(case, config), *peak(case, config))]


def kept(case: Weighing, config: Mapping[str, Any]) -> Judged:
    """What autograd itself keeps for the backward pass, over LoRA's and over the frozen floor's."""
    kind = case.facts["dtype"], case.facts["targets"]
    if kind not in SAVED or not as_set_for(case.facts, config):
        return []
    limit = SAVED[kind][FAMILIES[case.facts["base"]]]
    found: Judged = [(Target("kept by autograd / LoRA's", case.label, limit), case.ratio(CHAIN, LORA, "kept"))]
    if kind == ("fp32", ALL):
        target = Target("kept by autograd with B only / LoRA's", case.label, B_ONLY_LIMIT)
        found.append((target, case.ratio(B_ONLY, LORA, "kept")))
    if kind[1] == ALL:
        target = Target("kept by autograd with B only / frozen floor's", case.label, FLOOR_LIMIT)
        found.append((target, case.ratio(B_ONLY, FLOOR, "kept")))
    return found


def peak(case: Weighing, config: Mapping[str, Any]) -> Judged:
    """What CUDA had allocated above the weights before the logits, over LoRA's."""
    if (case.facts["dtype"], case.facts["targets"]) != ("bf16", ALL) or not is_plain(config):
        return []
    if not case.ran(LORA) or case.rows[LORA]["peak_body"] is None:
        return []
    return [
        (Target("peak above weights before the logits / LoRA's", case.label, CUDA_LIMIT), case.ratio(CHAIN, LORA, "peak_body"))
    ]


def why(cases: Sequence[Weighing], config: Mapping[str, Any]) -> list[str]:
    """What the numbers themselves say of a target that is missed.

    Args:
        cases: what was weighed.
        config: the run's.

    Returns:
        Sentences.
    """
    return [
        f"{target.quantity}, {case.label}: {reason}."
        for case in cases
        for target, value in kept(case, config)
        if target.verdict(value) == "missed" and (reason := _reason(case, target)) is not None
    ]


def _reason(case: Weighing, target: Target) -> str | None:
    method = B_ONLY if "B only" in target.quantity else CHAIN
    floor, body = case.ratio(FLOOR, LORA, "kept"), case.ratio(method, LORA, "body_mean")
    if body is not None and body <= target.limit:
        return f"before the logits, of which both hold the same, it is {body:.3f}"
    if target.quantity.endswith("LoRA's") and floor is not None and floor > target.limit:
        return f"under the frozen floor alone it is {floor:.3f} of LoRA's"
    return None
