"""The report of the drift study: with which step size does a Frank-Wolfe method follow a target that moves?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import log
from typing import Any

from matplotlib.figure import Figure

from experiments import plots
from experiments.records import RunFolder
from experiments.report import Page, Table, describe

Rows = Sequence[Mapping[str, Any]]


def build(folder: RunFolder) -> str:
    """Publishes the page from the folder's records.

    Args:
        folder: where the study wrote them.

    Returns:
        The page.
    """
    rows = folder.rows("runs.jsonl")
    page = Page(
        "Does sublinear drift suffice?",
        "Completion of a matrix that turns by 0.5 T^-a radians at each of T iterations: its drift grows as T^(1 - a).",
    )
    page.findings(findings(rows))
    page.heading("The mean gap as T grows")
    page.table(table(rows))
    page.paragraph(
        "The exponent is that of T in the mean gap between the two longest horizons: below zero it vanishes. With eta tuned "
        "to M alone, eta ~ T^(-1/2), Theorem E guarantees a mean gap that vanishes only for a > 1/2; tuned to the drift, or "
        "with the short step, which knows neither M nor the drift, for every a > 0. The suprema over the set, which the "
        "guarantee before the run needs, are pessimistic; the drift where the run stood is what the trace shows."
    )
    page.figure(
        "drift", figure(rows), "Mean gap against the horizon (solid) and Theorem E before the run (dashed); one panel a speed."
    )
    page.heading("Repeat it")
    page.code("python -m experiments drift")
    return page.publish(folder, describe(folder.read_json("environment.json")))


def findings(rows: Rows) -> list[str]:
    """What the runs say of the printed remark, in sentences."""
    found = violations(rows)
    held = f"holds at every t of all {len(rows)} runs, from the suprema and from the trace"
    said = [f"Theorem E: {'; '.join(found) or held}."]
    for exponent in sorted({row["exponent"] for row in rows}, reverse=True):
        growth = "bounded" if exponent >= 1 else f"of order T^{1 - exponent:g}"
        powers = [f"T^{slope(rows, exponent, rule):+.2f} ({rule})" for rule in _rules(rows)]
        said.append(f"Drift {growth}: the mean gap goes as {', '.join(powers)}.")
    return said


def violations(rows: Rows) -> list[str]:
    """Everything that must not be."""
    return [
        f"a = {r['exponent']}, {r['rule']}, T = {r['T']}: {words}"
        for r in rows
        for words in (*r["violations"], *r["invariants"])
    ]


def table(rows: Rows) -> Table:
    """Mean gaps by speed and rule, with the exponent of T at the end."""
    horizons = sorted({row["T"] for row in rows})
    body = []
    for exponent in sorted({row["exponent"] for row in rows}, reverse=True):
        for rule in _rules(rows):
            mine = _runs(rows, exponent, rule)
            last = mine[horizons[-1]]
            ratios = [f"{last['mean gap'] / last[name]:.3f}" for name in ("a priori", "on trajectory")]
            gaps = [f"{mine[T]['mean gap']:.3f}" for T in horizons]
            body.append([f"a = {exponent:g}, {rule}", *gaps, f"{slope(rows, exponent, rule):+.2f}", *ratios])
    headings = ["speed T^-a, step size", *(f"T = {T}" for T in horizons), "exponent", "/ a priori", "/ on trajectory"]
    return Table(headings, body)


def slope(rows: Rows, exponent: float, rule: str) -> float:
    """The exponent of T in the mean gap, between the two longest horizons."""
    runs = _runs(rows, exponent, rule)
    before, after = sorted(runs)[-2:]
    return log(runs[after]["mean gap"] / runs[before]["mean gap"]) / log(after / before)


def figure(rows: Rows) -> bytes:
    """One panel a speed, logarithmic in both directions.

    Args:
        rows: the records.

    Returns:
        A PNG.
    """
    exponents = sorted({row["exponent"] for row in rows}, reverse=True)
    drawing = Figure(figsize=(3.0 * len(exponents) + 0.6, 3.6), layout="constrained")
    panels = drawing.subplots(1, len(exponents), sharex=True, sharey=True, squeeze=False)[0]
    for axes, exponent in zip(panels, exponents, strict=True):
        for colour, rule in zip(plots.COLOURS, _rules(rows), strict=False):
            runs = _runs(rows, exponent, rule)
            T = sorted(runs)
            axes.loglog(T, [runs[t]["mean gap"] for t in T], "o-", color=colour, linewidth=1.8, markersize=4, label=rule)
            axes.loglog(T, [runs[t]["a priori"] for t in T], "--", color=colour, linewidth=1.1)
        axes.set(title=f"drift ~ T^{1 - exponent:g}" if exponent < 1 else "bounded drift", xlabel="horizon T")
    panels[0].set_ylabel("mean gap")
    drawing.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(_rules(rows)))
    return plots.png(drawing)


def _rules(rows: Rows) -> list[str]:
    return list(dict.fromkeys(row["rule"] for row in rows))


def _runs(rows: Rows, exponent: float, rule: str) -> dict[int, Mapping[str, Any]]:
    return {row["T"]: row for row in rows if row["exponent"] == exponent and row["rule"] == rule}
