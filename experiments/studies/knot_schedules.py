"""When to tie a knot? Triggers that read the run, against counted knots and against none, every rate tuned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from experiments.tuning import Choice
    from experiments.tying import Ground

KEPT = ("problem", "method", "seed", "value", "metric", "steps", "trainable", "knots", "seconds")


@dataclass(frozen=True)
class Config:
    """Compare knot schedules at equal steps, data order and trained parameters, where knots pay and where they do not.

    Attributes:
        problems: digits, regression-rank-16, regression-rank-2, source.
        seeds: paired seeds of the tests on digits and regressions.
        language_seeds: paired seeds of the tests on the language model.
        tuning_seeds: seeds on which learning rates are chosen on digits and regressions; the tests use none of them.
        language_tuning_seeds: the same for the language model.
        rates: learning rates in a schedule's first grid.
        extensions: how often a grid may grow by one rate where the best lies at its edge.
        min_steps: the triggers' shortest link, on every problem.
        epochs: passes over the digits.
        matrix_steps: optimizer steps of the regressions.
        pretraining_steps: steps of the tiny Llama on English.
        adaptation_steps: steps of its adaptation to Python source.
        workers: processes that train at the same time; the results do not depend on it.
        out: folder for records, figures and report.
    """

    problems: tuple[str, ...] = ("digits", "regression-rank-16", "regression-rank-2", "source")
    seeds: int = 12
    language_seeds: int = 6
    tuning_seeds: int = 4
    language_tuning_seeds: int = 2
    rates: int = 3
    extensions: int = 3
    min_steps: int = 100
    epochs: int = 20
    matrix_steps: int = 600
    pretraining_steps: int = 400
    adaptation_steps: int = 400
    workers: int = 2
    out: Path = Path("results/knot-schedules")


PRESETS = {
    "smoke": Config(
        problems=("digits", "regression-rank-2"), seeds=2, tuning_seeds=1, rates=1, extensions=0, min_steps=10, epochs=1,
        matrix_steps=30, pretraining_steps=3, adaptation_steps=9, workers=1,
    ),
}  # fmt: skip


def run(config: Config) -> None:
    """Chooses learning rates, trains, builds the report from the records and prints its tables.

    Args:
        config: sizes and places.

    Raises:
        UsageError: a size is too small, or a problem does not exist.
    """
    from experiments.errors import UsageError
    from experiments.starting import english_llama, open_folder, prepare

    prepare(config, {"extensions": 0})
    from experiments.pages import knot_schedules as page
    from experiments.tying import grounds

    unknown = [problem for problem in config.problems if problem not in page.TITLES]
    if unknown or not config.problems:
        raise UsageError(f"--problems {' '.join(unknown)}: choose from {', '.join(page.TITLES)}.")
    folder = open_folder(config)
    base = folder.path / "base.pt"
    if "source" in config.problems:
        english_llama(base, config.pretraining_steps)
    every = grounds(
        str(base),
        epochs=config.epochs,
        matrix_steps=config.matrix_steps,
        adaptation_steps=config.adaptation_steps,
        seeds=config.seeds,
        language_seeds=config.language_seeds,
        tuning_seeds=config.tuning_seeds,
        language_tuning_seeds=config.language_tuning_seeds,
    )
    places = {problem: place for problem, place in every.items() if problem in config.problems}
    choices = choose_rates(places, config)
    folder.write_json("tuning.json", [
        {"problem": problem, "method": method, "scores": choice.scores} for (problem, method), choice in choices.items()
    ])  # fmt: skip
    folder.replace_rows("runs.jsonl", test(places, choices, config))
    page.build(folder)
    show(folder)


def choose_rates(places: Mapping[str, Ground], config: Config) -> dict[tuple[str, str], Choice]:
    """Each schedule's learning rate on each problem, by validation data.

    Args:
        places: the problems by name.
        config: grids and workers.

    Returns:
        The choices by (problem, schedule).
    """
    from experiments.progress import progress
    from experiments.tuning import grid, mean_scores, tune
    from experiments.tying import schedules

    knots = schedules(config.min_steps)
    with progress(total=0, description="learning rates", unit="run") as bar:

        def score(wanted: Sequence[tuple[tuple[str, str], float]]) -> list[float]:
            groups = [places[problem].tuning(label, knots[label], lr) for (problem, label), lr in wanted]
            bar.total += sum(map(len, groups))
            return mean_scores(groups, _execute, workers=config.workers, on_done=lambda row: bar.update())

        grids = {(problem, label): grid(place.centre, config.rates) for problem, place in places.items() for label in knots}
        return tune(grids, score, extensions=config.extensions)


def test(places: Mapping[str, Ground], choices: Mapping[tuple[str, str], Choice], config: Config) -> list[dict[str, Any]]:
    """Every schedule at its rate on fresh seeds, measured on test data.

    Args:
        places: the problems by name.
        choices: the learning rates.
        config: the triggers' shortest link and workers.

    Returns:
        One row a run.
    """
    from experiments.progress import progress
    from experiments.tying import schedules
    from experiments.workers import spread

    runs = [
        place.test(label, knots, choices[problem, label].rate, number)
        for problem, place in places.items()
        for number in range(place.seeds)
        for label, knots in schedules(config.min_steps).items()
    ]
    with progress(total=len(runs), description="tests", unit="run") as bar:
        return spread(_execute, runs, workers=config.workers, on_done=lambda row: bar.update())


def show(folder) -> None:
    """Prints the tables, the findings and where the report lies."""
    from experiments.pages import knot_schedules as page

    problems = page.collect(folder)
    for name, results in problems.items():
        print(f"\n{page.TITLES[name]}\n{results.table().to_text()}")
    for title, sentences in page.findings(problems).items():
        print(f"\n{title}", *(sentences or ["Nowhere in these runs."]), sep="\n  ")
    print(f"\nReport: {folder.path / 'report.html'}")


def _execute(run) -> dict[str, Any]:
    from experiments.compare import execute

    row = execute(run)
    return {name: row[name] for name in KEPT} | {"lr": run.method.lr, "schedule": repr(run.method.knots)}
