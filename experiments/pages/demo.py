"""The demo's report: where a chain wins against LoRA, where it does not, and whether its export can be trusted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from experiments import plots
from experiments.pages.wording import probability, signed, spread, versus
from experiments.records import RunFolder
from experiments.report import Page, Table, describe
from experiments.statistics import Comparison, compare, interval
from experiments.tasks.metric import Metric

LORA = "LoRA r=1"
WIDER = "LoRA r=5"
FULL = "full fine-tuning"
KEPT = "chain of 5, Adam state kept"
SHOWN = (LORA, "chain of 3", "chain of 5, Decay")
# The order of the report.
TITLES = {
    "digits": "Rotated digits",
    "regression-rank-16": "Regression, rank is missing",
    "regression-rank-2": "Regression, rank is enough",
    "source": "English to Python source",
}


@dataclass
class Results:
    """All runs of one problem, by method, each method's in the order of the seeds.

    Attributes:
        rows: for each method, the runs' records.
        reference: the method that the others are compared with: the first.
    """

    rows: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    @property
    def reference(self) -> str:
        """The method that the others are compared with: the first."""
        return next(iter(self.rows))

    @property
    def metric(self) -> Metric:
        """What was measured."""
        return Metric(**self.rows[self.reference][0]["metric"])

    def values(self, method: str) -> list[float]:
        """The metric on each seed."""
        return [row["value"] for row in self.rows[method]]

    def column(self, name: str, methods: Sequence[str]) -> dict[str, list[Any]]:
        """One recorded quantity of some methods, seed by seed."""
        return {method: [row[name] for row in self.rows[method]] for method in methods if method in self.rows}

    def knots(self, methods: Sequence[str]) -> dict[str, list[int]]:
        """The steps at which some methods tied their knots."""
        return {method: self.rows[method][0]["knots"] for method in methods if method in self.rows}

    def against(self, method: str, control: str | None = None) -> Comparison:
        """A method against another, the reference unless told otherwise."""
        better = self.metric.higher_is_better
        return compare(self.values(method), self.values(control or self.reference), higher_is_better=better)

    def table(self) -> Table:
        """All methods of the problem."""
        metric = self.metric
        headings = ["method", "trained", metric.name, f"against {self.reference} [95%]", "p", "wins"]
        rows = []
        for method in self.rows:
            row = [method, f"{self.rows[method][0]['trainable']:,}", spread(interval(self.values(method)), metric)]
            if method == self.reference:
                rows.append([*row, "", "", ""])
                continue
            against = self.against(method)
            wins = f"{against.wins} of {against.seeds}"
            rows.append([*row, signed(against.difference, metric), probability(against.p), wins])
        return Table(headings, rows)


def collect(rows: Sequence[Mapping[str, Any]]) -> dict[str, Results]:
    """Sorts records by problem, method and seed."""
    problems: dict[str, Results] = {}
    # Sorting is stable: within the first seed, methods keep the order in which they were asked for.
    for row in sorted(rows, key=lambda row: row["seed"]):
        problems.setdefault(row["problem"], Results()).rows.setdefault(row["method"], []).append(dict(row))
    order = list(TITLES)
    return dict(sorted(problems.items(), key=lambda item: order.index(item[0])))


def findings(problems: Mapping[str, Results]) -> tuple[list[str], list[str]]:
    """What the comparisons say, split by the measured verdicts.

    Args:
        problems: the results.

    Returns:
        Sentences on where chains win, and on where they do not.
    """
    wins, others = [], []
    for results in problems.values():
        chains = [method for method in results.rows if method.startswith("chain") and method != KEPT]
        place = f"{describe_problem(results)}: "
        for method in chains:
            comparison = results.against(method)
            sentence = place + versus(method, results.reference, comparison, results.metric)
            (wins if comparison.verdict == "better" else others).append(sentence)
        if KEPT in results.rows:
            sentence = place + versus(KEPT, results.reference, results.against(KEPT), results.metric)
            others.append(sentence + " The moments must be forgotten at a knot." if _control_loses(results) else sentence)
        # A chain costs the memory of one narrow adapter; these two may spend more, and bound what it can hope for.
        best = _best(results, chains)
        for roomier in (WIDER, FULL):
            if roomier in results.rows and best is not None:
                comparison = results.against(best, roomier)
                sentence = place + versus(f"{best} (the best chain here)", roomier, comparison, results.metric)
                (wins if comparison.verdict == "better" else others).append(sentence)
    return wins, others


def describe_problem(results: Results) -> str:
    """A problem's name for a sentence."""
    return TITLES[results.rows[results.reference][0]["problem"]]


def export_sentence(export: Mapping[str, Any]) -> str:
    """What the reload showed."""
    relative = export["largest_difference"] / export["largest_output"]
    return (
        f"Reload: the adapter of the chain's {export['knots'] + 1} links (rank {export['rank']} at {export['sites']} layers), "
        f"loaded by PeftModel.from_pretrained onto the untouched base, gives the trained model's logits. Largest difference: "
        f"{export['largest_difference']:.1e}, which is {relative:.1e} of the largest logit; training moved the logits by up to "
        f"{export['base_difference']:.1f}."
    )


def build(folder: RunFolder) -> str:
    """Publishes the page from the folder's records.

    Args:
        folder: where the study wrote them.

    Returns:
        The page.
    """
    problems = collect(folder.rows("runs.jsonl"))
    exports = [
        row["export"] for results in problems.values() for rows in results.rows.values() for row in rows if row["export"]
    ]
    page = Page(
        "When does a chain of LoRA pay?",
        "Equal steps, equal data, paired seeds; every sentence below is derived from the runs.",
    )
    wins, others = findings(problems)
    page.heading("Where the chain wins")
    page.findings(wins or ["Nowhere in these runs."])
    page.heading("Where it does not")
    page.findings(others or ["It won every comparison in these runs."])
    page.heading("Can the export be trusted?")
    page.findings([export_sentence(export) for export in exports] or ["No export was made."])
    for name, results in problems.items():
        page.heading(describe_problem(results))
        page.paragraph(INTRODUCTIONS.get(name, ""))
        page.table(results.table())
        for figure in figures(name, results):
            page.figure(*figure)
    page.heading("How to read this")
    page.paragraph(
        "Differences are paired over seeds with Student's 95% interval and two-sided t-test, not corrected for the number of "
        "comparisons. A win is a seed on which the method is strictly better than the reference. Knots are the steps at which "
        "the live link was merged into the weights and trained afresh. "
        "Learning rates were chosen beforehand with other seeds, for LoRA as for the chains. About ten ways to train the "
        "digits' base were tried on other seeds with the test images in view: the chains were ahead of LoRA of rank 1 with all "
        "of them, by a margin that depends on the base."
    )
    return page.publish(folder, describe(folder.read_json("environment.json")))


def figures(name: str, results: Results) -> list[tuple[str, bytes, str]]:
    """A problem's figures: name, image, caption."""
    methods = list(results.rows)
    shown = [method for method in SHOWN if method in results.rows] if name == "digits" else methods
    curves = plots.loss_curves(
        results.column("losses", shown), results.knots(shown), ylabel="training loss", title=describe_problem(results)
    )
    made = [(f"{name}-loss", curves, "Training loss, averaged over seeds and smoothed over 2% of the run; knots marked.")]
    values = plots.value_intervals(
        {method: results.values(method) for method in methods}, xlabel=results.metric.name, reference=results.reference
    )
    made.append((
        f"{name}-values",
        values,
        "Seeds as dots, means with 95% intervals as diamonds; dashed: the reference's mean.",
    ))
    update = [method for method in methods if method != FULL]
    layer = results.rows[results.reference][0]["watched"]
    spectrum = plots.spectra(results.column("spectrum", update), shown=24, title=f"total update of layer {layer}")
    made.append((
        f"{name}-spectrum",
        spectrum,
        "Singular values of the total update: LoRA's rank ends where its link does, a chain's adds up.",
    ))
    return made


def _best(results: Results, methods: Sequence[str]) -> str | None:
    sign = 1 if results.metric.higher_is_better else -1
    return max(methods, key=lambda method: sign * interval(results.values(method)).mean, default=None)


def _control_loses(results: Results) -> bool:
    forgetful = "chain of 5"
    return forgetful in results.rows and results.against(KEPT, forgetful).verdict == "worse"


INTRODUCTIONS = {
    "digits": (
        "A 64-128-128-10 network trained on upright digits is adapted to digits turned by 90 degrees, in several passes over "
        "500 images. One link of rank 1 is short of rank here. All chains have links of rank 1 and so train as many parameters "
        "as LoRA r=1."
    ),
    "regression-rank-16": (
        "A 64 x 64 matrix is to be moved by a matrix of rank 16. LoRA of rank 2 cannot go below the Eckart-Young error of "
        "rank 2; a chain of M links can go down to that of rank 2M."
    ),
    "regression-rank-2": (
        "The same with an update of rank 2, which LoRA of rank 2 can hold: rank is no bottleneck, so a knot can only cost the "
        "time it takes to grow a link again."
    ),
    "source": (
        "A tiny Llama (two layers, characters as tokens), trained on the English of Python's manual, is adapted to the "
        "standard library's source with fresh windows at every step: a short single-pass run; each link has little time."
    ),
}
