"""Do the theorems hold on runs, and how much do they give away? Every testbed, step size and horizon."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Config:
    """Run Frank-Wolfe and the chain on every testbed and hold each run against every theorem that speaks of it.

    Attributes:
        horizons: lengths of the runs.
        links: lengths of the chains.
        testbeds: their names; by default all.
        seed: of their draws.
        workers: processes; the results do not depend on it.
        out: folder for records, figures and report.
    """

    horizons: tuple[int, ...] = (10, 100, 1000)
    links: tuple[int, ...] = (10, 100)
    testbeds: tuple[str, ...] = ()
    seed: int = 0
    workers: int = 2
    out: Path = Path("results/convergence")


PRESETS = {"smoke": Config(horizons=(2, 8), links=(2,), testbeds=("TrustRegion", "WorstCase"), workers=1)}


def run(config: Config) -> None:
    """Audits the constants, runs, checks, writes the report and prints its table.

    Args:
        config: sizes and places.

    Raises:
        UsageError: a size is not positive, or a testbed does not exist.
        Refuted: a theorem, an invariant or a constant was violated.
    """
    from experiments.errors import Refuted, UsageError

    for name, value in (("horizons", config.horizons), ("links", config.links), ("workers", (config.workers,))):
        if not value or min(value) < 1:
            raise UsageError(f"--{name} {' '.join(map(str, value))}: give numbers of at least 1.")
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # one thread a process, before numpy is loaded

    from experiments import convergence
    from experiments.pages import convergence as page
    from experiments.progress import progress
    from experiments.records import RunFolder, environment
    from experiments.workers import spread

    works = convergence.plan(config.horizons, config.links, config.seed, config.testbeds)
    folder = RunFolder(config.out)
    folder.write_json("config.json", config)
    folder.write_json("environment.json", environment())
    with progress(total=len(works), description="testbeds and step sizes", unit="run") as bar:

        def advance(row: dict[str, Any]) -> None:
            bar.update()

        rows = spread(convergence.execute, works, workers=config.workers, on_done=advance)
    folder.replace_rows("runs.jsonl", rows)
    page.build(folder)
    for title, table in page.tables(rows):
        print(f"\n{title}\n{table.to_text()}")
    print(f"\nReport: {folder.path / 'report.html'}")
    found = page.violations(rows)
    if found:
        raise Refuted("; ".join(found))
    print(f"No theorem, invariant or constant was violated in {len(rows)} groups of runs.")
