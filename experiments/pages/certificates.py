"""The report of the certificates: every bound beside its exact worst case, and the verdicts of the exact proofs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import sqrt
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, NullLocator, StrMethodFormatter

from experiments import plots
from experiments.records import RunFolder
from experiments.report import Page, Table, describe
from theory.certificates import centred_average

Rows = Sequence[Mapping[str, Any]]

# The order of the report.
TITLES = {
    "A": "Theorem A, fixed step",
    "B": "Theorem B, anytime step",
    "C": "Theorem C, from the centre",
    "C anywhere": "Theorem C, from anywhere",
    "E": "Theorem E, drifting loss",
}
SHORT_STEP = "Theorem D, short step"
PRINTED = "printed"
LIMIT = (10, 100, 1_000, 10_000, 100_000, 1_000_000)
"""Horizons at which the example for Theorem C is evaluated; beyond any semidefinite program."""


def build(folder: RunFolder) -> str:
    """Publishes the page from the folder's records.

    Args:
        folder: where the study wrote them.

    Returns:
        The page.
    """
    rows, proofs, config = folder.rows("rows.jsonl"), folder.rows("exact.jsonl"), folder.read_json("config.json")
    M = shown(rows)
    page = Page(
        "How tight is each theorem?",
        "Each bound beside the worst case over all smooth losses, sets and starts, and each proof checked in exact arithmetic.",
    )
    page.findings(findings(rows, proofs))
    page.heading("Bound and worst case")
    page.paragraph(
        "Units in which beta = D = 1, and R = 1/2 where the set lies in a ball. The worst case of the step sizes that a "
        "theorem prescribes is the value of a semidefinite program: no loss, set or start that meets the assumptions does "
        "worse, and some come as close as one likes. The theorems assume smoothness from above only; the last two "
        "columns are for losses smooth from both sides. In Theorem E every iteration has its own loss, which moves by at most "
        f"{config['drift']:g} at the points of the run."
    )
    page.figure(
        "worst_cases",
        bounds_figure(rows, M),
        f"Gap after T iterations, M = {M:g}: what a theorem promises, and the most that it can come to.",
    )
    page.figure(
        "ratios", ratios_figure(rows),
        "How much of each bound is attained: worst average gap over bound. At 1 a theorem gives nothing away. "
        "Last panel: what the explicit loss below attains of Theorem C from the centre.",
    )  # fmt: skip
    for title, table in tables(folder):
        page.heading(title)
        page.table(table)
        if title.startswith(SHORT_STEP):
            page.paragraph(
                "The short step divides by what the run shows, which no semidefinite program over losses and inner products "
                "can say. Its bound is Theorem A's number; the worst case beside that one is the fixed step's, not the short "
                "step's. At T = 1 a run of the short step on an interval (testbed i) attains the bound."
            )
    page.heading("Theorem C in the limit")
    example = ", ".join(f"{ratio:.4f} at T = {T:,}" for T, ratio in zip(LIMIT, limit_ratios(M), strict=True))
    page.paragraph(
        "One explicit loss, a convex quadratic on the l1 ball or, on diagonal matrices, on the nuclear ball, attains Theorem C "
        f"from the centre ever more closely: {example}. With that step no constant below sqrt 2 R is possible in front of "
        "sqrt(M beta)/sqrt T."
    )
    page.heading("Repeat it")
    page.code("python -m experiments certificates")
    return page.publish(folder, describe(folder.read_json("environment.json")))


def shown(rows: Rows) -> float:
    """The M of the tables: the one in the middle."""
    values = sorted({row["M"] for row in rows})
    return values[len(values) // 2]


def select(rows: Rows, theorem: str, M: float) -> Rows:
    """One theorem's rows for one M, by T."""
    return sorted((row for row in rows if row["theorem"] == theorem and row["M"] == M), key=lambda row: row["T"])


def limit_ratios(M: float) -> list[float]:
    """What Theorem C's example attains of the bound at the horizons of `LIMIT`, with ``R = 1/2`` and ``beta = 1``."""
    return [centred_average(T, M, 1.0, 0.5) / (0.5 * sqrt(2 * M / T) + M / T) for T in LIMIT]


def findings(rows: Rows, proofs: Rows) -> list[str]:
    """What the numbers say, in sentences."""
    refused = [f"{row['theorem']} at T = {row['T']}" for row in proofs if not row["holds"]]
    largest, slowest = max(row["T"] for row in proofs), max(row["seconds"] for row in proofs)
    verdict = f"refused: {', '.join(refused)}" if refused else "verified, each identity with a residual of exactly zero"
    said = [f"Proofs of A, B, C and E up to T = {largest}: {verdict}; in fractions, without a solver, {slowest:.1f} s at most."]
    for theorem, title in TITLES.items():
        ratios = [(row["ratio"], row["T"], row["M"]) for row in rows if row["theorem"] == theorem]
        (low, T, M), (high, at, of) = min(ratios), max(ratios)
        said.append(
            f"{title}: the worst case is {low:.3f} (T = {T}, M = {M:g}) to {high:.3f} (T = {at}, M = {of:g}) of the bound."
        )
    return said


def tables(folder: RunFolder) -> list[tuple[str, Table]]:
    """Titles and tables: one for each theorem at the M shown, and the exact proofs."""
    rows, proofs = folder.rows("rows.jsonl"), folder.rows("exact.jsonl")
    M = shown(rows)
    printed = {row["T"]: row["bound"] for row in select(rows, PRINTED, M)}
    made = []
    for theorem, title in [*TITLES.items(), ("D", SHORT_STEP)]:
        headings = ["T", "printed", "bound", "worst average", "attained", "worst least gap"]
        headings += ["both sides: average", "both sides: least gap"]
        body = [
            [str(row["T"]), f"{printed[row['T']]:.5f}", f"{row['bound']:.5f}", _number(row["average"], 5),
             _number(row["ratio"], 3), *(_number(row[name], 5) for name in ("minimum", "smooth_average", "smooth_minimum"))]
            for row in select(rows, theorem, M)
        ]  # fmt: skip
        made.append((f"{title}, M = {M:g}", Table(headings, body)))
    horizons = sorted({row["T"] for row in proofs})
    verdicts = {(row["theorem"], row["T"]): row for row in proofs}
    body = [[str(T), *(_verdict(verdicts[theorem, T]) for theorem in TITLES)] for T in horizons]
    return [*made, ("Exact proofs", Table(["T", *TITLES], body))]


def bounds_figure(rows: Rows, M: float) -> bytes:
    """Printed bound, bound and worst cases against T, a panel for each theorem, all on the same axes.

    Args:
        rows: the records.
        M: the gap at the start.

    Returns:
        A PNG.
    """
    figure, panels = _panels()
    printed = select(rows, PRINTED, M)
    horizons = [row["T"] for row in printed]
    for colour, (theorem, title), axes in zip(plots.COLOURS, TITLES.items(), panels, strict=False):
        mine = select(rows, theorem, M)
        T, bound, average, least = ([row[name] for row in mine] for name in ("T", "bound", "average", "smooth_minimum"))
        axes.plot(T, bound, color=colour, linewidth=1.8)
        axes.plot(horizons, [row["bound"] for row in printed], "--", color="#6b7280", linewidth=1.2)
        axes.plot(T, least, "v", color=colour, markersize=4.5, markerfacecolor="white")
        axes.plot(T, average, "o", color=colour, markersize=4.5)
        plots.logarithmic(axes)
        _dress(axes, title, horizons)
    for axes in (panels[0], panels[3]):
        axes.set_ylabel("gap")
    _key(panels[5])
    return plots.png(figure)


def ratios_figure(rows: Rows) -> bytes:
    """Worst average gap over bound against T: a panel for each theorem with a line for each M, and Theorem C's example beyond.

    Args:
        rows: the records.

    Returns:
        A PNG.
    """
    figure, panels = _panels()
    gaps = sorted({row["M"] for row in rows}, reverse=True)
    lowest = min(row["ratio"] for row in rows if row["theorem"] in TITLES)
    horizons = sorted({row["T"] for row in rows})
    for (theorem, title), axes in zip(TITLES.items(), panels, strict=False):
        for colour, M in zip(plots.COLOURS, gaps, strict=False):
            mine = select(rows, theorem, M)
            axes.plot(
                [row["T"] for row in mine], [row["ratio"] for row in mine], "o-", color=colour, markersize=4, linewidth=1.4,
                label=f"M = {M:g}",
            )  # fmt: skip
        _dress(axes, title, horizons)
    for colour, M in zip(plots.COLOURS, gaps, strict=False):
        panels[5].plot(LIMIT, limit_ratios(M), "s-", color=colour, markersize=4, linewidth=1.4)
    panels[5].set(title="Theorem C, one loss for all T", xlabel="T", xscale="log")
    panels[5].xaxis.set_minor_locator(NullLocator())
    for axes in panels:
        axes.axhline(1, color="#9aa1a9", linewidth=1, zorder=1)
        axes.set_ylim(lowest - 0.03, 1.02)
    for axes in (panels[0], panels[3]):
        axes.set_ylabel("attained / bound")
    panels[0].legend(loc="lower left")
    return plots.png(figure)


def _panels() -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(9.6, 5.6), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, list(figure.subplots(2, 3, sharey=True).flat)


def _dress(axes: Axes, title: str, T: Sequence[int]) -> None:
    """What all panels over T share."""
    axes.set(title=title, xlabel="T", xscale="log", xlim=(min(T) * 0.9, max(T) * 1.12))
    axes.xaxis.set_major_locator(FixedLocator([t for t in (1, 2, 3, 4, 6, 8, 10, 15, 20) if t <= max(T)]))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.xaxis.set_minor_locator(NullLocator())


def _key(axes: Axes) -> None:
    """The legend of all panels, in a panel of its own."""
    axes.set_axis_off()
    ink = "#1d2430"
    handles = [
        Line2D([], [], color="#6b7280", linestyle="--", linewidth=1.2, label="as printed, for a loss that stays"),
        Line2D([], [], color=ink, linewidth=1.8, label="theorem's bound"),
        Line2D([], [], color=ink, linestyle="", marker="o", markersize=4.5, label="exact worst average"),
        Line2D(
            [],
            [],
            color=ink,
            linestyle="",
            marker="v",
            markersize=4.5,
            markerfacecolor="white",
            label="exact worst least gap of a loss\nsmooth from both sides",
        ),
    ]
    axes.legend(handles=handles, loc="center", fontsize=9.5, labelspacing=0.9)


def _verdict(row: Mapping[str, Any]) -> str:
    return f"{'holds' if row['holds'] else 'REFUSED'}, {row['seconds']:.3f} s"


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
