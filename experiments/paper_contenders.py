"""Who meets under the paper's protocol, by the names that are typed.

A method's `lr` here is what its rate is beside LoRA's under AdamW: a grid of rates is multiplied by it. The bias of
`--lora-bias` is trained by LoRA, LoRA+, rsLoRA and the chains; LoRA-FA, DoRA and PiSSA train none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from experiments.errors import UsageError
from experiments.methods import (
    INNERS,
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
from experiments.protocol import ProtocolOptions
from fwlora import At, Decay, Evenly, Flat, GradientAligned, Never, Orthogonal, StepDown

BASELINE = "lora"
FULL = 0.1  # of LoRA's rate, as in the example runs (LoRA 1e-4, full 1e-5) of the code that the paper builds on
# What ends a sub-layer in OPT, Llama, GPT-2 and BERT.
SUBLAYERS = ("out_proj", "fc2", "o_proj", "down_proj", "c_proj", "output.dense")


def contenders(options: ProtocolOptions) -> dict[str, Method]:
    """Every method of table 1, LoRA first.

    Args:
        options: ranks, links and warm-up.

    Returns:
        The methods by their names.
    """
    rank, alpha, bias = options.rank, options.alpha, options.lora_bias
    chain = _chain(options, options.links)
    decaying = replace(chain, label=f"{chain.label}, Decay", link_lr=Decay(options.link_warmup), schedule=None)
    inner = {
        f"chain-{name.lower()}": replace(
            chain, label=f"{chain.label}, {name}", lr=each.rate, inner=each.kind, inner_options=each.options
        )
        for name, each in INNERS.items()
        if name != "AdamW"
    }
    return {
        BASELINE: LoRA("LoRA", 1.0, rank, alpha=alpha, lora_bias=bias),
        "chain": chain,
        "chain-decay": decaying,
        "chain-aligned": replace(decaying, label=f"{decaying.label}, aligned", reset=GradientAligned()),
        "chain-orthogonal": replace(decaying, label=f"{decaying.label}, orthogonal", reset=Orthogonal()),
        **inner,
        "lora+": LoRAPlus("LoRA+", 1.0, rank, alpha=alpha, lora_bias=bias),
        "lora-fa": LoRAFA("LoRA-FA", 1.0, rank, alpha=alpha),
        "rslora": RsLoRA("rsLoRA", 1.0, rank, alpha=alpha, lora_bias=bias),
        "dora": DoRA("DoRA", 1.0, rank, alpha=alpha),
        "pissa": PiSSA("PiSSA", 1.0, rank, alpha=alpha),
        "prefix": PrefixTuning("prefix tuning", 10.0),
        "bottleneck": BottleneckAdapters("bottleneck adapters", 1.0, rank, behind=SUBLAYERS),
        "galore": GaLore("GaLore", FULL, rank),
        "badam": BAdam("BAdam", FULL),
        "full": FullFineTuning("full fine-tuning", FULL),
    }


def chains(options: ProtocolOptions, lengths: tuple[int, ...]) -> dict[str, Method]:
    """LoRA and chains of several lengths, under one schedule over the run.

    Args:
        options: ranks and warm-up.
        lengths: links of each chain; 1 is LoRA and is there already.

    Returns:
        The methods by their names.
    """
    longer = {f"chain-of-{links}": _chain(options, links) for links in lengths if links > 1}
    return {BASELINE: contenders(options)[BASELINE], **longer}


def step_downs(options: ProtocolOptions, ranks: tuple[int, ...], knot: int) -> dict[str, Method]:
    """LoRA, and chains of two links whose second one may be narrower.

    Args:
        options: the first link's rank.
        ranks: of the second link.
        knot: the step after which it begins.

    Returns:
        The methods by their names.
    """
    first, chain = options.rank, replace(_chain(options, 2), knots=At([knot]))
    made = {
        f"rank-{first}-to-{rank}": replace(chain, label=f"chain, rank {first} to {rank}", rank=StepDown([first, rank]))
        for rank in ranks
    }
    return {BASELINE: contenders(options)[BASELINE], **made}


def chosen(methods: Mapping[str, Method], names: tuple[str, ...], option: str) -> dict[str, Method]:
    """The methods that were asked for, LoRA before them: all others are compared with it.

    Args:
        methods: that there are.
        names: that were typed.
        option: by which.

    Returns:
        The methods, in the order typed.

    Raises:
        UsageError: there is no method of that name.
    """
    unknown = [name for name in names if name not in methods]
    if unknown or not names:
        raise UsageError(f"{option} {' '.join(unknown)}: choose from {', '.join(methods)}.")
    return {name: methods[name] for name in dict.fromkeys((BASELINE, *names))}


def _chain(options: ProtocolOptions, links: int) -> ChainOfLoRA:
    return ChainOfLoRA(
        f"chain of {links}", 1.0, options.rank, Evenly(links) if links > 1 else Never(), Flat(options.link_warmup),
        alpha=options.alpha, lora_bias=options.lora_bias,
    )  # fmt: skip
