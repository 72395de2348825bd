"""The report on gaps: how they move while a chain trains, how far intervals can be trusted, and what theorems would say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from experiments.guarantees import Run, estimated_beta, is_chain
from experiments.pages.gap_figure import CAPTION, figure
from experiments.pages.gap_findings import findings as findings
from experiments.records import RunFolder
from experiments.report import Page, Table, describe


def build(folder: RunFolder) -> str:
    """Publishes the page from the folder's records.

    Args:
        folder: where the study wrote them.

    Returns:
        The page.
    """
    runs, scouted = folder.rows("runs.jsonl"), folder.read_json("scout.json")
    beta = estimated_beta(scouted["curvatures"], runs)
    page = Page(
        "Does the gap fall while a chain trains?",
        "A tiny Llama under Algorithm 1, which users run, and under Algorithm 2, which the theorems are about, measured at "
        "every knot. Every sentence of the findings is derived from the runs.",
    )
    for title, sentences in findings(runs, scouted).items():
        page.heading(title)
        page.findings(sentences)
    for number, run in enumerate(runs, 1):
        page.heading(run["label"])
        page.paragraph(introduction(run))
        page.figure(f"run-{number}", figure(run, beta), CAPTION)
        for table in tables(run):
            page.table(table)
    page.heading("How to read this")
    for paragraph in explanations(folder.read_json("config.json")):
        page.paragraph(paragraph)
    page.heading("Repeat it")
    page.code("python -m experiments gap-tracking")
    return page.publish(folder, describe(folder.read_json("environment.json")))


def introduction(run: Run) -> str:
    """How a run was made."""
    ball = f"SupportBall(radius={run['radius']:.4g}, rank={run['rank']})"
    if is_chain(run):
        return (
            f"merge=Add(): a link is added as it was trained. The gap is that of {ball} at each of {run['sites']} layers; all "
            "iterates of this run lie inside."
        )
    return (
        f"merge=FrankWolfe({ball}, {run['knots'][0]['eta']:.4g}): a link tells a direction, at each of {run['sites']} layers."
    )


def tables(run: Run) -> list[Table]:
    """A run's knots.

    Args:
        run: its record.

    Returns:
        What was measured, and what the total update and the curvature were.
    """
    measured, update = [], []
    for number, knot in enumerate(run["knots"], 1):
        known = knot["truth"]["total"]
        measured.append([
            f"{number} at {knot['step']}",
            *(f"{knot[name]:.4f}" for name in ("before", "after")),
            *(_cell(knot, "gap", ".3g"), f"{known['gap']:.3g}", _cell(knot, "eps", ".3g")),
            *(_cell(knot, "alignment", ".2f"), f"{known['alignment']:.3f}"),
        ])
        update.append([
            f"{number} at {knot['step']}",
            f"{knot['gap']['total']['gradient_norm'][1]:.3f}",
            "-" if knot["eta"] is None else f"{knot['eta']:.4g}",
            f"{knot['largest_norm']:.3g}",
            *(f"{knot[kind]['mean']:.1f} / {knot[kind]['watched']:.1f}" for kind in ("stable_rank", "effective_rank")),
            f"{knot['curvature']:.1f}",
            f"{knot['bend']:.4f}",
        ])
    return [
        Table(
            ["knot", "L before", "L after", "gap [95%]", "dense", "eps of the link [95%]", "alignment [95%]", "dense"],
            measured,
        ),
        Table(
            ["knot", "|G|_F before the link", "eta", f"largest norm of a layer's update (radius {run['radius']:.3g})",
             "stable rank, mean / watched", "effective rank, mean / watched", "largest eigenvalue before the link",
             "curvature of the step"],
            update,
        ),
    ]  # fmt: skip


def explanations(config: Mapping[str, Any]) -> list[str]:
    """What the words mean and how the numbers were made.

    Args:
        config: of the study.

    Returns:
        Paragraphs.
    """
    return [
        f"The loss L of this page is the mean over {config['windows']} windows of held-out source, which no step trains on. At "
        "every knot optimizer.measure_at_knots reads gap, norms, shortfall and alignment, of the weights that the link began "
        f"from, off {config['batches']} minibatches of 16 such windows, drawn afresh, through low-rank products only. The "
        "model is so tiny that the gradient of L can also be had in full. What is called dense is computed from that, with "
        "singular value decompositions; the runs know nothing of it.",
        "A gap's point is the gap of the vertex that half of the batches found, measured by the other half. No vertex has a "
        "larger one than the best, so that noise in the first half lowers the point. The upper end holds for every gradient "
        "and lies high for most. An alignment's point is a quotient by the same norm, and errs the other way. Each interval "
        "is a 95% one by itself.",
        "The alignment of a link is -<G, sBA>/(|sBA| |G|*), G at the weights where the link began. A link is trained for many "
        "steps on a gradient that moves, by AdamW, through factors that start from a draw: that it ends far from the best "
        "vertex of the first gradient is to be expected. The theorems do not take that for granted; the shortfall eps is what "
        "they charge for it.",
        "All gaps are those of one set. Its norm is the one whose ball has links of this rank for vertices, its radius the "
        "largest such norm that a layer's total update had at a knot of a run of Algorithm 1 without measurements. Algorithm 2 "
        "ran with two step sizes: the mean norm of that run's links over the radius, so that a knot moves each layer as far "
        "as Algorithm 1 does on average; and the step of Theorem C, from the beta that was estimated where that run began and "
        "ended, with the first training loss for M.",
        "beta must bound how L curves everywhere in the set, and nobody has certified one for a language model. It is "
        "estimated by the Hessian's largest eigenvalue over the adapted weights, by Lanczos' iteration on "
        f"{config['curved']} of the windows at every knot: a lower bound for these windows and these places. What is drawn "
        "with it is labelled an estimate. Were it exceeded, the estimate would be too low; no theorem would be refuted. The "
        "band around a theorem's line is what the intervals of the shortfall make of it. The curvature of a step D is "
        "2 (L(W + D) - L(W) - <G, D>)/|D|².",
        f"One run each, with seed {config['seed']}: differences between runs come without an interval. The first link, and "
        "what was measured at its knot, is the same in all of them. Stable and effective rank are those of the total update, "
        "their mean over the layers and that of model.layers.1.mlp.down_proj, the watched one.",
    ]


def _cell(knot: Mapping[str, Any], name: str, form: str) -> str:
    measured = knot["gap"]["total"][name]
    if measured is None:
        return "-"
    lower, point, upper = (format(number, form) for number in measured)
    return f"{point} [{lower}, {upper}]"
