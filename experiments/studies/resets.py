"""Where should a link start? Draws against the gradient's own directions, on digits and a tiny Llama, every rate tuned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from experiments.reset_contenders import Contest
    from experiments.tuning import Choice

# In shorter runs a link would end before its 8 probe steps have found where to go.
LEAST = {"extensions": 0, "epochs": 2, "adaptation_steps": 27, "attention_steps": 45}
KEPT = ("problem", "method", "seed", "value", "metric", "steps", "trainable", "knots", "seconds")


@dataclass(frozen=True)
class Config:
    """Compare the starts of a chain's links with each other, with LoRA and with full fine-tuning at equal steps.

    Attributes:
        problems: new-labels, rotated-1, rotated-2, source, attention.
        seeds: paired seeds of the digits' tests.
        language_seeds: paired seeds of the language model's tests.
        tuning_seeds: seeds on which learning rates are chosen, on validation data; the tests use none of them.
        rates: learning rates in a method's first grid.
        extensions: how often a grid may grow by one rate where the best lies at its edge.
        epochs: passes over the digits.
        pretraining_steps: steps of the tiny Llama on English.
        adaptation_steps: steps of its adaptation to Python source, all linear layers adapted.
        attention_steps: steps of the adaptation of its query and value layers alone, which only "attention" asks for.
        repeats: timed runs of each kind.
        workers: processes that train at the same time; but for times, the results do not depend on it.
        out: folder for records, figures and report.
    """

    problems: tuple[str, ...] = ("new-labels", "rotated-1", "rotated-2", "source")
    seeds: int = 12
    language_seeds: int = 8
    tuning_seeds: int = 2
    rates: int = 5
    extensions: int = 2
    epochs: int = 20
    pretraining_steps: int = 400
    adaptation_steps: int = 400
    attention_steps: int = 1500
    repeats: int = 3
    workers: int = 2
    out: Path = Path("results/resets")


PRESETS = {
    "smoke": Config(
        problems=("new-labels",), seeds=2, language_seeds=2, tuning_seeds=1, rates=1, extensions=0, epochs=2,
        pretraining_steps=3, adaptation_steps=27, repeats=1, workers=1,
    ),
}  # fmt: skip


def run(config: Config) -> None:
    """Chooses learning rates, trains, times, builds the report from the records and prints its tables.

    Args:
        config: sizes and places.

    Raises:
        UsageError: a size is too small, or a problem does not exist.
    """
    from experiments.errors import UsageError
    from experiments.starting import english_llama, open_folder, prepare

    prepare(config, LEAST)
    from experiments.pages import resets as page
    from experiments.probe_cost import measure
    from experiments.reset_contenders import ALIGNED, KAIMING, chain, contests

    unknown = [problem for problem in config.problems if problem not in page.TITLES]
    if unknown or not config.problems:
        raise UsageError(f"--problems {' '.join(unknown)}: choose from {', '.join(page.TITLES)}.")
    folder = open_folder(config)
    base = folder.path / "base.pt"
    english_llama(base, config.pretraining_steps)
    every = contests(
        str(base),
        epochs=config.epochs,
        seeds=config.seeds,
        adaptation_steps=config.adaptation_steps,
        attention_steps=config.attention_steps,
        language_seeds=config.language_seeds,
    )
    meetings = {problem: contest for problem, contest in every.items() if problem in config.problems}
    choices = choose_rates(meetings, config)
    folder.write_json("tuning.json", [
        {"problem": problem, "method": method, "scores": choice.scores} for (problem, method), choice in choices.items()
    ])  # fmt: skip
    folder.replace_rows("runs.jsonl", final_runs(meetings, choices, config))

    source = every["source"].problem
    drawn, aligned = (chain(3, start, 2, 1e-2) for start in (KAIMING, ALIGNED))
    folder.write_json("cost.json", measure(source, drawn, aligned, repeats=config.repeats))
    page.build(folder)
    show(folder)


def choose_rates(meetings: Mapping[str, Contest], config: Config) -> dict[tuple[str, str], Choice]:
    """Each method's learning rate on each problem, by validation data.

    Args:
        meetings: the contests by their problem's name.
        config: grids, seeds and workers.

    Returns:
        The choices by (problem, method).
    """
    from experiments.progress import progress
    from experiments.tuning import grid, mean_scores, tune

    seeds, _ = split_seeds(config.tuning_seeds, 0)
    with progress(total=0, description="learning rates", unit="run") as bar:

        def score(wanted: Sequence[tuple[tuple[str, str], float]]) -> list[float]:
            groups = [
                [meetings[problem].run(method, lr, seed, "validation") for seed in seeds] for (problem, method), lr in wanted
            ]
            bar.total += sum(map(len, groups))
            return mean_scores(groups, _execute, workers=config.workers, on_done=lambda row: bar.update())

        grids = {
            (problem, method.label): grid(method.lr, config.rates)
            for problem, contest in meetings.items()
            for method in contest.methods
        }
        return tune(grids, score, extensions=config.extensions)


def final_runs(
    meetings: Mapping[str, Contest], choices: Mapping[tuple[str, str], Choice], config: Config
) -> list[dict[str, Any]]:
    """Every method at its rate on fresh seeds, measured on the test data.

    Args:
        meetings: the contests by their problem's name.
        choices: the learning rates.
        config: seeds and workers.

    Returns:
        One row a run.
    """
    from experiments.progress import progress
    from experiments.workers import spread

    runs = [
        contest.run(method.label, choices[problem, method.label].rate, seed, "test")
        for problem, contest in meetings.items()
        for seed in split_seeds(config.tuning_seeds, contest.seeds)[1]
        for method in contest.methods
    ]
    with progress(total=len(runs), description="tests", unit="run") as bar:
        return spread(_execute, runs, workers=config.workers, on_done=lambda row: bar.update())


def split_seeds(tuning: int, testing: int) -> tuple[range, range]:
    """Seeds to choose learning rates on, and others to test on.

    Example:
        >>> split_seeds(2, 3)
        (range(0, 2), range(2, 5))
    """
    return range(tuning), range(tuning, tuning + testing)


def show(folder) -> None:
    """Prints the tables, the findings and where the report lies."""
    from experiments.pages import resets as page

    problems = page.collect(folder)
    for name, results in problems.items():
        print(f"\n{page.TITLES[name]}\n{results.table().to_text()}\n\n{results.twins_table().to_text()}")
    for title, sentences in page.findings(problems).items():
        print(f"\n{title}", *(sentences or [page.NOWHERE]), sep="\n  ")
    print("\nWhat alignment costs", page.cost_sentence(folder.read_json("cost.json")), sep="\n  ")
    print(f"\nReport: {folder.path / 'report.html'}")


def _execute(run) -> dict[str, Any]:
    from experiments.compare import execute

    row = execute(run)
    return {name: row[name] for name in KEPT} | {"lr": run.method.lr}
