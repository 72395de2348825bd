"""Adapt a small pretrained language model to another text: perplexity of LoRA, chains and full fine-tuning at equal steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro

if TYPE_CHECKING:
    from experiments.adapting import Contest
    from experiments.sweep import Sweep
    from experiments.tuning import Choice

# A link that probes takes two steps for it, and a run of three links needs some beside them.
LEAST = {"extensions": 0, "steps": 15, "max_length": 2}


@dataclass(frozen=True)
class Config:
    """Choose every method's rate on validation rows, then test it on fresh seeds; finished runs are kept and never made twice.

    Attributes:
        model: folder of a causal language model.
        text: JSON lines with "text": the first rows are the test, the last ones validation, those between training.
        held_out: rows of the test, and as many of validation.
        steps: optimizer steps of a run.
        batch_size: rows a step.
        max_length: tokens of a row that are read.
        target_modules: layers to adapt, by the end of their names.
        rank: of LoRA and of a chain's first link.
        seeds: paired seeds of the test.
        tuning_seeds: seeds on which learning rates are chosen; the test uses none of them.
        rates: learning rates in a method's first grid.
        extensions: how often a grid may grow by one rate where the best lies at its edge.
        workers: processes that train at the same time; the results do not depend on it.
        scheduler: address of a Dask scheduler whose workers train instead, such as tcp://host:8786.
        out: folder for finished runs, figures and report.
    """

    model: Path
    text: Path
    held_out: int = 300
    steps: int = 300
    batch_size: int = 4
    max_length: int = 256
    target_modules: tuple[str, ...] = ("q_proj", "v_proj")
    rank: int = 4
    seeds: int = 8
    tuning_seeds: int = 2
    rates: int = 4
    extensions: int = 4
    workers: int = 2
    scheduler: str | None = None
    out: Path = Path("results/adaptation")


PRESETS = {
    "smoke": Config(
        tyro.MISSING, tyro.MISSING, held_out=8, steps=15, max_length=32, rank=2, seeds=3, tuning_seeds=1, rates=1, extensions=0,
        workers=1,
    ),
}  # fmt: skip


def run(config: Config) -> None:
    """Chooses learning rates, tests, builds the report from the records and prints its tables.

    Args:
        config: sizes and places.

    Raises:
        UsageError: a size is too small, or a file is not usable.
    """
    from experiments.starting import open_folder, prepare

    prepare(config, LEAST)
    from experiments.adapting import Contest, contenders
    from experiments.errors import UsageError
    from experiments.pages import adaptation as page
    from experiments.store import Store
    from experiments.sweep import Sweep
    from experiments.tasks.adaptation import Adaptation
    from experiments.workers import reach

    if not config.model.is_dir():
        raise UsageError(f"--model {config.model}: there is no such folder; give one that `save_pretrained` has written.")
    if not config.target_modules:
        raise UsageError("--target-modules: give the names of layers to adapt, such as q_proj v_proj.")
    problem = Adaptation(
        str(config.model),
        str(config.text),
        config.steps,
        config.batch_size,
        config.max_length,
        config.held_out,
        config.target_modules,
    )
    _ = problem.rows("train"), problem.watched  # a wrong file is told of before a folder is made
    contest = Contest(problem, contenders(config.rank))
    reach(config.scheduler)
    folder = open_folder(config)
    sweep = Sweep(folder.path / "runs.sqlite", config.workers, config.scheduler)
    choices = choose_rates(contest, sweep, config)
    folder.write_json("tuning.json", {method: choice.scores for method, choice in choices.items()})
    folder.write_json("untouched.json", {"perplexity": problem.evaluate(problem.model()), "rows": len(problem.rows("train"))})
    tests = [
        contest.run(method.label, choices[method.label].rate, seed)
        for seed in range(config.tuning_seeds, config.tuning_seeds + config.seeds)
        for method in contest.methods
    ]
    rows = sweep.rows(tests, "tests")
    folder.replace_rows("runs.jsonl", [row | {"lr": run.method.lr} for row, run in zip(rows, tests, strict=True)])
    kept = Store(sweep.store).rows().values()
    folder.write_json("spent.json", {"runs": len(kept), "hours": sum(row["seconds"] for row in kept) / 3600})
    page.build(folder)
    show(folder)


def choose_rates(contest: Contest, sweep: Sweep, config: Config) -> dict[str, Choice]:
    """Each method's learning rate, by its mean perplexity on the validation rows.

    Args:
        contest: the methods.
        sweep: makes the runs.
        config: grids and seeds.

    Returns:
        The choices by the methods' labels.
    """
    from experiments.tuning import grid, means, tune

    def score(wanted: Sequence[tuple[str, float]]) -> list[float]:
        runs = [contest.run(label, lr, seed) for label, lr in wanted for seed in range(config.tuning_seeds)]
        rows: list[dict[str, Any]] = sweep.rows(runs, "learning rates")
        return means(rows, [config.tuning_seeds] * len(wanted), "validation")

    grids = {method.label: grid(method.lr, config.rates) for method in contest.methods}
    return tune(grids, score, extensions=config.extensions)


def show(folder) -> None:
    """Prints the table, the findings and where the report lies."""
    from experiments.pages import adaptation as page

    results = page.collect(folder)
    print(f"\n{results.table().to_text()}", *page.findings(results), sep="\n  ")
    print(f"\nReport: {folder.path / 'report.html'}")
