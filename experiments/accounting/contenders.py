"""The methods that are counted, timed and weighed beside LoRA, each once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from experiments.errors import UsageError
from experiments.methods import (
    BAdam,
    BottleneckAdapters,
    ChainOfLoRA,
    DoRA,
    FullFineTuning,
    GaLore,
    LoRA,
    LoRAFA,
    LoRAPlus,
    Method,
    PiSSA,
    PrefixTuning,
    RsLoRA,
)
from fwlora import Evenly

# No result of a count or of a clock depends on it.
RATE = 1e-4


def contenders(rank: int, links: int, steps: int, *, linear: Sequence[str] = (), half: bool = False) -> list[Method]:
    """LoRA first.

    Args:
        rank: of factors, of GaLore's subspace and of a bottleneck, which then has about LoRA's parameters.
        links: of the chains.
        steps: of a run, for BAdam to change its block and GaLore its subspace as often as a chain ties.
        linear: the layers whose gradients GaLore projects, by name: all linear ones, as its authors do; empty for the targets.
        half: whether the base is in half precision, which GaLore's authors train as it is.

    Returns:
        The methods, each with a label of its own.
    """
    part = -(-steps // links)
    galore = GaLore("GaLore", RATE, rank, update_proj_gap=part, projected=tuple(linear))
    return [
        LoRA("LoRA", RATE, rank),
        ChainOfLoRA("chain", RATE, rank, Evenly(links)),
        ChainOfLoRA("chain, B only", RATE, rank, Evenly(links), freeze_A=True),
        LoRAPlus("LoRA+", RATE, rank),
        LoRAFA("LoRA-FA", RATE, rank),
        RsLoRA("rsLoRA", RATE, rank),
        DoRA("DoRA", RATE, rank),
        PiSSA("PiSSA", RATE, rank),
        PrefixTuning("prefix tuning", RATE),
        BottleneckAdapters("bottleneck adapters", RATE, rank),
        FullFineTuning("full fine-tuning", RATE),
        galore,
        *([replace(galore, label="GaLore, half-precision weights", full_precision=False)] if half else []),
        # A block that is left after each of its steps has no state that could be weighed.
        BAdam("BAdam", RATE, switch_every=max(2, part)),
    ]


def chosen(methods: Sequence[Method], labels: Sequence[str]) -> list[Method]:
    """Those of a name.

    Args:
        methods: LoRA first.
        labels: which to take; none for all.

    Returns:
        LoRA, and those that were asked for.

    Raises:
        UsageError: there is no method of that name.
    """
    known = [method.label for method in methods]
    for label in labels:
        if label not in known:
            raise UsageError(f"--methods {label!r}: choose from {', '.join(repr(name) for name in known)}.")
    return [method for method in methods if not labels or method.label in {known[0], *labels}]
