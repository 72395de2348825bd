"""The page on adaptation: perplexity on another text, every method at its own best rate."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

from experiments import plots
from experiments.pages.standings import Standings, Test, sentences, table, tests
from experiments.records import RunFolder
from experiments.report import Page, Table, describe
from experiments.tuning import Choice

NAME = "Adaptation"
DRAWN = 5  # curves a figure: more of them hide each other


def build(folder: RunFolder) -> Page:
    """Writes the report from the study's records.

    Args:
        folder: with `config.json`, `runs.jsonl`, `tuning.json`, `untouched.json`, `spent.json` and `environment.json`.

    Returns:
        The page.
    """
    results = collect(folder)
    config, untouched = folder.read_json("config.json"), folder.read_json("untouched.json")
    standings = results.standings
    page = Page("From one text to another", "A small pretrained language model learns another text, at equal steps.")
    page.paragraph(setting(config, untouched, standings))
    page.heading("What the runs say")
    page.findings(findings(results))
    page.heading("Perplexity")
    page.table(results.table())
    page.paragraph(
        f"Every rate was chosen by the mean perplexity of {config['tuning_seeds']} other seeds on the validation rows, from a "
        "grid whose neighbours differ by a factor of two and that grew where its best lay at an edge (a star marks where it "
        f"still does). Differences are paired over {config['seeds']} seeds; the t-tests' p are corrected by Holm for all "
        "methods of the table, Wilcoxon's are not."
    )
    metric = standings.metric
    values = {method: standings.values(method) for method in standings.rows}
    page.figure(
        "values", plots.value_intervals(values, xlabel=metric.name, reference=standings.reference),
        "Perplexity on the test rows: each seed a dot, the mean with its 95% interval; the line is LoRA's mean.",
    )  # fmt: skip
    shown = drawn(standings)
    page.figure(
        "losses",
        plots.loss_curves(
            {method: [row["losses"] for row in standings.rows[method]] for method in shown},
            {method: standings.rows[method][0]["knots"] for method in shown}, ylabel="training loss (nats/token)", below=True,
        ),
        "Training loss, the mean over seeds; dotted lines are knots.",
    )  # fmt: skip
    page.figure(
        "spectra", plots.spectra({method: [row["spectrum"] for row in standings.rows[method]] for method in shown}, shown=24),
        "Singular values of the total update of the last value projection, the mean over seeds.",
    )  # fmt: skip
    page.heading("Rates")
    page.table(rates(standings))
    spent = folder.read_json("spent.json")
    page.paragraph(
        f"All {spent['runs']} runs, those for the rates included, took {spent['hours']:.2g} hours of one process each."
    )
    page.code(command(config))
    page.publish(folder, describe(folder.read_json("environment.json")))
    return page


class Results:
    """The study's records: one problem.

    Args:
        standings: of the methods.
    """

    def __init__(self, standings: Standings) -> None:
        self.standings = standings
        self.tests: dict[tuple[str, str], Test] = tests({NAME: standings})

    def table(self) -> Table:
        """All methods."""
        return table(NAME, self.standings, self.tests)


def collect(folder: RunFolder) -> Results:
    """Reads the records."""
    standings = Standings()
    for row in folder.rows("runs.jsonl"):
        standings.rows.setdefault(row["method"], []).append(row)
    for method, scores in folder.read_json("tuning.json").items():
        standings.choices[method] = Choice({float(rate): score for rate, score in scores.items()})
    return Results(standings)


def findings(results: Results) -> list[str]:
    """What the comparisons say: chains first, then what more parameters give."""
    standings = results.standings
    chains = [method for method in standings.rows if method.startswith("chain")]
    others = [method for method in standings.rows if method not in chains and method != standings.reference]
    said = sentences(NAME, standings, results.tests, chains)
    counts = {verdict: len(found) for verdict, found in said.items()}
    summary = (
        f"Chains against LoRA: of {len(chains)} chains, {counts['better']} are better, {counts['worse']} worse, and "
        f"{counts['no clear difference']} show no clear difference."
    )
    beyond = [sentence for found in sentences(NAME, standings, results.tests, others).values() for sentence in found]
    return [summary, *(_bare(sentence) for found in said.values() for sentence in found), *map(_bare, beyond)]


def drawn(standings: Standings) -> list[str]:
    """The methods of the figures: LoRA, full fine-tuning, and the chains that validation likes best."""
    chains = [method for method in standings.rows if method.startswith("chain")]
    chains.sort(key=lambda method: -max(standings.choices[method].scores.values()))
    others = [method for method in standings.rows if method not in chains]
    chosen = {*others, *chains[: DRAWN - len(others)]}
    return [method for method in standings.rows if method in chosen]


def setting(config: dict[str, Any], untouched: dict[str, Any], standings: Standings) -> str:
    """The problem in a paragraph."""
    knots = {method: runs[0]["knots"] for method, runs in standings.rows.items() if runs[0]["knots"]}
    links = [after - before for at in knots.values() for before, after in pairwise([0, *at, config["steps"]])]
    rows, batch = untouched["rows"], config["batch_size"]
    return (
        f"{Path(config['model']).name} adapts to {Path(config['text']).name}: {rows} rows for training, "
        f"{config['held_out']} for validation and {config['held_out']} for the test, at most {config['max_length']} tokens of "
        f"each. Untouched, its perplexity on the test rows is {untouched['perplexity']:.2f}. Every run makes {config['steps']} "
        f"steps of {batch} rows, {config['steps'] * batch / rows:.2g} passes; rank {config['rank']} on "
        f"{', '.join(config['target_modules'])}. The shortest link has {min(links, default=0)} steps. Chains decay their rate "
        "within each link, with a warm-up of 5 steps, but for the one whose rate decays once over the run; the steps that look "
        "for an aligned start are charged."
    )


def rates(standings: Standings) -> Table:
    """What every rate scored on validation: perplexity, the smaller the better."""
    tried = sorted({rate for choice in standings.choices.values() for rate in choice.scores})
    rows = []
    for method in standings.rows:
        scores = standings.choices[method].scores
        rows.append([
            method,
            *(f"{-scores[rate]:.2f}" if rate in scores and math.isfinite(scores[rate]) else "" for rate in tried),
        ])
    return Table(["validation perplexity at the rate", *(f"{rate:.3g}" for rate in tried)], rows)


def command(config: dict[str, Any]) -> str:
    """What repeats the run."""
    return f"python -m experiments adaptation --model {Path(config['model']).name} --text {Path(config['text']).name}"


def _bare(sentence: str) -> str:
    return sentence.removeprefix(f"{NAME}: ")
