"""How fast does Frank-Wolfe complete a large matrix? Factors and Lanczos beside svds and copt, each in its own process."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from experiments.completion_contenders import Contest


@dataclass(frozen=True)
class Config:
    """Time matrix completion on a seeded synthetic of the size of MovieLens-1M, on one thread.

    Attributes:
        rows: of the matrix.
        columns: of the matrix.
        entries: observed ones, at most a quarter of all.
        rank: of the planted matrix.
        noise: standard deviation of what is added to its entries.
        seed: of the instance.
        iterations: short steps of the contenders that keep factors.
        copt_iterations: short steps of copt, whose points are dense.
        lanczos_steps: pairs of products of one answer.
        repeats: of the whole, contenders taking turns.
        out: folder for records, figure and report.
    """

    rows: int = 6040
    columns: int = 3706
    entries: int = 1_000_000
    rank: int = 10
    noise: float = 0.5
    seed: int = 0
    iterations: int = 100
    copt_iterations: int = 5
    lanczos_steps: int = 10
    repeats: int = 2
    out: Path = Path("results/completion-speed")


PRESETS = {"smoke": Config(rows=60, columns=40, entries=500, rank=3, iterations=25, copt_iterations=25, repeats=1)}


def run(config: Config) -> None:
    """Measures, writes the records, builds the report from them and prints its table.

    Args:
        config: sizes and places.

    Raises:
        UsageError: a size is not positive, or too many entries are asked for.
    """
    import os

    from experiments.errors import UsageError

    for name, value in vars(config).items():
        if isinstance(value, int) and value < (0 if name == "seed" else 2 if name.endswith("iterations") else 1):
            least = "at least 2: the first iteration is told apart" if name.endswith("iterations") else "a larger number"
            raise UsageError(f"--{name.replace('_', '-')} {value}: give {least}.")
    if 4 * config.entries > config.rows * config.columns:
        raise UsageError(f"--entries {config.entries}: give at most a quarter of {config.rows} x {config.columns}.")
    if not 0 <= config.noise < float("inf"):
        raise UsageError(f"--noise {config.noise}: give a finite number of at least 0.")
    # Before numpy is imported, here and in the children: a thread pool is sized once.
    os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"))

    from experiments import completion_contenders
    from experiments.pages import completion_speed as page
    from experiments.progress import progress
    from experiments.records import RunFolder, environment

    folder = RunFolder(config.out)
    folder.write_json("config.json", config)
    folder.write_json("environment.json", environment())
    contests = plan(config)
    rows = []
    with progress(total=len(contests), description="completion", unit="run") as bar:
        for contest in contests:
            bar.set_postfix_str(contest.contender)
            rows.append(completion_contenders.isolated(contest))
            bar.update()
    folder.replace_rows("runs.jsonl", rows)
    page.build(folder)
    results = page.collect(rows)
    print(f"\n{page.table(results).to_text()}\n", *page.findings(results), f"\nReport: {folder.path / 'report.html'}", sep="\n")


def plan(config: Config) -> list[Contest]:
    """Every run, contenders taking turns: what slows the machine for a while slows them all.

    Args:
        config: sizes.

    Returns:
        The runs.
    """
    from experiments.completion_contenders import CONTENDERS, COPT, Contest

    return [
        Contest(
            contender, config.seed, (config.rows, config.columns), config.entries, config.rank, config.noise,
            config.copt_iterations if contender == COPT else config.iterations, config.lanczos_steps, repeat,
        )
        for repeat in range(config.repeats)
        for contender in CONTENDERS
    ]  # fmt: skip
