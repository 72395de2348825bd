"""How methods stand on a problem beside LoRA on the same seeds: tests, tables and sentences that several pages share."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from experiments.pages.wording import probability, signed, spread, versus
from experiments.report import Table
from experiments.statistics import Comparison, Interval, bootstrap, compare, holm, interval, wilcoxon
from experiments.tasks.metric import Metric
from experiments.tuning import Choice

HEADINGS = ("against {} [95%, bootstrap]", "p (t, Holm)", "p (Wilcoxon)", "wins")


@dataclass
class Standings:
    """One problem's tests: each method's rows over the same seeds, the reference first.

    Attributes:
        rows: by the methods' labels.
        choices: each method's learning rate with the scores that it was chosen by.
        baseline: what the others are to be compared with; without its rows there are no comparisons. None for the first method.
    """

    rows: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    choices: dict[str, Choice] = field(default_factory=dict)
    baseline: str | None = None

    @property
    def reference(self) -> str:
        """What the others are compared with; where it has no rows, whatever comes first stands for it in figures."""
        return self.baseline if self.baseline in self.rows else next(iter(self.rows))

    @property
    def metric(self) -> Metric:
        """What is measured."""
        metric = self.rows[self.reference][0]["metric"]
        return metric if isinstance(metric, Metric) else Metric(**metric)

    def values(self, method: str) -> list[float]:
        """A method's test values in the order of the seeds."""
        return [row["value"] for row in sorted(self.rows[method], key=lambda row: row["seed"])]

    def rate(self, method: str) -> str:
        """A method's learning rate, starred where it lies at an edge of the rates tried."""
        choice = self.choices[method]
        return f"{choice.rate:.3g}" + ("*" if choice.at_edge and len(choice.scores) > 1 else "")


@dataclass(frozen=True)
class Test:
    """A method against the reference on the same seeds.

    Attributes:
        comparison: by the paired t-test, its p corrected for every test of the study.
        wilcoxon: p of the signed-rank test, as it is.
        resampled: mean difference with its bootstrap interval.
    """

    comparison: Comparison
    wilcoxon: float
    resampled: Interval

    def cells(self, metric: Metric) -> list[str]:
        """Its part of a table's row, under `HEADINGS`."""
        comparison = self.comparison
        wins = f"{comparison.wins} of {comparison.seeds}"
        return [signed(self.resampled, metric), probability(comparison.p), probability(self.wilcoxon), wins]


def tests(problems: Mapping[str, Standings]) -> dict[tuple[str, str], Test]:
    """Every method against its problem's reference, with Holm's correction over all of them together.

    Args:
        problems: the standings by their problems' names.

    Returns:
        The tests by (problem, method).
    """
    pairs, made = [], []
    for name, standings in problems.items():
        if standings.baseline not in {None, *standings.rows}:
            continue
        control = standings.values(standings.reference)
        for method in standings.rows:
            values = standings.values(method)
            if method == standings.reference or len(values) != len(control):
                continue
            pairs.append((name, method))
            differences = [mine - theirs for mine, theirs in zip(values, control, strict=True)]
            comparison = compare(values, control, higher_is_better=standings.metric.higher_is_better)
            made.append(Test(comparison, wilcoxon(values, control), bootstrap(differences)))
    corrected = holm([test.comparison.p for test in made])
    return {
        pair: replace(test, comparison=replace(test.comparison, p=p))
        for pair, test, p in zip(pairs, made, corrected, strict=True)
    }


def table(name: str, standings: Standings, found: Mapping[tuple[str, str], Test]) -> Table:
    """All methods of a problem.

    Args:
        name: the problem's.
        standings: its tests.
        found: what `tests` gave.

    Returns:
        The table.
    """
    metric = standings.metric
    headings = ["method", "rate", "trained", metric.name, *(heading.format(standings.reference) for heading in HEADINGS)]
    rows = []
    for method, runs in standings.rows.items():
        cells = [
            method,
            standings.rate(method),
            f"{runs[0]['trainable']:,}",
            spread(interval(standings.values(method)), metric),
        ]
        test = found.get((name, method))
        rows.append(cells + ([""] * len(HEADINGS) if test is None else test.cells(metric)))
    return Table(headings, rows)


def sentences(
    name: str, standings: Standings, found: Mapping[tuple[str, str], Test], methods: Sequence[str]
) -> dict[str, list[str]]:
    """One sentence on each method, by what the measured verdict is.

    Args:
        name: the problem's.
        standings: its tests.
        found: what `tests` gave.
        methods: to speak of.

    Returns:
        Sentences under "better", "worse" and "no clear difference".
    """
    said: dict[str, list[str]] = {"better": [], "worse": [], "no clear difference": []}
    for method in methods:
        test = found.get((name, method))
        if test is not None:
            said[test.comparison.verdict].append(
                f"{name}: {versus(method, standings.reference, test.comparison, standings.metric)}"
            )
    return said


def untestable(found: Mapping[tuple[str, str], Test]) -> bool:
    """Whether no test can be made: of single seeds, or of differences that are all the same."""
    return all(math.isnan(test.comparison.p) for test in found.values())
