"""What the study of knot schedules measured on each problem: tests at tuned rates, and when knots were tied."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from experiments.pages.demo import Results
from experiments.pages.wording import probability, signed, spread, versus
from experiments.records import RunFolder
from experiments.report import Table
from experiments.statistics import Comparison, compare, holm, interval
from experiments.tuning import Choice
from experiments.tying import NEVER, TRIGGERS

# The order of the report.
TITLES = {
    "digits": "Rotated digits",
    "regression-rank-16": "Regression, rank is missing",
    "regression-rank-2": "Regression, rank is enough",
    "source": "English to Python source",
}


@dataclass
class Trials(Results):
    """One problem's tests with the rates they were made at; p-values are corrected for all comparisons on the problem.

    Attributes:
        choices: each schedule's learning rate with the scores it was chosen by.
    """

    choices: dict[str, Choice] = field(default_factory=dict)

    @property
    def counted(self) -> str:
        """The schedule that ties by count and was best on validation data: chosen there, its test is no picked winner's."""
        counted = [method for method in self.rows if method != NEVER and method not in TRIGGERS]
        return max(counted, key=lambda method: max(self.choices[method].scores.values()))

    @cached_property
    def tests(self) -> dict[tuple[str, str], Comparison]:
        """Every comparison that the page makes on this problem, with Holm's correction over all of them."""
        pairs = [(method, NEVER) for method in self.rows if method != NEVER]
        pairs += [(trigger, self.counted) for trigger in TRIGGERS]
        better = self.metric.higher_is_better
        plain = [compare(self.values(method), self.values(other), higher_is_better=better) for method, other in pairs]
        corrected = holm([comparison.p for comparison in plain])
        return {pair: replace(test, p=p) for pair, test, p in zip(pairs, plain, corrected, strict=True)}

    def against(self, method: str, control: str | None = None) -> Comparison:
        """A schedule against another, the reference unless told otherwise."""
        return self.tests[method, control or NEVER]

    def steps_tied(self, method: str) -> list[list[int]]:
        """The steps after which each seed's knots were tied; one after the last step begins no link and is left out."""
        return [[step for step in row["knots"] if step < row["steps"]] for row in self.rows[method]]

    def mean_knots(self, method: str) -> float:
        """Knots a run."""
        tied = self.steps_tied(method)
        return sum(map(len, tied)) / len(tied)

    def table(self) -> Table:
        """All schedules of the problem."""
        headings = ["schedule", "rate", "knots", "first after step", self.metric.name, f"against {NEVER} [95%]", "p", "wins"]
        rows = []
        for method in self.rows:
            choice, tied = self.choices[method], self.steps_tied(method)
            cells = [
                method,
                f"{choice.rate:.3g}" + ("*" if choice.at_edge else ""),
                _range([len(steps) for steps in tied], mean=True),
                _range([steps[0] for steps in tied if steps]),
                spread(interval(self.values(method)), self.metric),
            ]
            if method == NEVER:
                rows.append([*cells, "", "", ""])
                continue
            test = self.against(method)
            wins = f"{test.wins} of {test.seeds}"
            rows.append([*cells, signed(test.difference, self.metric), probability(test.p), wins])
        return Table(headings, rows)

    def say(self, method: str, control: str) -> str:
        """One sentence on a comparison."""
        if self.values(method) == self.values(control) and not self.mean_knots(method):
            return f"{method} ties no knot on any seed, and so is {control}."
        note = f"{control} (the best counted schedule on validation data)" if control == self.counted else control
        return versus(method, note, self.against(method, control), self.metric)


def collect(folder: RunFolder) -> dict[str, Trials]:
    """The study's records by problem, in the order of the report."""
    found: dict[str, Trials] = {}
    for row in folder.rows("runs.jsonl"):
        found.setdefault(row["problem"], Trials()).rows.setdefault(row["method"], []).append(row)
    for entry in folder.read_json("tuning.json"):
        scores = {float(rate): score for rate, score in entry["scores"].items()}
        found[entry["problem"]].choices[entry["method"]] = Choice(scores)
    return {name: found[name] for name in TITLES if name in found}


def _range(values: Sequence[int], *, mean: bool = False) -> str:
    if not values:
        return "-"
    low, high = min(values), max(values)
    if low == high:
        return str(low)
    return f"{sum(values) / len(values):.1f} ({low} to {high})" if mean else f"{low} to {high}"
