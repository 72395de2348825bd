"""The page on networks that are no transformers: where a chain helps, against LoRA of its rank and against more."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

from experiments import plots
from experiments.image_contenders import FULL, OVER_RUN, over_run
from experiments.pages.standings import Standings, Test, table
from experiments.pages.wording import versus
from experiments.records import RunFolder
from experiments.report import Page, Table, describe
from experiments.statistics import bootstrap, compare, holm, wilcoxon
from experiments.tuning import Choice

# The order of the report.
TITLES = {
    "cnn-rotated": "Convolutional network, rotated digits",
    "cnn-new-labels": "Convolutional network, new labels",
    "mlp-rotated": "Fully connected network, rotated digits",
    "mlp-new-labels": "Fully connected network, new labels",
}


@dataclass
class Meeting(Standings):
    """One problem's tests with the rates they were made at; p-values are corrected for all answers to the same question."""

    @property
    def chains(self) -> list[str]:
        """All chains."""
        return [method for method in self.rows if method.startswith("chain")]

    @property
    def best(self) -> str:
        """The chain that was best on validation images: chosen there, its test is no picked winner's."""
        return max(self.chains, key=lambda method: max(self.choices[method].scores.values()))

    @property
    def wider(self) -> str:
        """LoRA of a higher rank."""
        return [method for method in self.rows if method.startswith("LoRA")][-1]

    @property
    def twins(self) -> list[tuple[str, str]]:
        """Chains whose rate decays in each link, beside those whose rate decays over the run."""
        return [(method, other) for method in self.rows if (other := over_run(method))]

    @cached_property
    def tests(self) -> dict[tuple[str, str], Test]:
        """The comparisons with LoRA, those of the two decays and those with more to train, each kind with Holm's correction."""
        against_lora = [(method, self.reference) for method in self.rows if method != self.reference]
        made: dict[tuple[str, str], Test] = {}
        for pairs in (against_lora, self.twins, [(self.best, self.wider), (self.best, FULL)]):
            plain = [self._compared(*pair) for pair in pairs]
            corrected = holm([test.comparison.p for test in plain])
            for pair, test, p in zip(pairs, plain, corrected, strict=True):
                made[pair] = replace(test, comparison=replace(test.comparison, p=p))
        return made

    def verdict(self, method: str) -> str:
        """What the test against the reference says."""
        return self.tests[method, self.reference].comparison.verdict

    def table(self) -> Table:
        """All methods of the problem."""
        found = {("", method): test for (method, control), test in self.tests.items() if control == self.reference}
        return table("", self, found)

    def say(self, method: str, control: str, note: str = "") -> str:
        """One sentence on a comparison; `note` follows the method's name."""
        return versus(method + note, control, self.tests[method, control].comparison, self.metric)

    def beyond(self, method: str, rank: int) -> float:
        """Share of the squared norm of a method's update in the watched layer that no update of this rank can hold."""
        shares = [1 - sum(s**2 for s in row["spectrum"][:rank]) / row["norm"] ** 2 for row in self.rows[method] if row["norm"]]
        return max(0.0, sum(shares) / len(shares)) if shares else 0.0

    def _compared(self, method: str, control: str) -> Test:
        mine, theirs = self.values(method), self.values(control)
        comparison = compare(mine, theirs, higher_is_better=self.metric.higher_is_better)
        differences = [one - other for one, other in zip(mine, theirs, strict=True)]
        return Test(comparison, wilcoxon(mine, theirs), bootstrap(differences))


def collect(folder: RunFolder) -> dict[str, Meeting]:
    """The study's records by problem, in the order of the report."""
    found: dict[str, Meeting] = {}
    for row in folder.rows("runs.jsonl"):
        found.setdefault(row["problem"], Meeting()).rows.setdefault(row["method"], []).append(row)
    for entry in folder.read_json("tuning.json"):
        scores = {float(rate): score for rate, score in entry["scores"].items()}
        found[entry["problem"]].choices[entry["method"]] = Choice(scores)
    return {name: found[name] for name in TITLES if name in found}


def findings(problems: Mapping[str, Meeting]) -> dict[str, list[str]]:
    """What the comparisons say, under headings; the measured verdicts decide which.

    Args:
        problems: the results.

    Returns:
        Sentences by heading.
    """
    said: dict[str, list[str]] = {heading: [] for heading in HEADINGS}
    helps, helps_not, decays, roomier, lacking = said.values()
    for name, results in problems.items():
        place = f"{TITLES[name]}: "
        for method in results.chains:
            (helps if results.verdict(method) == "better" else helps_not).append(place + results.say(method, results.reference))
        decays += [place + results.say(*pair) for pair in results.twins]
        roomier += [place + results.say(results.best, control, BEST) for control in (results.wider, FULL)]
        lacking.append(place + missing_rank(results))
    return said


def missing_rank(results: Meeting) -> str:
    """What one link's rank cannot hold of the updates that the best chain and methods with more to train have found."""
    rank = int(results.reference.partition("=")[2])
    layer = results.rows[results.reference][0]["watched"]
    best, wider, full = (f"{100 * results.beyond(method, rank):.0f} %" for method in (results.best, results.wider, FULL))
    return (
        f"in layer {layer}, an update of rank {rank} misses at least {best} of what {results.best} has learned, {wider} of "
        f"what {results.wider} has, and {full} of what {FULL} has (squared norm, mean over seeds)."
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
        "Chains on networks that are no transformers",
        "Equal steps, equal data, paired seeds, every rate tuned. Every sentence on who is ahead is derived from the runs; "
        "p-values are corrected for the number of comparisons, intervals are not.",
    )
    for heading, sentences in findings(problems).items():
        page.heading(heading)
        page.findings(sentences or [NOWHERE])
    for name, results in problems.items():
        page.heading(TITLES[name])
        page.paragraph(INTRODUCTIONS[name])
        page.table(results.table())
        for figure in figures(name, results):
            page.figure(*figure)
    page.heading("How to read this")
    config = folder.read_json("config.json")
    page.paragraph(
        "Differences are paired over seeds, each with a 95% interval of its own: by the bootstrap in the tables, Student's in "
        "the sentences. The p-values of the paired two-sided t-test have Holm's correction over a problem's comparisons of one "
        "kind: those of a table, the pairs of decays, or the two with methods that train more. The sentences go by these; "
        "Wilcoxon's p are not corrected. A win is a seed on which the method is strictly better. Seeds draw the factors and "
        "the order of the data; base, training set and test set are one per problem."
    )
    page.paragraph(
        f"Each method's learning rate is the best of a grid of {config['rates']} values, each twice the one before, by its "
        f"mean over {config['tuning_seeds']} seeds on validation images; a grid whose best value lay at its edge was extended, "
        f"up to {config['extensions']} times. A star marks a rate that still lies at the edge. The tests are on other seeds "
        "and other images."
    )
    page.paragraph(
        "Chains decay linearly in each link after 5 steps of warm-up; with one decay they decay linearly over the run, with 10 "
        "steps of warm-up after each knot. LoRA and full fine-tuning decay linearly over the run. All layers are adapted; a "
        "convolution's factors are two convolutions, A with its kernel and B of 1 x 1. Biases are trained by full "
        "fine-tuning alone."
    )
    return page.publish(folder, describe(folder.read_json("environment.json")))


def figures(name: str, results: Meeting) -> list[tuple[str, bytes, str]]:
    """A problem's figures: name, image, caption."""
    values = plots.value_intervals(
        {method: results.values(method) for method in results.rows},
        xlabel=results.metric.name,
        reference=results.reference,
        title=TITLES[name],
    )
    drawn = [method for method in results.rows if not method.endswith(OVER_RUN)]
    layer = results.rows[results.reference][0]["watched"]
    spectrum = plots.spectra(
        {method: [row["spectrum"] for row in results.rows[method]] for method in drawn},
        shown=20,
        title=f"total update of layer {layer}",
    )
    return [
        (
            f"{name}-values",
            values,
            f"Seeds as dots, means with 95% intervals as diamonds; dashed: the mean of {results.reference}.",
        ),
        (
            f"{name}-spectrum",
            spectrum,
            "Singular values of the total update: LoRA's rank ends where its link does, a chain's adds up.",
        ),
    ]


NOWHERE = "Nowhere in these runs."
BEST = " (the best chain on validation images)"
HEADINGS = (
    "Where a chain helps, against LoRA of the same rank",
    "Where it does not",
    "A decay in each link, against one decay over the run",
    "Chains against methods that train more",
    "How much rank the tasks ask for",
)
_TURNED = "is adapted to digits turned by 90 degrees, in several passes over 500 images, at rank 1."
_NEW = "has learned the digits 0 to 4 and is adapted to images of 5 to 9, in several passes over 400 of them, at rank 4."
_CNN = "A network of two convolutions (1 to 16 to 32 channels, 3 x 3, with pooling) and two linear layers"
_MLP = "A 64-128-128-10 network without biases"
INTRODUCTIONS = {
    "cnn-rotated": f"{_CNN}, trained on upright digits, {_TURNED}",
    "cnn-new-labels": f"{_CNN} {_NEW}",
    "mlp-rotated": f"{_MLP}, trained on upright digits, {_TURNED}",
    "mlp-new-labels": f"{_MLP} {_NEW}",
}
