"""The page on memory: what each method holds beside LoRA, from records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from experiments.pages.speed import sizes
from experiments.plots import COLOURS, canvas, png
from experiments.records import RunFolder
from experiments.report import Page, Table, describe

Row = Mapping[str, Any]
MB = 1e6
# Measured kinds, by their headings.
KINDS = {
    "trained": "trained parameters",
    "gradients": "gradients",
    "optimizer": "optimizer",
    "saved": "saved for backward",
    "host": "on the host",
}
HEADINGS = ("method", *(f"{heading} [MB]" for heading in KINDS.values()), "estimate", "peak [MB]", "peak of LoRA's")


def table(rows: Sequence[Row]) -> Table:
    """All methods; one that could not run has its reason in a cell."""
    lora, cells = rows[0], []
    for row in rows:
        if row["reason"] is not None:
            cells.append([row["method"], row["reason"], *["-"] * (len(HEADINGS) - 2)])
            continue
        peak = row["peak"]
        cells.append([
            row["method"],
            *(f"{row[kind] / MB:,.2f}" for kind in KINDS),
            agreement(row),
            "-" if peak is None else f"{peak / MB:,.0f}",
            "-" if peak is None or not lora["peak"] else f"{peak / lora['peak']:.2f}",
        ])
    return Table(HEADINGS, cells)


def agreement(row: Row) -> str:
    """What was measured on the device over what the shapes said: gradients, optimizer and what is saved, together."""
    estimate = row["estimate"]
    expected = estimate["gradients"] + estimate["optimizer"] + estimate["activations"]
    return f"{(row['gradients'] + row['optimizer'] + row['saved']) / expected:.3f}"


def findings(rows: Sequence[Row]) -> list[str]:
    """What the numbers say of each method against LoRA."""
    lora, said = rows[0], []
    for row in rows[1:]:
        if row["reason"] is not None:
            said.append(f"{row['method']}: not measured; {row['reason']}.")
            continue
        state, saved = (_ratio(row, lora, kinds) for kinds in (("trained", "gradients", "optimizer"), ("saved",)))
        beside = f", and {row['host'] / MB:.2f} MB on the host" if row["host"] else ""
        said.append(
            f"{row['method']}: {state} of LoRA's trained parameters, gradients and optimizer, {saved} of what LoRA saves for "
            f"the backward pass{beside}."
        )
    return said


def build(folder: RunFolder) -> str:
    """Publishes the page from the folder's records.

    Args:
        folder: where the study wrote them.

    Returns:
        The page.
    """
    rows, config, machine = (
        folder.rows("weights.jsonl"), folder.read_json("config.json"), folder.read_json("machine.json")
    )  # fmt: skip
    lead = f"{sizes(config)}; {config['steps']} steps on {machine['name']}."
    page = Page("How much memory does a method hold?", lead)
    page.findings(findings(rows))
    page.table(table(rows))
    page.figure("memory", stacked(rows), "Weights and what is held beside them in a step, by kind; temporaries left out.")
    page.heading("How to read this")
    peak = (
        "what torch allocated on the device at most"
        if machine["device"].startswith("cuda")
        else "the most that a process of its own had resident above what it had before the model was made"
    )
    page.paragraph(
        "Weights and tokens are random. The optimizer's state and what is saved (logits and loss included, parameters not) are "
        "the most over the steps. On the host lie a chain's retired links and, for a half-precision base, the rounding errors "
        "of the merged weights, one byte each. The estimate's column is measured over estimated, from shapes, without the "
        "weights; BAdam's estimate is its costliest block's, which short runs of a deep model do not reach. "
        f"The peak is {peak}, temporaries included."
    )
    page.code("python -m experiments memory")
    return page.publish(folder, describe(folder.read_json("environment.json")))


def stacked(rows: Sequence[Row]) -> bytes:
    """A bar for each method, its parts one after the other.

    Args:
        rows: those that were measured are drawn.

    Returns:
        A PNG.
    """
    shown = [row for row in rows if row["reason"] is None]
    parts = {
        "weights": [row["estimate"]["weights"] for row in shown],
        **{KINDS[kind]: [row[kind] for row in shown] for kind in ("gradients", "optimizer", "saved")},
    }
    figure, axes = canvas(7.2, 0.32 * len(shown) + 1.3)
    left = [0.0] * len(shown)
    for colour, (name, values) in zip(COLOURS, parts.items(), strict=False):
        widths = [size / MB for size in values]
        axes.barh(range(len(shown)), widths, left=left, color=colour, label=name, height=0.7)
        left = [start + width for start, width in zip(left, widths, strict=True)]
    axes.set_yticks(range(len(shown)), [row["method"] for row in shown])
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.set(xlabel="MB")
    axes.legend()
    return png(figure)


def _ratio(row: Row, lora: Row, kinds: Sequence[str]) -> str:
    return f"{sum(row[kind] for kind in kinds) / sum(lora[kind] for kind in kinds):.2f}"
