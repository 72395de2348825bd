"""What a study under the paper's protocol found: standings by task at the rates that validation chose, and the plan."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from experiments.pages.standings import Standings, tests
from experiments.pages.wording import spread
from experiments.records import RunFolder
from experiments.report import Table
from experiments.statistics import interval
from experiments.tasks.pretrained import COMMONEST
from experiments.tuning import Choice


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

    @property
    def revisions(self) -> list[str]:
        """Of the code, in which the runs were made."""
        rows = [row for standings in self.tasks.values() for runs in standings.rows.values() for row in runs]
        return sorted({row["revision"] for row in rows if row["revision"]})

    @property
    def commonest(self) -> dict[str, list[float]]:
        """By task, the accuracy of always giving the test's commonest answer, a value a seed."""
        found = {}
        for task, standings in self.tasks.items():
            details = [row["details"] for row in standings.rows[standings.reference]]
            if all(COMMONEST in each for each in details):
                found[task] = [each[COMMONEST] for each in details]
        return found

    @property
    def unlearned(self) -> list[str]:
        """Tasks on which no method's mean is above that by more than its own deviation: they say nothing about methods."""
        names = []
        for task, commonest in self.commonest.items():
            bar = interval(commonest).mean
            means = [interval(self.tasks[task].values(method)) for method in self.tasks[task].rows]
            if not any(mean.mean - bar > (0 if math.isnan(mean.deviation) else mean.deviation) for mean in means):
                names.append(task)
        return names

    def overview(self) -> Table:
        """Test values of every method on every task."""
        rows = []
        for method in self.methods:
            cells = [
                spread(interval(standings.values(method)), standings.metric) if method in standings.rows else "-"
                for standings in self.tasks.values()
            ]
            rows.append([method, *cells])
        if self.commonest:
            metric = next(iter(self.tasks.values())).metric
            cells = [spread(interval(self.commonest[task]), metric) if task in self.commonest else "-" for task in self.tasks]
            rows.append(["always the commonest answer", *cells])
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
        standings = Standings(baseline=next(cell["method"] for cell in plan if cell["task"] == task))
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
            f"{cell['method']}, {cell['task']}", f"{cell['parameters']:,}", f"{cell['steps']}", f"{cell['examples']}",
            f"{len(cell['knots'])}",
            f"{cell['flops']:.3g}", f"{cell['flops'] / reference['flops']:.5f}", f"{gigabytes:.3g}",
        ])  # fmt: skip
    headings = ["method, task", "trained", "steps", "examples", "knots", "FLOPs of a run", "to LoRA's", "memory, GB"]
    return Table(headings, rows)
