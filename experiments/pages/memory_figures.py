"""The figures of the page on memory."""

from __future__ import annotations

from collections.abc import Sequence

from experiments.accounting.targets import MIB
from experiments.pages.weighings import B_ONLY, BY_BLOCK, CHAIN, FLOOR, LORA, STATE, Weighing
from experiments.plots import COLOURS, canvas, png


def stacked(case: Weighing) -> bytes:
    """A bar for each method, its parts one after the other.

    Args:
        case: those that were measured are drawn, but for compiled models, which have no such parts.

    Returns:
        A PNG.
    """
    shown = [row for row in case.rows.values() if row["reason"] is None and row["body_mean"] is not None]
    parts = {
        "weights": [row["estimate"]["weights"] for row in shown],
        **{STATE[kind]: [row[kind] for row in shown] for kind in ("gradients", "optimizer")},
        "saved before the logits": [row["body_mean"] for row in shown],
        "logits and loss": [row["mean"] - row["body_mean"] for row in shown],
    }
    figure, axes = canvas(7.2, 0.32 * len(shown) + 1.3)
    left = [0.0] * len(shown)
    for colour, (name, values) in zip(COLOURS, parts.items(), strict=False):
        widths = [size / MIB for size in values]
        axes.barh(range(len(shown)), widths, left=left, color=colour, label=name, height=0.7)
        left = [start + width for start, width in zip(left, widths, strict=True)]
    axes.set_yticks(range(len(shown)), [row["method"] for row in shown])
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.set(xlabel="MiB")
    axes.legend()
    return png(figure)


def dots(cases: Sequence[Weighing]) -> bytes:
    """A line for each case, a dot on it for each way.

    Args:
        cases: what was weighed.

    Returns:
        A PNG.
    """
    figure, axes = canvas(7.2, 0.4 * len(cases) + 1.5)
    axes.axvline(1.0, color="#9aa1a9", linewidth=1, linestyle="--")
    for colour, name in zip(COLOURS, (CHAIN, B_ONLY, BY_BLOCK, FLOOR), strict=False):
        found = [(case.ratio(name, LORA, "kept_mean"), place) for place, case in enumerate(cases)]
        axes.plot(*zip(*[(x, y) for x, y in found if x is not None], strict=True) or ([], []), "o", color=colour, label=name)
    axes.set_yticks(range(len(cases)), [case.label for case in cases])
    axes.invert_yaxis()
    axes.set(xlabel="kept by autograd / LoRA's", xlim=(0, None))
    figure.legend(loc="outside lower center", ncols=4)
    return png(figure)
