"""Does "sublinear drift suffices" hold? Theorem E on a target that turns, with steps tuned to the drift and not."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Config:
    """Follow a moving target with three step sizes, at speeds that fall as T^-a.

    Attributes:
        exponents: the a; the drift of a whole run grows as T^(1 - a).
        horizons: lengths of the runs, at least two.
        seed: of the target.
        workers: processes; the results do not depend on it.
        out: folder for records, figure and report.
    """

    exponents: tuple[float, ...] = (1.0, 0.5, 0.25, 0.0)
    horizons: tuple[int, ...] = (10, 30, 100, 300, 1000, 3000)
    seed: int = 0
    workers: int = 2
    out: Path = Path("results/drift")


PRESETS = {"smoke": Config(exponents=(0.5,), horizons=(3, 6), workers=1)}


def run(config: Config) -> None:
    """Runs, checks, writes the report and prints its table.

    Args:
        config: sizes and places.

    Raises:
        UsageError: an option has no meaning.
        Refuted: Theorem E or an invariant was violated.
    """
    from experiments.errors import Refuted, UsageError

    if len(set(config.horizons)) < 2 or min(config.horizons) < 1:
        raise UsageError(f"--horizons {' '.join(map(str, config.horizons))}: give two different numbers of at least 1.")
    if not config.exponents or min(config.exponents) < 0:
        raise UsageError(f"--exponents {' '.join(map(str, config.exponents))}: give numbers of at least 0.")
    if config.workers < 1:
        raise UsageError(f"--workers {config.workers}: give a number of at least 1.")
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # one thread a process, before numpy is loaded

    from experiments import drifting
    from experiments.pages import drift as page
    from experiments.progress import progress
    from experiments.records import RunFolder, environment
    from experiments.workers import spread

    folder = RunFolder(config.out)
    folder.write_json("config.json", config)
    folder.write_json("environment.json", environment())
    works = [
        drifting.Work(exponent, rule, T, config.seed)
        for T in sorted(config.horizons, reverse=True)  # the longest first, so that no worker is left alone with one
        for exponent in config.exponents
        for rule in drifting.RULES
    ]
    with progress(total=len(works), description="moving targets", unit="run") as bar:
        rows = spread(drifting.execute, works, workers=config.workers, on_done=lambda row: bar.update())
    folder.replace_rows("runs.jsonl", rows)
    page.build(folder)
    print(f"\n{page.table(rows).to_text()}\n", *page.findings(rows), f"\nReport: {folder.path / 'report.html'}", sep="\n")
    found = page.violations(rows)
    if found:
        raise Refuted("; ".join(found))
