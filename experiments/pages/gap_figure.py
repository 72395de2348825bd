"""The figure of a tracked run: its loss, its gap, and what a theorem would guarantee."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments import plots
from experiments.guarantees import Run, is_chain, steepest_bend, yardsticks
from experiments.plots import COLOURS

CAPTION = (
    "Top: training loss, and L on the held-out windows between the links. Middle: the gap with its 95% interval, where the "
    "weights were that it is of; crosses are computed from the dense gradient. Bottom: the mean over the links so far, and the "
    "theorem's right-hand side with the loss that these links gained. Its beta is an estimate, no certificate."
)


def figure(run: Run, beta: float) -> bytes:
    """Draws a run.

    Args:
        run: its record.
        beta: an estimate.

    Returns:
        A PNG.
    """
    drawing = Figure(figsize=(7.2, 8.8), layout="constrained")
    loss, gap, mean = drawing.subplots(3, 1, sharex=True, height_ratios=(1.15, 1, 1.15))
    _loss(loss, run)
    _gap(gap, run)
    _theorems(mean, run, beta)
    for axes in (loss, gap, mean):
        axes.grid(axis="x", visible=False)
        for number, knot in enumerate(run["knots"]):
            label = "knots" if axes is loss and number == 0 else None
            axes.axvline(knot["step"], color="#6b7280", linewidth=0.9, linestyle=":", zorder=0, label=label)
        # Above the panel: whatever the numbers are, nothing is hidden.
        axes.legend(loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=1 if axes is mean else 2, borderaxespad=0.2)
    drawing.suptitle(run["label"], fontsize=11)
    mean.set_xlabel("optimizer step")
    return plots.png(drawing)


def _loss(axes: Axes, run: Run) -> None:
    ends, width = _ends(run), max(1, len(run["losses"]) // 40)
    means = np.convolve(run["losses"], np.full(width, 1 / width), mode="valid")
    middles = np.arange(len(means)) + (width + 1) / 2
    axes.plot(middles, means, color=COLOURS[0], alpha=0.45, linewidth=1.2, label=f"training loss, mean of {width} steps")
    between = [*(knot["loss"] for knot in run["knots"]), run["last_loss"]]
    axes.plot([0, *ends], between, "o-", color=COLOURS[0], markersize=5, markeredgecolor="white", label="held-out loss L")
    if not is_chain(run):
        trained = [knot["before"] for knot in run["knots"]]
        axes.plot(ends, trained, "v", color=COLOURS[3], markersize=5.5, label="L with the link as it was trained")
    axes.set_ylabel("nats per character")


def _gap(axes: Axes, run: Run) -> None:
    starts = [0, *_ends(run)[:-1]]
    measured = np.array([knot["gap"]["total"]["gap"] for knot in run["knots"]])
    dense = [knot["truth"]["total"]["gap"] for knot in run["knots"]]
    _intervals(axes, starts, measured, COLOURS[1], "gap, 95% interval")
    axes.plot(starts, dense, "x", color="black", markersize=6, label="gap by the dense gradient")
    axes.set_ylim(bottom=min(0.0, 1.1 * float(measured.min())))
    axes.set_ylabel("Frank-Wolfe gap")


def _theorems(axes: Axes, run: Run, beta: float) -> None:
    ends, what = _ends(run), r"mean $|G|^2_{F,r}$" if is_chain(run) else "mean gap"
    nearest = yardsticks(run, beta)[-1]
    _intervals(axes, ends, nearest.measured, COLOURS[2], f"{what}, from the 95% intervals")
    lines = [(nearest, COLOURS[4], "--", "estimated beta, no certificate")]
    if not is_chain(run):
        lines.append((yardsticks(run, steepest_bend(run))[0], COLOURS[3], "-.", "curvature of the run's own steps"))
    for stick, colour, style, note in lines:
        axes.plot(ends, stick.guaranteed, style, color=colour, linewidth=1.6, label=f"{stick.theorem}: {note}")
        axes.fill_between(ends, *stick.spread.T, color=colour, alpha=0.15, linewidth=0)
    plots.logarithmic(axes)
    axes.set_ylabel(what)


def _ends(run: Run) -> list[int]:
    return [knot["step"] for knot in run["knots"]]


def _intervals(axes: Axes, x: Sequence[float], values: np.ndarray, colour: str, label: str) -> None:
    lower, point, upper = values.T
    axes.errorbar(
        x, point, yerr=[point - lower, upper - point], fmt="o-", color=colour, markersize=5, capsize=3.5, linewidth=1.2,
        elinewidth=1.4, markeredgecolor="white", label=label,
    )  # fmt: skip
