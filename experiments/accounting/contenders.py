"""The methods that are counted, timed and weighed beside LoRA, each once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from experiments.errors import UsageError
from experiments.methods import (
    BAdam,
    BottleneckAdapters,
    ChainOfLoRA,
    Compiled,
    DoRA,
    FrozenFloor,
    FullFineTuning,
    FusedLoRA,
    GaLore,
    HalfLoRA,
    LoRA,
    LoRAFA,
    LoRAPlus,
    Method,
    PiSSA,
    PrefixTuning,
    ReLoRA,
    RsLoRA,
)
from fwlora import Blocks, Evenly

# No result of a count or of a clock depends on it.
RATE = 1e-4
FLOOR = "frozen floor"


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


def variants(
    rank: int, links: int, steps: int, *, linear: Sequence[str] = (), half: bool = False, layers: int = 1
) -> list[Method]:
    """The contenders, and what tells where their time and memory goes; LoRA first.

    Args:
        rank: as for `contenders`.
        links: of the chains, but for the one that trains a block a link, which has a link for each.
        steps: of a run; ReLoRA merges as often as a chain ties, and BAdam comes to every block if there are two for each.
        linear: as for `contenders`.
        half: as for `contenders`.
        layers: of the model.

    Returns:
        The methods, each with a label of its own.
    """
    lora, chain, b_only, *others, badam = contenders(rank, links, steps, linear=linear, half=half)
    assert isinstance(chain, ChainOfLoRA)
    assert isinstance(badam, BAdam)
    # Rounded down, or a run might end before the last block; with a step left over the first one, cut short, comes again.
    by_turns = replace(badam, switch_every=max(2, steps // layers))
    by_block = replace(chain, label="chain, one block a link", knots=Evenly(layers), blocks=Blocks(layers))
    return [
        lora,
        FrozenFloor(FLOOR),
        FusedLoRA("LoRA, fused AdamW", RATE, rank),
        *([HalfLoRA("LoRA, bf16 adapters", RATE, rank)] if half else []),
        Compiled("LoRA, compiled", lora),
        chain,
        b_only,
        by_block,
        replace(chain, label="chain, PEFT's forward", fast_layers=False),
        Compiled("chain, compiled", chain),
        ReLoRA("ReLoRA", RATE, rank, every=-(-steps // links)),
        *others,
        by_turns,
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
