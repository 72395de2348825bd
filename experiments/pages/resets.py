"""The page on resets: which start of a link pays where, against LoRA and against the same chain with Kaiming's draw."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from experiments import plots
from experiments.pages.demo import Results
from experiments.pages.wording import probability, signed, spread, versus
from experiments.records import RunFolder
from experiments.report import Page, Table, describe
from experiments.reset_contenders import ALIGNED_LORA, B_ONLY, FULL, twin
from experiments.statistics import Comparison, compare, holm, interval
from experiments.tuning import Choice

# The order of the report.
TITLES = {
    "new-labels": "New labels, rank 4",
    "rotated-1": "Rotated digits, rank 1",
    "rotated-2": "Rotated digits, rank 2",
    "source": "English to Python source, rank 2",
    "attention": "English to Python source, queries and values, rank 1",
}


@dataclass
class Ranking(Results):
    """One problem's tests with the rates they were made at; p-values are corrected for all answers to the same question.

    Attributes:
        choices: each method's learning rate with the scores it was chosen by.
    """

    choices: dict[str, Choice] = field(default_factory=dict)

    @property
    def chains(self) -> list[str]:
        """The chains that train both factors."""
        return [method for method in self.rows if method.startswith("chain") and not method.endswith(B_ONLY)]

    @property
    def best(self) -> str:
        """The chain that was best on validation data: chosen there, its test is no picked winner's."""
        return max(self.chains, key=lambda method: max(self.choices[method].scores.values()))

    @property
    def wider(self) -> str:
        """LoRA of a higher rank."""
        return [method for method in self.rows if method.startswith("LoRA r=")][-1]

    @property
    def twins(self) -> list[tuple[str, str]]:
        """Chains beside the same chains with Kaiming's draw."""
        return [(method, other) for method in self.rows if (other := twin(method))]

    @cached_property
    def tests(self) -> dict[tuple[str, str], Comparison]:
        """The comparisons with LoRA, those with Kaiming and those with more parameters, each kind with Holm's correction."""
        against_lora = [(method, self.reference) for method in self.rows if method != self.reference]
        made = {}
        for pairs in (against_lora, self.twins, [(self.best, self.wider), (self.best, FULL)]):
            better = self.metric.higher_is_better
            plain = [compare(self.values(method), self.values(other), higher_is_better=better) for method, other in pairs]
            corrected = holm([comparison.p for comparison in plain])
            made |= {pair: replace(test, p=p) for pair, test, p in zip(pairs, plain, corrected, strict=True)}
        return made

    def against(self, method: str, control: str | None = None) -> Comparison:
        """A method against another, the reference unless told otherwise."""
        return self.tests[method, control or self.reference]

    def table(self) -> Table:
        """All methods of the problem."""
        headings = ["method", "rate", "trained", self.metric.name, f"against {self.reference} [95%]", "p", "wins"]
        rows = []
        for method, runs in self.rows.items():
            choice = self.choices[method]
            rate = f"{choice.rate:.3g}" + ("*" if choice.at_edge else "")
            row = [method, rate, f"{runs[0]['trainable']:,}", spread(interval(self.values(method)), self.metric)]
            rows.append([*row, *(["", "", ""] if method == self.reference else self._cells(method))])
        return Table(headings, rows)

    def twins_table(self) -> Table:
        """Other starts beside Kaiming's."""
        rows = [[method, *self._cells(method, other)] for method, other in self.twins]
        return Table(["chain", "against the same chain, Kaiming [95%]", "p", "wins"], rows)

    def say(self, method: str, control: str, note: str = "") -> str:
        """One sentence on a comparison; `note` follows the method's name."""
        return versus(method + note, control, self.against(method, control), self.metric)

    def _cells(self, method: str, control: str | None = None) -> list[str]:
        test = self.against(method, control)
        return [signed(test.difference, self.metric), probability(test.p), f"{test.wins} of {test.seeds}"]


def collect(folder: RunFolder) -> dict[str, Ranking]:
    """The study's records by problem, in the order of the report."""
    found: dict[str, Ranking] = {}
    for row in folder.rows("runs.jsonl"):
        found.setdefault(row["problem"], Ranking()).rows.setdefault(row["method"], []).append(row)
    for entry in folder.read_json("tuning.json"):
        scores = {float(rate): score for rate, score in entry["scores"].items()}
        found[entry["problem"]].choices[entry["method"]] = Choice(scores)
    return {name: found[name] for name in TITLES if name in found}


def findings(problems: Mapping[str, Ranking]) -> dict[str, list[str]]:
    """What the comparisons say, under headings; the measured verdicts decide which.

    Args:
        problems: the results.

    Returns:
        Sentences by heading.
    """
    said: dict[str, list[str]] = {heading: [] for heading in HEADINGS}
    pays, pays_not, chains, draws, roomier = said.values()
    for name, results in problems.items():
        place = f"{TITLES[name]}: "
        aligned = [(method, other) for method, other in results.twins if not method.endswith(DRAWN)]
        if ALIGNED_LORA in results.rows:
            aligned.append((ALIGNED_LORA, results.reference))
        for pair in aligned:
            (pays if results.against(*pair).verdict == "better" else pays_not).append(place + results.say(*pair))
        chains += [place + _tally(results), place + results.say(results.best, results.reference, BEST)]
        draws += [place + results.say(*pair) for pair in results.twins if pair not in aligned]
        roomier += [place + results.say(results.best, control, BEST) for control in (results.wider, FULL)]
    return said


def cost_sentence(cost: Mapping[str, Any]) -> str:
    """What the clock showed."""
    return (
        f"On the tiny Llama a probe step takes {cost['step_ratio']:.2f} times an ordinary one (medians of {cost['probes']} "
        f"probe steps and of all ordinary steps of the same runs), and a chain of 3 of {cost['steps']} steps takes "
        f"{cost['run_ratio']:.3f} times as long with aligned starts as with Kaiming's (medians of {cost['repeats']} runs each, "
        "in turns in one process). Probe steps are optimizer steps: they are part of the equal budget everywhere on this page."
    )


def build(folder: RunFolder) -> str:
    """Publishes the page from the folder's records.

    Args:
        folder: where the study wrote them.

    Returns:
        The page.
    """
    problems = collect(folder)
    page = Page(
        "Where should a link start?",
        "Equal steps, equal data, paired seeds, every rate tuned. Every sentence on who is ahead is derived from the runs; "
        "p-values are corrected for the number of comparisons, intervals are not.",
    )
    for heading, sentences in findings(problems).items():
        page.heading(heading)
        page.findings(sentences or [NOWHERE])
    page.heading("What alignment costs")
    page.findings([cost_sentence(folder.read_json("cost.json"))])
    for name, results in problems.items():
        page.heading(TITLES[name])
        page.paragraph(INTRODUCTIONS[name])
        page.table(results.table())
        page.table(results.twins_table())
        values = {method: results.values(method) for method in results.rows}
        figure = plots.value_intervals(values, xlabel=results.metric.name, reference=results.reference, title=TITLES[name])
        page.figure(
            name, figure, f"Seeds as dots, means with 95% intervals as diamonds; dashed: the mean of {results.reference}."
        )
    page.heading("How to read this")
    config = folder.read_json("config.json")
    page.paragraph(
        "Differences are paired over seeds, with Student's 95% interval of each by itself. The p-values are those of the "
        "paired two-sided t-test with Holm's correction over a problem's comparisons of one kind: those of a table, or the two "
        "with methods that train more. The sentences go by these. A win is a seed on which the method is strictly better. "
        "Seeds draw the factors and the order of the data; base, training set and test set are one per problem."
    )
    page.paragraph(
        f"Each method's learning rate is the best of a grid of {config['rates']} values, each twice the one before, by its "
        f"mean over {config['tuning_seeds']} seeds on validation data; a grid whose best value lay at its edge was extended, "
        f"up to {config['extensions']} times. A star marks a rate that still lies at the edge. The tests are on other seeds "
        "and other data."
    )
    page.paragraph(
        "LoRA, with an aligned start or without, and full fine-tuning decay linearly over the whole run; chains decay linearly "
        "in each link after 5 steps of warm-up. Aligned: the first 2 or 8 steps of each link, the first link included, "
        "find the gradient's leading right singular directions, which A then starts from; more steps average it over more "
        "minibatches. Gaussian: of standard deviation 0.02. B only: A stays as it was drawn, and is drawn "
        "afresh at each knot."
    )
    return page.publish(folder, describe(folder.read_json("environment.json")))


def _tally(results: Ranking) -> str:
    verdicts = Counter(results.against(method).verdict for method in results.chains)
    parts = [f"{verdicts[verdict]} {verdict}" for verdict in ("better", "worse", "no clear difference") if verdicts[verdict]]
    return f"against {results.reference}, of {len(results.chains)} chains that train both factors: {', '.join(parts)}."


DRAWN = ("Gaussian", "Orthogonal", B_ONLY)
NOWHERE = "Nowhere in these runs."
BEST = " (the best chain on validation data)"
HEADINGS = (
    "Where an aligned start pays",
    "Where it does not",
    "Chains against LoRA of the same rank",
    "Other starts",
    "Chains against methods that train more",
)
INTRODUCTIONS = {
    "new-labels": (
        "A 64-128-128-10 network that has learned the digits 0 to 4 is adapted to images of 5 to 9, in several passes over 400 "
        "of them: five of its outputs have never been used."
    ),
    "rotated-1": (
        "The same network, trained on upright digits, is adapted to digits turned by 90 degrees, in several passes over 500 "
        "images. One link of rank 1 is short of rank here."
    ),
    "rotated-2": "The same with links of rank 2, which are less short of rank.",
    "source": (
        "A tiny Llama (two layers, characters as tokens), trained on the English of Python's manual, is adapted to the "
        "standard library's source with windows drawn anew at every step: a short run, all linear layers adapted."
    ),
    "attention": (
        "The same Llama with its query and value layers adapted at rank 1: less to train with, and more steps a link."
    ),
}
