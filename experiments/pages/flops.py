"""The page on what training costs: FLOPs and memory by method, from records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.records import RunFolder
from experiments.report import Page, Table, describe

PREFIXES = {0: "", 3: "k", 6: "M", 9: "G", 12: "T", 15: "P"}
Row = Mapping[str, Any]
HEADINGS = (
    "method", "trained parameters", "FLOPs of a step", "FLOPs of the run", "of LoRA's run", "beside the passes", "memory",
    "fits",
)  # fmt: skip


def table(rows: Sequence[Row], base: str) -> Table:
    """Every method on one base, beside LoRA."""
    found = {row["method"]: row for row in rows if row["base"] == base}
    lora = found["LoRA"]
    return Table(
        HEADINGS,
        [
            [
                name,
                f"{row['parameters']:,}",
                quantity(row["step"]),
                quantity(row["run"]),
                f"{row['run'] / lora['run']:.4f}",
                share(row["beside"], row["run"]),
                f"{quantity(sum(row['bytes'].values()), 3)}B",
                row["reason"] or "yes",
            ]
            for name, row in found.items()
        ],
    )  # fmt: skip


def check_table(rows: Sequence[Row]) -> Table:
    """Our count of one step of a small model, and torch's."""
    return Table(
        ["method", "counted from shapes", "torch's counter", "difference"],
        [[row["method"], f"{row['ours']:,}", f"{row['torch']:,}", f"{row['ours'] - row['torch']:,}"] for row in rows],
    )


def findings(folder: RunFolder) -> list[str]:
    """What the counts say of chains, base by base.

    Args:
        folder: where the study wrote them.

    Returns:
        The sentences.
    """
    rows, said = folder.rows("costs.jsonl"), []
    for base in dict.fromkeys(row["base"] for row in rows):
        found = {row["method"]: row for row in rows if row["base"] == base}
        lora = found["LoRA"]
        if (chain := found.get("chain")) is not None:
            more = chain["run"] - lora["run"]
            said.append(
                f"{base}: a chain's run costs LoRA's plus its {chain['knots']} knots, {quantity(more)}FLOP or "
                f"{share(more, lora['run'])} of the run; a knot costs {share(more / chain['knots'], lora['step'])} of one step."
            )
        if (full := found.get("full fine-tuning")) is not None:
            said.append(
                f"{base}: LoRA's run costs {lora['run'] / full['run']:.2f} of full fine-tuning's; what it saves are the "
                f"gradients of the frozen weights, not the passes through them."
            )
        if lora["narrow"] < lora["run"]:
            less = share(lora["run"] - lora["narrow"], lora["run"])
            said.append(
                f"{base}: at a quarter of the rank the whole run would cost {less} less, which is more than a step-down to it "
                f"saves: that computes with the active rows alone, but only after the knot that steps down."
            )
    return said


def build(folder: RunFolder) -> str:
    """Publishes the page from the folder's records.

    Args:
        folder: where the study wrote them.

    Returns:
        The page.
    """
    rows, config = folder.rows("costs.jsonl"), folder.read_json("config.json")
    tokens = f"{config['epochs']} epochs of {config['examples']:,} examples of {config['length']} tokens"
    page = Page(
        "What does training cost?", f"{tokens}, {config['batch_size']} a step, rank {config['rank']}; counted from shapes."
    )
    page.findings(findings(folder))
    for base in dict.fromkeys(row["base"] for row in rows):
        page.heading(base)
        page.table(table(rows, base))
    page.heading("Checked by torch")
    page.paragraph(
        "One step of a small Llama with eager attention, counted from its shapes and, while it was computed, by "
        "torch.utils.flop_counter."
    )
    page.table(check_table(folder.rows("check.jsonl")))
    page.heading("How to read this")
    page.paragraph(
        "A product of an m x k and a k x n matrix counts 2 m n k, and again as much backward for each operand that a gradient "
        "reaches. Beside the passes stand the knots (merging is 2 r in out a layer), GaLore's projections, and singular value "
        "decompositions (PiSSA's start, GaLore's new subspaces), which are estimated as 6 m n^2 + 20 n^3. Work entry by entry, "
        "Adam's included, is not counted. BAdam is the mean over its blocks. Attention counts every pair of tokens. "
        f"Memory is weights in {config['dtype']} (float32 where all of them are trained, unless the method says otherwise), "
        "gradients, optimizer, and what the forward pass saves, logits and loss included; temporaries, the allocator's "
        "gaps and CUDA's own context come on top."
    )
    page.code("python -m experiments flops")
    return page.publish(folder, describe(folder.read_json("environment.json")))


def quantity(value: float, digits: int = 4) -> str:
    """A number with a prefix of a thousand's power.

    Example:
        >>> quantity(5.4789e13), quantity(80e9, 3)
        ('54.79 T', '80.0 G')
    """
    power = next((power for power in (15, 12, 9, 6, 3) if abs(value) >= 10**power), 0)
    return f"{value / 10**power:#.{digits}g}".rstrip(".") + f" {PREFIXES[power]}"


def share(part: float, whole: float) -> str:
    """A percentage to two digits that count.

    Example:
        >>> share(6.4e9, 6.9e15)
        '0.000093 %'
    """
    return np.format_float_positional(100 * part / whole, precision=2, fractional=False, trim="-") + " %"
