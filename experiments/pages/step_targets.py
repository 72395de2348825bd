"""The figures that a chain's step was to reach before any was measured, for the cases that they were set for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from experiments.accounting.targets import ALL, FAMILIES, QV, Judged, Target, as_set_for, is_plain
from experiments.pages.laps import FLOOR, LORA, Race

CHAIN, BY_BLOCK, COMPILED, LORA_COMPILED = "chain", "chain, one block a link", "chain, compiled", "LoRA, compiled"
# On a CPU, by dtype and targets: at most so much of LoRA's step and of the frozen floor's; stretches where there are any.
LIMITS = {
    ("bf16", ALL): ({"llama": (0.70, 0.60), "opt": (0.60, 0.50)}, (1.25, 1.10)),
    ("fp32", ALL): ({"llama": (0.92, None), "opt": (0.92, None)}, (1.12, None)),
    ("bf16", QV): ({"llama": (0.92, None), "opt": (0.92, None)}, (1.07, None)),
    ("fp32", QV): ({"llama": (1.00, None), "opt": (1.00, None)}, (1.02, None)),
}
COMPILED_LIMIT, BLOCK_LIMIT = 0.90, 0.45
# On a CUDA device, all linear layers on a bf16 base.
CUDA_LIMIT = 0.75
EXACT, HALF = 1e-6, 1.05


def judged(races: Sequence[Race], gradients: Sequence[Mapping[str, Any]], config: Mapping[str, Any]) -> Judged:
    """All targets of the cases that were run, each with what was measured.

    Args:
        races: the cases.
        gradients: their gradients' errors.
        config: the run's.

    Returns:
        Targets and numbers; None where a variant did not run.
    """
    return [
        *[one for race in races for one in steps(race, config)],
        *[one for race in races for one in variants(race, config)],
        *[one for row in gradients for one in errors(row, config)],
    ]


def steps(race: Race, config: Mapping[str, Any]) -> Judged:
    """The chain's step over LoRA's and over the floor's."""
    facts, ratio = race.facts, race.typical(CHAIN, LORA)
    if race.clock == 0:
        aimed = (facts["dtype"], facts["targets"]) == ("bf16", ALL) and is_plain(config)
        return [(Target("step / LoRA's", race.label, CUDA_LIMIT), ratio)] if aimed else []
    if not as_set_for(facts, config) or (facts["dtype"], facts["targets"]) not in LIMITS:
        return []
    to_lora, (limit, stretch) = LIMITS[facts["dtype"], facts["targets"]]
    bound, further = to_lora[FAMILIES[facts["base"]]]
    return [
        (Target("step / LoRA's", race.label, bound, stretch=further), ratio),
        (Target("step / frozen floor's", race.label, limit, stretch=stretch), race.typical(CHAIN, FLOOR)),
    ]


def variants(race: Race, config: Mapping[str, Any]) -> Judged:
    """Compiled against compiled, and a block a link against LoRA, on all linear layers of a bf16 base."""
    if not as_set_for(race.facts, config) or (race.facts["dtype"], race.facts["targets"]) != ("bf16", ALL):
        return []
    by_block = Target("step with one block a link, mean over blocks / LoRA's", race.label, BLOCK_LIMIT)
    return [
        (Target("compiled step / LoRA's compiled", race.label, COMPILED_LIMIT), race.typical(COMPILED, LORA_COMPILED)),
        (by_block, race.typical(BY_BLOCK, LORA)),
    ]


def errors(row: Mapping[str, Any], config: Mapping[str, Any]) -> Judged:
    """A case's gradients: PEFT's own in float32, no worse than PEFT's in half precision."""
    if row["dtype"] == "fp32" and not config["autocast"]:
        return [
            (Target("gradients' difference / LoRA's length, all factors as one vector", row["case"], EXACT), row["difference"]),
            (Target("gradients' difference / LoRA's length, the worst single factor", row["case"], EXACT), row["largest"]),
        ]
    ratio = None if row["chain"] is None else row["chain"] / row["lora"]
    return [(Target("gradients' error / error of LoRA's", row["case"], HALF), ratio)]
