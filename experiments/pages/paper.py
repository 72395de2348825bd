"""The page of a study under the paper's protocol: every task, every method at the rate that validation chose."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from experiments import plots
from experiments.pages.paper_results import Results, budget, collect
from experiments.pages.standings import Standings, sentences, table, untestable
from experiments.records import RunFolder
from experiments.report import Page, describe

DRAWN = 5  # curves a figure: more of them hide each other


def build(folder: RunFolder, title: str, lead: str) -> Page:
    """Writes the report from a study's records.

    Args:
        folder: with `config.json`, `plan.json`, `runs.jsonl` and `environment.json`.
        title: the study's.
        lead: one sentence on it.

    Returns:
        The page.
    """
    results, options = collect(folder), folder.read_json("config.json")["protocol"]
    page = Page(title, lead)
    page.paragraph(setting(options, results))
    page.table(results.overview())
    page.heading("Where a chain helps, and where it does not")
    page.findings(findings(results))
    if results.tasks:
        page.figure(
            "values",
            plots.bars(
                {task: {method: at.values(method) for method in at.rows} for task, at in results.tasks.items()},
                ylabel=" / ".join(dict.fromkeys(at.metric.name for at in results.tasks.values())),
            ),
            "Test means with their 95% intervals over seeds; intervals of few seeds may leave the axes.",
        )  # fmt: skip
    page.paragraph(
        "A star marks a rate at the edge of those tried. The t-tests' p are corrected by Holm for all methods and tasks, "
        f"Wilcoxon's are not. Runs were made at revision {', '.join(results.revisions) or 'unknown'}."
    )
    for task, standings in results.tasks.items():
        page.heading(task)
        page.table(table(task, standings, results.tests))
        _figures(page, task, standings)
    page.heading("Budget")
    page.paragraph(
        "FLOPs are those of all steps' passes, of knots and projections; memory is what the largest step holds. "
        "Both are counted from the model's shapes."
        + (
            ""
            if all(cell["measured"] for cell in results.plan)
            else " Lengths of prompts were assumed where no data could be read."
        )
    )
    page.table(budget(results.plan))
    if results.left_out:
        page.heading("Not run")
        page.findings([f"{cell['method']} on {cell['task']}: {cell['reason']}." for cell in results.left_out])
    page.publish(folder, describe(folder.read_json("environment.json")))
    return page


def findings(results: Results) -> list[str]:
    """In words what the tests say of chains against LoRA; the measured verdicts decide."""
    chains = [method for method in results.methods if method.startswith("chain")]
    said: dict[str, list[str]] = {}
    for task, standings in results.tasks.items():
        for verdict, found in sentences(task, standings, results.tests, chains).items():
            said.setdefault(verdict, []).extend(found)
    total = sum(map(len, said.values()))
    if not total:
        return ["Chains against LoRA: there is no chain among the runs."]
    nothing = [
        f"{task}: no method is clearly above always giving the commonest answer; nothing can be concluded about methods there."
        for task in results.unlearned
    ]
    if untestable(results.tests):
        few = f"Chains against LoRA: too few seeds, or too equal ones, to test {total} comparisons; the means prove nothing."
        return [few, *nothing]
    counted = {verdict: len(found) for verdict, found in said.items()}
    summary = (
        f"Chains against LoRA: of {total} comparisons, chains are better in {counted['better']}, worse in {counted['worse']}, "
        f"and {counted['no clear difference']} show no clear difference, after Holm's correction over all methods and tasks."
    )
    return [summary, *nothing, *said["better"], *said["worse"], *said["no clear difference"]]


def setting(options: Mapping[str, Any], results: Results) -> str:
    """The protocol in a paragraph."""
    steps = sorted({cell["steps"] for cell in results.plan})
    train, dev, test = options["examples"]
    length = f"{steps[0]}" if len(steps) == 1 else f"{steps[0]} to {steps[-1]}"
    rates = ", ".join(f"{rate:g}" for rate in options["lrs"])
    model, layers = options["model"].rsplit("/", 1)[-1], ", ".join(options["target_modules"])
    small = "; CB and WSC have samples of their own" if {"CB", "WSC"} & set(options["tasks"]) else ""
    return (
        f"{model}, {options['dtype']}: {train} training, {dev} validation and {test} test examples, as far as a task has "
        f"them{small}; {length} steps of {options['batch_size']} examples; rank {options['rank']}, alpha {options['alpha']:g} "
        f"on {layers}; {options['seeds']} seeds, each with its own sample and order, the same for every method. Rates: {rates} "
        "(for full fine-tuning and some others a fixed multiple); the one with the best validation mean is taken, and the test "
        "reported at that rate. Where there is one rate there was no choice."
    )


def _figures(page: Page, task: str, standings: Standings) -> None:
    chains = [method for method in standings.rows if method.startswith("chain")]
    others = [method for method in standings.rows if method in {standings.reference, "full fine-tuning"}]
    shown = [method for method in standings.rows if method in {*others, *chains[: DRAWN - len(others)]}]
    key = task.lower().replace("-", "")
    page.figure(
        f"{key}-losses",
        plots.loss_curves(
            {method: [row["losses"] for row in standings.rows[method]] for method in shown},
            {method: standings.rows[method][0]["knots"] for method in shown}, ylabel="training loss", title=task, below=True,
        ),
        f"{task}: training loss, the mean over seeds; dotted lines are knots.",
    )  # fmt: skip
    spectrum = {method: [row["spectrum"] for row in standings.rows[method] if row["spectrum"]] for method in shown}
    page.figure(
        f"{key}-spectra", plots.spectra({method: seeds for method, seeds in spectrum.items() if seeds}, shown=32, title=task),
        f"{task}: singular values of the total update of the last adapted layer, the mean over seeds.",
    )  # fmt: skip
