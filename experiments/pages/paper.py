"""The page of a study under the paper's protocol: every task, every method at the rate that validation chose."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from experiments import plots
from experiments.pages.standings import Standings, sentences, table, tests, untestable
from experiments.pages.wording import spread
from experiments.records import RunFolder
from experiments.report import Page, Table, describe
from experiments.statistics import interval
from experiments.tuning import Choice

DRAWN = 5  # curves a figure: more of them hide each other


class Results:
    """The records of a study: standings by task, and the plan.

    Args:
        tasks: each task's standings.
        plan: a row for each task and method.
    """

    def __init__(self, tasks: Mapping[str, Standings], plan: list[dict[str, Any]]) -> None:
        self.tasks, self.plan = tasks, plan
        self.tests = tests(tasks)

    @property
    def methods(self) -> list[str]:
        """Labels in the order of the plan."""
        return list(dict.fromkeys(cell["method"] for cell in self.plan))

    @property
    def left_out(self) -> list[dict[str, Any]]:
        """The cells that have no result, each with its reason."""
        return [cell for cell in self.plan if cell["reason"] is not None]

    def overview(self) -> Table:
        """Test values of every method on every task."""
        rows = []
        for method in self.methods:
            cells = [
                spread(interval(standings.values(method)), standings.metric) if method in standings.rows else "-"
                for standings in self.tasks.values()
            ]
            rows.append([method, *cells])
        return Table(["test, mean ± deviation", *self.tasks], rows)


def collect(folder: RunFolder) -> Results:
    """Chooses each method's rate on each task by validation, and takes the tests made at that rate."""
    plan = folder.read_json("plan.json")
    found: dict[str, dict[str, list[dict[str, Any]]]] = {cell["task"]: {} for cell in plan}
    for row in folder.rows("runs.jsonl"):
        if "failed" in row:
            cell = next(cell for cell in plan if (cell["task"], cell["method"]) == (row["task"], row["label"]))
            cell["reason"] = row["failed"]
        else:
            found[row["task"]].setdefault(row["label"], []).append(row)
    tasks = {}
    for task, methods in found.items():
        standings = Standings()
        for cell in plan:
            rows = methods.get(cell["method"])
            if cell["task"] == task and rows and cell["reason"] is None:
                choice = choose(rows)
                standings.choices[cell["method"]] = choice
                standings.rows[cell["method"]] = [row for row in rows if row["lr"] == choice.rate]
        if standings.rows:
            tasks[task] = standings
    return Results(tasks, plan)


def choose(rows: list[dict[str, Any]]) -> Choice:
    """The rate with the best mean on validation."""
    scores: dict[float, list[float]] = {}
    for row in rows:
        sign = 1 if row["metric"]["higher_is_better"] else -1
        scores.setdefault(row["lr"], []).append(sign * row["validation"])
    return Choice({rate: sum(values) / len(values) for rate, values in scores.items()})


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
    page.figure(
        "values",
        plots.bars(
            {task: {method: at.values(method) for method in at.rows} for task, at in results.tasks.items()},
            ylabel=" / ".join(dict.fromkeys(at.metric.name for at in results.tasks.values())),
        ),
        "Test means with their 95% intervals over seeds.",
    )  # fmt: skip
    for task, standings in results.tasks.items():
        page.heading(task)
        page.table(table(task, standings, results.tests))
        _figures(page, task, standings)
    page.heading("Budget")
    page.paragraph(
        "FLOPs are those of all steps' forward and backward passes, of knots and projections; memory is what a step holds. "
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


def forecast(plan: list[dict[str, Any]], repeats: int) -> str:
    """What a plan will cost, for a terminal.

    Args:
        plan: a row for each task and method.
        repeats: runs of a cell that can be run.

    Returns:
        A table, the cells that cannot be run, and the sum.
    """
    there = [cell for cell in plan if cell["reason"] is None]
    lines = [budget(plan).to_text(), ""]
    lines += [f"not run: {cell['method']} on {cell['task']}: {cell['reason']}" for cell in plan if cell["reason"] is not None]
    if not all(cell["measured"] for cell in plan):
        lines.append("lengths of prompts are assumed: data or tokenizer cannot be read here")
    total = repeats * sum(cell["flops"] for cell in there)
    lines.append(f"{repeats * len(there)} runs, {total:.3g} FLOPs in all")
    return "\n".join(lines)


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
    if untestable(results.tests):
        return [f"Chains against LoRA: too few seeds for a test of {total} comparisons; the means above prove nothing."]
    counted = {verdict: len(found) for verdict, found in said.items()}
    summary = (
        f"Chains against LoRA: of {total} comparisons, chains are better in {counted['better']}, worse in {counted['worse']}, "
        f"and {counted['no clear difference']} show no clear difference, after Holm's correction over all methods and tasks."
    )
    return [summary, *said["better"], *said["worse"], *said["no clear difference"]]


def setting(options: Mapping[str, Any], results: Results) -> str:
    """The protocol in a paragraph."""
    steps = sorted({cell["steps"] for cell in results.plan})
    train, dev, test = options["examples"]
    length = f"{steps[0]}" if len(steps) == 1 else f"{steps[0]} to {steps[-1]}"
    rates = ", ".join(f"{rate:g}" for rate in options["lrs"])
    model, layers = options["model"].rsplit("/", 1)[-1], ", ".join(options["target_modules"])
    return (
        f"{model}, {options['dtype']}: {train} training, {dev} validation and {test} test examples, as far as a task has them; "
        f"{length} steps of {options['batch_size']} examples; rank {options['rank']} and alpha {options['alpha']:g} on "
        f"{layers}; {options['seeds']} seeds, each with its own sample and order, the same for every method. Rates: {rates} "
        "(for full fine-tuning and some others a fixed multiple); the one with the best validation mean is taken, and the test "
        "reported at that rate. Where there is one rate there was no choice."
    )


def budget(plan: list[dict[str, Any]]) -> Table:
    """What a run of each method costs, beside LoRA's on the same task."""
    baselines: dict[str, dict[str, Any]] = {}
    rows = []
    for cell in plan:
        if not cell["parameters"]:  # a method whose package is missing was not counted
            continue
        reference = baselines.setdefault(cell["task"], cell)
        gigabytes = sum(cell["memory"].values()) / 1e9
        rows.append([
            f"{cell['method']}, {cell['task']}", f"{cell['parameters']:,}", f"{cell['steps']}", f"{len(cell['knots'])}",
            f"{cell['flops']:.3g}", f"{cell['flops'] / reference['flops']:.5f}", f"{gigabytes:.3g}",
        ])  # fmt: skip
    return Table(["method, task", "trained", "steps", "knots", "FLOPs of a run", "to LoRA's", "memory, GB"], rows)


def _figures(page: Page, task: str, standings: Standings) -> None:
    chains = [method for method in standings.rows if method.startswith("chain")]
    others = [method for method in standings.rows if method in {standings.reference, "full fine-tuning"}]
    shown = [method for method in standings.rows if method in {*others, *chains[: DRAWN - len(others)]}]
    key = task.lower().replace("-", "")
    page.figure(
        f"{key}-losses",
        plots.loss_curves(
            {method: [row["losses"] for row in standings.rows[method]] for method in shown},
            {method: standings.rows[method][0]["knots"] for method in shown}, ylabel="training loss", title=task,
        ),
        f"{task}: training loss, the mean over seeds; dotted lines are knots.",
    )  # fmt: skip
    spectrum = {method: [row["spectrum"] for row in standings.rows[method] if row["spectrum"]] for method in shown}
    page.figure(
        f"{key}-spectra", plots.spectra({method: seeds for method, seeds in spectrum.items() if seeds}, shown=32, title=task),
        f"{task}: singular values of the total update of the last adapted layer, the mean over seeds.",
    )  # fmt: skip
