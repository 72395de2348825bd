"""Figures from records; nothing here trains."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter
from PIL import Image

from experiments.statistics import interval

COLOURS = ("#2f5d8a", "#c8553d", "#4c956c", "#e0a030", "#7a5195", "#6b7280", "#00838f", "#9a6b4b")
# Figures are drawn without pyplot: no global state, no display, and nothing to close.
mpl.rcParams.update({
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e8eb",
    "axes.axisbelow": True,
    "axes.edgecolor": "#9aa1a9",
    "axes.titlesize": 10.5,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
})


def loss_curves(
    curves: Mapping[str, Sequence[Sequence[float]]], knots: Mapping[str, Sequence[int]], *, ylabel: str, title: str = "",
    below: bool = False,
) -> bytes:  # fmt: skip
    """Training losses against the step, one line a method, with its knots as vertical lines and dots.

    Args:
        curves: for each method, one sequence of losses a seed.
        knots: for each method, the steps after which knots were tied.
        ylabel: the losses' name.
        title: above the axes.
        below: the legend stands below the axes, where many curves leave it no room inside.

    Returns:
        A PNG.
    """
    figure, axes = canvas(7.2, 4.2 if below else 3.6)
    means = {label: _smooth(np.mean(np.asarray(runs, dtype=float), axis=0)) for label, runs in curves.items()}
    for colour, (label, mean) in zip(COLOURS, means.items(), strict=False):
        axes.plot(np.arange(1, len(mean) + 1), mean, color=colour, label=label, linewidth=1.6)
        for number, step in enumerate(knots.get(label, ())):
            axes.axvline(step, color=colour, linewidth=0.8, linestyle=":", alpha=0.8)
            axes.plot(
                step, mean[step - 1], "o", color=colour, markersize=5, markeredgecolor="white",
                label=f"{label}: knots" if number == 0 else None,
            )  # fmt: skip
    lowest, highest = min(mean.min() for mean in means.values()), max(mean.max() for mean in means.values())
    if lowest > 0 and highest > 5 * lowest:
        logarithmic(axes)
    axes.set(xlabel="optimizer step", ylabel=ylabel, title=title)
    axes.legend(**{"loc": "upper center", "bbox_to_anchor": (0.5, -0.16), "ncols": 3} if below else {})
    return png(figure)


def value_intervals(values: Mapping[str, Sequence[float]], *, xlabel: str, reference: str, title: str = "") -> bytes:
    """Each seed's value as a dot, each method's mean with its 95% interval.

    Args:
        values: for each method, one value a seed.
        xlabel: the values' name.
        reference: the method whose mean is drawn as a line.
        title: above the axes.

    Returns:
        A PNG.
    """
    figure, axes = canvas(7.2, 0.42 * len(values) + 1.1)
    axes.axvline(interval(values[reference]).mean, color="#9aa1a9", linewidth=1, linestyle="--")
    for row, (label, seeds) in enumerate(values.items()):
        colour = "#6b7280" if label == reference else COLOURS[0]
        mean = interval(seeds)
        # A fixed pattern keeps equal dots apart without making the figure depend on a draw.
        offsets = 0.12 * (np.arange(len(seeds)) % 3 - 1)
        axes.plot(seeds, row + 0.05 + offsets, "o", color=colour, alpha=0.35, markersize=4, markeredgewidth=0)
        axes.errorbar(
            mean.mean, row, xerr=[[mean.mean - mean.low], [mean.high - mean.mean]] if len(seeds) > 1 else None,
            fmt="D", color=colour, markersize=5.5, capsize=3.5, linewidth=1.8,
        )  # fmt: skip
    axes.set_yticks(range(len(values)), list(values))
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.set(xlabel=xlabel, title=title)
    return png(figure)


def bars(values: Mapping[str, Mapping[str, Sequence[float]]], *, ylabel: str, title: str = "") -> bytes:
    """Each method's mean on each task as a bar with its 95% interval, tasks side by side.

    Args:
        values: for each task and method, one value a seed.
        ylabel: the values' name.
        title: above the axes.

    Returns:
        A PNG.
    """
    methods = list(dict.fromkeys(method for task in values.values() for method in task))
    figure, axes = canvas(max(7.2, 0.16 * len(values) * len(methods) + 2), 3.8)
    width = 0.8 / len(methods)
    colours = COLOURS if len(methods) <= len(COLOURS) else [mpl.colormaps["tab20"](place % 20) for place in range(len(methods))]
    for place, (method, colour) in enumerate(zip(methods, colours, strict=False)):
        there = [(column, interval(task[method])) for column, task in enumerate(values.values()) if method in task]
        columns = [column + (place - (len(methods) - 1) / 2) * width for column, _ in there]
        axes.bar(columns, [mean.mean for _, mean in there], width * 0.92, color=colour, label=method)
        # A single seed has no interval.
        ranged = [(column, mean) for column, (_, mean) in zip(columns, there, strict=True) if mean.low == mean.low]
        axes.errorbar(
            [column for column, _ in ranged], [mean.mean for _, mean in ranged],
            yerr=[mean.mean - mean.low for _, mean in ranged], fmt="none", ecolor="#1d2430", elinewidth=1, capsize=2.5,
        )  # fmt: skip
    axes.set_xticks(range(len(values)), list(values))
    axes.grid(axis="x", visible=False)
    # With two seeds a Student interval is wider than any scale.
    highest = max(interval(seeds).mean for task in values.values() for seeds in task.values())
    axes.set(ylabel=ylabel, title=title, ylim=(0, min(axes.get_ylim()[1], 1.5 * highest)))
    axes.legend(ncols=4, loc="upper center", bbox_to_anchor=(0.5, -0.08))
    return png(figure)


def spectra(spectrum: Mapping[str, Sequence[Sequence[float]]], *, shown: int, title: str = "") -> bytes:
    """Singular values of the total update, averaged over seeds.

    Args:
        spectrum: for each method, one list of singular values a seed.
        shown: how many to draw.
        title: above the axes.

    Returns:
        A PNG.
    """
    figure, axes = canvas(7.2, 3.4)
    for colour, (label, seeds) in zip(COLOURS, spectrum.items(), strict=False):
        mean = np.mean(np.asarray(seeds, dtype=float), axis=0)[:shown]
        # Below rounding there is nothing to see: the update's rank ends where its curve does.
        mean = mean[mean > 1e-6 * mean[0]]
        axes.plot(np.arange(1, len(mean) + 1), mean, "o-", color=colour, label=label, markersize=4.5, linewidth=1.4)
    logarithmic(axes)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel="index", ylabel="singular value", title=title)
    axes.legend()
    return png(figure)


def data_uri(image: bytes) -> str:
    """The image as text that a page can hold."""
    return "data:image/png;base64," + base64.b64encode(image).decode("ascii")


def canvas(width: float, height: float) -> tuple[Figure, Axes]:
    """An empty figure with one pair of axes, in inches."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.add_subplot()


def png(figure: Figure) -> bytes:
    """The figure as a file, in a palette: line drawings have few colours, and a committed figure should be small."""
    drawn, small = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png", dpi=150)
    Image.open(drawn).convert("RGB").quantize(64, dither=Image.Dither.NONE).save(small, format="png", optimize=True)
    return small.getvalue()


def logarithmic(axes: Axes) -> None:
    """A logarithmic axis with numbers that are read at a glance."""
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _smooth(values: np.ndarray, share: float = 0.02) -> np.ndarray:
    """A centred running mean over about `share` of the curve; the window shrinks at the ends, so no value is invented."""
    half = max(0, int(len(values) * share / 2))
    sums = np.concatenate([[0.0], np.cumsum(values)])
    index = np.arange(len(values))
    low, high = np.maximum(index - half, 0), np.minimum(index + half + 1, len(values))
    return (sums[high] - sums[low]) / (high - low)
