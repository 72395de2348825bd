"""Chains on networks that are no transformers: a convolutional and a fully connected one, on scanned digits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from experiments.reset_contenders import Contest
    from experiments.sweep import Sweep
    from experiments.tuning import Choice

# In one epoch a link of a chain of 5 would end with its warm-up.
LEAST = {"extensions": 0, "epochs": 2}
KEPT = ("problem", "method", "seed", "value", "metric", "steps", "trainable", "knots", "watched", "spectrum")
SHOWN = 24  # singular values that are kept: more than any figure shows
DIGITS = 6


@dataclass(frozen=True)
class Config:
    """Compare LoRA, chains, LoRA of more rank and full fine-tuning at equal steps; finished runs are kept and not made twice.

    Attributes:
        problems: cnn-rotated, cnn-new-labels, mlp-rotated, mlp-new-labels.
        seeds: paired seeds of the tests.
        tuning_seeds: seeds on which learning rates are chosen, on validation images; the tests use none of them.
        rates: learning rates in a method's first grid.
        extensions: how often a grid may grow by one rate where the best lies at its edge.
        epochs: passes over the training images.
        workers: processes that train at the same time; the results do not depend on it.
        scheduler: address of a Dask scheduler whose workers train instead, such as tcp://host:8786.
        out: folder for finished runs, figures and report.
    """

    problems: tuple[str, ...] = ("cnn-rotated", "cnn-new-labels", "mlp-rotated", "mlp-new-labels")
    seeds: int = 8
    tuning_seeds: int = 2
    rates: int = 5
    extensions: int = 3
    epochs: int = 20
    workers: int = 2
    scheduler: str | None = None
    out: Path = Path("results/non-transformer")


PRESETS = {
    "smoke": Config(
        problems=("cnn-rotated",),
        seeds=2,
        tuning_seeds=1,
        rates=1,
        extensions=0,
        epochs=2,
        workers=1,
        out=Path("results/non-transformer-smoke"),
    ),
}


def run(config: Config) -> None:
    """Chooses learning rates, tests, builds the report from the records and prints its tables.

    Args:
        config: sizes and places.

    Raises:
        UsageError: a size is too small, or a problem does not exist.
    """
    from experiments.errors import UsageError
    from experiments.starting import open_folder, prepare

    prepare(config, LEAST)
    from experiments.image_contenders import contests
    from experiments.pages import non_transformer as page
    from experiments.sweep import Sweep
    from experiments.workers import reach

    unknown = [problem for problem in config.problems if problem not in page.TITLES]
    if unknown or not config.problems:
        raise UsageError(f"--problems {' '.join(unknown)}: choose from {', '.join(page.TITLES)}.")
    reach(config.scheduler)
    folder = open_folder(config)
    every = contests(config.epochs, config.seeds)
    meetings = {problem: contest for problem, contest in every.items() if problem in config.problems}
    sweep = Sweep(folder.path / "runs.sqlite", config.workers, config.scheduler)
    choices = choose_rates(meetings, sweep, config)
    folder.write_json("tuning.json", [
        {"problem": problem, "method": method, "scores": choice.scores} for (problem, method), choice in choices.items()
    ])  # fmt: skip
    tests = [
        contest.run(method.label, choices[problem, method.label].rate, seed, "test")
        for problem, contest in meetings.items()
        for seed in range(config.tuning_seeds, config.tuning_seeds + contest.seeds)
        for method in contest.methods
    ]
    rows = [
        {name: row[name] for name in KEPT}
        | {"lr": run.method.lr, "spectrum": [float(f"{value:.{DIGITS}g}") for value in row["spectrum"][:SHOWN]]}
        | {"norm": sum(value**2 for value in row["spectrum"]) ** 0.5}
        for run, row in zip(tests, sweep.rows(tests, "tests"), strict=True)
    ]
    folder.replace_rows("runs.jsonl", rows)
    page.build(folder)
    show(folder)


def choose_rates(meetings: Mapping[str, Contest], sweep: Sweep, config: Config) -> dict[tuple[str, str], Choice]:
    """Each method's learning rate on each problem, by its mean accuracy on the validation images.

    Args:
        meetings: the contests by their problem's name.
        sweep: makes the runs.
        config: grids and seeds.

    Returns:
        The choices by (problem, method).
    """
    from experiments.tuning import grid, means, tune

    def score(wanted: Sequence[tuple[tuple[str, str], float]]) -> list[float]:
        runs = [
            meetings[problem].run(method, lr, seed, "validation")
            for (problem, method), lr in wanted
            for seed in range(config.tuning_seeds)
        ]
        return means(sweep.rows(runs, "learning rates"), [config.tuning_seeds] * len(wanted), "value")

    grids = {
        (problem, method.label): grid(method.lr, config.rates)
        for problem, contest in meetings.items()
        for method in contest.methods
    }
    return tune(grids, score, extensions=config.extensions)


def show(folder) -> None:
    """Prints the tables, the findings and where the report lies."""
    from experiments.pages import non_transformer as page

    problems = page.collect(folder)
    for name, results in problems.items():
        print(f"\n{page.TITLES[name]}\n{results.table().to_text()}")
    for title, sentences in page.findings(problems).items():
        print(f"\n{title}", *(sentences or [page.NOWHERE]), sep="\n  ")
    print(f"\nReport: {folder.path / 'report.html'}")
