"""The figures that a chain's memory was to reach before any was measured, for the cases that they were set for."""

from __future__ import annotations

from collections.abc import Sequence

from experiments.accounting.targets import Target
from experiments.pages.weighings import B_ONLY, BY_BLOCK, CHAIN, FLOOR, LORA, Weighing

Judged = list[tuple[Target, float | None]]

ALL, QV = "all-linear", "q_proj+v_proj"
FAMILIES = {"llama-512": "llama", "llama-1024": "llama", "opt-512": "opt", "opt-1024": "opt"}
# By dtype and targets: at most so much of what LoRA saves.
SAVED = {
    ("bf16", ALL): {"llama": 0.66, "opt": 0.48},
    ("fp32", ALL): {"llama": 1.00, "opt": 1.00},
    ("bf16", QV): {"llama": 0.87, "opt": 0.87},
}
B_ONLY_LIMIT, FLOOR_LIMIT, BLOCK_LIMIT = 0.78, 1.00, 0.35
# On a CUDA device, all linear layers on a bf16 base.
CUDA_LIMIT = 0.70


def judged(cases: Sequence[Weighing]) -> Judged:
    """All targets of the cases that were run, each with what was measured.

    Args:
        cases: what was weighed.

    Returns:
        Targets and numbers; None where a method was not weighed.
    """
    return [one for case in cases for one in (*saved(case), *peak(case))]


def saved(case: Weighing) -> Judged:
    """What is saved for the backward pass, over what LoRA saves and over the frozen floor's."""
    kind = case.facts["dtype"], case.facts["targets"]
    family = FAMILIES.get(case.facts["base"])
    if family is None or kind not in SAVED:
        return []
    found: Judged = [
        (Target("saved / LoRA's", case.label, SAVED[kind][family]), case.ratio(CHAIN, LORA, "kept"))
    ]  # fmt: skip
    if kind == ("fp32", ALL):
        found.append((Target("saved with B only / LoRA's", case.label, B_ONLY_LIMIT), case.ratio(B_ONLY, LORA, "kept")))
    if kind[1] == ALL:
        target = Target("saved with B only / frozen floor's", case.label, FLOOR_LIMIT)
        found.append((target, case.ratio(B_ONLY, FLOOR, "kept")))
    if kind == ("bf16", ALL):
        target = Target("saved with one block a link, mean over blocks / LoRA's", case.label, BLOCK_LIMIT)
        found.append((target, case.ratio(BY_BLOCK, LORA, "kept_mean")))
    return found


def peak(case: Weighing) -> Judged:
    """What CUDA had allocated above the weights before the logits, over LoRA's."""
    if (case.facts["dtype"], case.facts["targets"]) != ("bf16", ALL) or not case.ran(LORA):
        return []
    if case.rows[LORA]["peak_body"] is None:
        return []
    return [
        (Target("peak above weights before the logits / LoRA's", case.label, CUDA_LIMIT), case.ratio(CHAIN, LORA, "peak_body"))
    ]


def why(cases: Sequence[Weighing]) -> list[str]:
    """What the numbers themselves say of a target that is missed.

    Args:
        cases: what was weighed.

    Returns:
        Sentences.
    """
    return [
        f"{target.quantity}, {case.label}: {reason}."
        for case in cases
        for target, value in saved(case)
        if target.verdict(value) == "missed" and (reason := _reason(case, target)) is not None
    ]


def _reason(case: Weighing, target: Target) -> str | None:
    method = BY_BLOCK if "block" in target.quantity else B_ONLY if "B only" in target.quantity else CHAIN
    floor, body = case.ratio(FLOOR, LORA, "kept"), case.ratio(method, LORA, "body_mean")
    if body is not None and body <= target.limit:
        return f"before the logits, of which both hold the same, it is {body:.3f}"
    if method != BY_BLOCK and target.quantity.endswith("LoRA's") and floor is not None and floor > target.limit:
        return f"the frozen floor alone saves {floor:.3f} of what LoRA saves"
    return None
