"""The report of the convergence study: does every theorem hold, and what does it give away?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from experiments import plots
from experiments.records import RunFolder
from experiments.report import Page, Table, describe

Rows = Sequence[Mapping[str, Any]]

# The columns of the table: a rule, and the theorem that is about it.
COLUMNS = {
    "A fixed": ("Fixed", "Theorem A (fixed step)"),
    "C centred": ("Centred", "Theorem C (circumradius)"),
    "B anytime": ("Anytime", "Theorem B (anytime)"),
    "D short": ("ShortStep", "Theorem D (short step)"),
    "D line search": ("LineSearch", "Theorem D (short step)"),
    "E fixed": ("Fixed", "Theorem E (drift)"),
    "E short": ("ShortStep", "Theorem E (drift)"),
    "convex, primal": ("OpenLoop", "Convex rate (primal)"),
    "convex, gap": ("OpenLoop", "Convex rate (least gap)"),
}
DRIFT = "Theorem E (drift)"
STILL = {"Theorem A (fixed step)", "Theorem D (short step)"}
PRINTED = "Theorem 4.1 (as printed)"
CHAIN = "Theorem F (chain)"
TITLES = {
    "Fixed": "fixed step", "Centred": "centred fixed step", "Anytime": "anytime", "ShortStep": "short step",
    "LineSearch": "line search", "OpenLoop": "open loop 2/(t + 1)",
}  # fmt: skip


def build(folder: RunFolder) -> str:
    """Publishes the page from the folder's records.

    Args:
        folder: where the study wrote them.

    Returns:
        The page.
    """
    rows = folder.rows("runs.jsonl")
    page = Page(
        "Do the theorems hold, and what do they give away?",
        "Frank-Wolfe on every testbed with every step size, and the chain; each run held against all theorems about it.",
    )
    page.findings(findings(rows))
    for title, table in tables(rows):
        page.heading(title)
        page.table(table)
    page.paragraph(
        "Cells are measured/guaranteed at the horizons of the heading: 1 is a theorem that gives nothing away, above 1 a "
        "violation. The left-hand sides are the mean gap (A to E), the mean of |G|²_{F,r} (F), the primal error and the least "
        "gap (convex). Theorem F counts the measured shortfall of trained links on its right-hand side, where it is close to 1 "
        "by definition when that shortfall dominates; links by truncated steps have none."
    )
    for testbed in names(rows):
        mine = [row for row in rows if row["testbed"] == testbed and not row["chain"]]
        page.heading(testbed)
        page.paragraph(mine[0]["about"].replace("`", ""))
        page.paragraph(audit_sentence(mine[0]["audit"]))
        page.figure(
            testbed, figure(mine), f"{testbed}: the gap (pale), its running mean (solid) and the theorems' guarantees (dashed)."
        )
    page.heading("Repeat it")
    page.code("python -m experiments convergence")
    return page.publish(folder, describe(folder.read_json("environment.json")))


def findings(rows: Rows) -> list[str]:
    """What the runs say, in sentences."""
    found = violations(rows)
    checks = sum(name != PRINTED for row in rows for name in row["theorems"])
    theorems = {name for row in rows for name in row["theorems"]} - {PRINTED}
    where = f"in {checks} checks of {len(theorems)} theorems on {len(names(rows))} testbeds, at every t of every run"
    said = [f"Violations: {'; '.join(found)}." if found else f"Violations: none, {where}."]
    for title, (rule, theorem) in COLUMNS.items():
        ratios = [value for row in rows if row["rule"] == rule for value in _ratios(row, theorem).values() if value is not None]
        if ratios:
            said.append(
                f"{title}: measured/guaranteed from {min(ratios):.3f} to {max(ratios):.3f}, median {np.median(ratios):.3f}."
            )
    broken = sorted({row["testbed"] for row in rows if PRINTED in row["theorems"] and row["theorems"][PRINTED]["violations"]})
    if broken:
        said.append(f"{PRINTED}: violated on {', '.join(broken)}. It is listed for comparison and counted nowhere else.")
    return said


def violations(rows: Rows) -> list[str]:
    """Everything that must not be: a theorem that holds violated, an invariant broken, a constant contradicted."""
    found = []
    for row in rows:
        where = f"{row['testbed']}, {row['rule']}"
        for name, theorem in row["theorems"].items():
            if theorem["verdict"] != "refuted":
                found += [f"{where}: {name} is violated at {place}" for place in theorem["violations"]]
        found += [f"{where}: {words}" for words in row["invariants"]]
        if not row["audit"]["holds"]:
            found.append(f"{row['testbed']}: its constants do not hold")
    return list(dict.fromkeys(found))


def tables(rows: Rows) -> list[tuple[str, Table]]:
    """The tables with their titles.

    Args:
        rows: the records.

    Returns:
        The ratios of Frank-Wolfe runs, those of chains, and the audit of the constants.
    """
    made = []
    plain, chained = [row for row in rows if not row["chain"]], [row for row in rows if row["chain"]]
    if plain:
        body = []
        for testbed in names(plain):
            by_rule = {row["rule"]: row for row in plain if row["testbed"] == testbed}
            # Without drift, Theorem E is Theorem A or D: no column says the same twice.
            still = any(STILL & set(row["theorems"]) for row in by_rule.values())
            body.append([
                testbed,
                *(
                    "" if still and theorem == DRIFT else _cell(by_rule.get(rule), theorem)
                    for rule, theorem in COLUMNS.values()
                ),
            ])
        made.append((f"Measured/guaranteed at T = {_horizons(plain)}", Table(["testbed", *COLUMNS], body)))
    if chained:
        rules = list(dict.fromkeys(row["rule"] for row in chained))
        body = []
        for testbed in names(chained):
            by_rule = {row["rule"]: row for row in chained if row["testbed"] == testbed}
            body.append([testbed, *(_cell(by_rule.get(rule), CHAIN) for rule in rules)])
        made.append((f"{CHAIN}, measured/guaranteed at T = {_horizons(chained)} links", Table(["testbed", *rules], body)))
    body = []
    for testbed in names(plain):
        audit = next(row["audit"] for row in plain if row["testbed"] == testbed)
        values = [f"{audit['curvature']:.4g} / {audit['beta']:.4g}", f"{audit['loss']:.4g} / {audit['lowest']:.4g}"]
        values += [f"{audit['distance']:.4g} / {audit['diameter']:.4g}", f"{audit['reach']:.4g} / {audit['radius']:.4g}"]
        body.append([testbed, *values])
    headings = ["testbed", "curvature / beta", "least loss / bound", "distance / D", "reach / R"]
    made.append((
        "The constants: what random points and the steepest directions showed, and what was certified",
        Table(headings, body),
    ))
    return made


def audit_sentence(audit: Mapping[str, Any]) -> str:
    """What was seen of a testbed's constants."""
    return (
        f"Steepest curvature found {audit['curvature']:.4g}, certified beta {audit['beta']:.4g}; D = {audit['diameter']:.4g}, "
        f"R = {audit['radius']:.4g}; largest relative error of a directional derivative {audit['gradient_error']:.0e}."
    )


def names(rows: Rows) -> list[str]:
    """The testbeds, in the order of the records."""
    return list(dict.fromkeys(row["testbed"] for row in rows))


def figure(rows: Rows) -> bytes:
    """A testbed's runs: one panel a rule, logarithmic in both directions.

    Args:
        rows: the testbed's Frank-Wolfe records.

    Returns:
        A PNG.
    """
    shown = [row for row in rows if row["rule"] in TITLES]
    drawing = Figure(figsize=(9.6, 5.6), layout="constrained")
    panels = drawing.subplots(2, 3, sharex=True, sharey=True)
    top = max(_peak(row["curves"]) for row in shown)
    for axes, row in zip(panels.flat, shown, strict=False):
        lines = dict(row["curves"])
        t = lines.pop("t")
        axes.loglog(t, _above(lines.pop("gap"), top), color=plots.COLOURS[0], alpha=0.35, linewidth=1)
        axes.loglog(t, _above(lines.pop("mean gap"), top), color=plots.COLOURS[0], linewidth=2)
        colours = iter(plots.COLOURS[1:])
        for name in [name for name in lines if not name.endswith(": measured")]:
            colour = next(colours)
            axes.loglog(t, _above(lines[name], top), "--", color=colour, linewidth=1.4, label=name)
            measured = lines.get(f"{name}: measured")
            if measured:
                axes.loglog(t, _above(measured, top), color=colour, linewidth=1.2)
        axes.set_title(TITLES[row["rule"]])
        if axes.get_legend_handles_labels()[1]:
            axes.legend(fontsize=7, loc="lower left")
    for axes in panels[-1]:
        axes.set_xlabel("iteration t")
    for axes in panels[:, 0]:
        axes.set_ylabel("gap")
    return plots.png(drawing)


def _above(values: Sequence[float], top: float) -> list[float]:
    """Values for a logarithmic axis: what lies eight decades below the top is rounding, and is not drawn."""
    return [value if value > 1e-8 * top else float("nan") for value in values]


def _peak(lines: Mapping[str, Sequence[float]]) -> float:
    return max(max(values) for name, values in lines.items() if name != "t")


def _ratios(row: Mapping[str, Any], theorem: str) -> Mapping[str, float | None]:
    return row["theorems"].get(theorem, {}).get("ratios", {})


def _cell(row: Mapping[str, Any] | None, theorem: str) -> str:
    values = [_ratios(row, theorem).get(str(T)) for T in row["horizons"]] if row else []
    return " / ".join("-" if value is None else f"{value:.3f}" for value in values) if any(values) else ""


def _horizons(rows: Rows) -> str:
    return " / ".join(map(str, rows[0]["horizons"]))
