"""Does the gap fall while a chain trains? A tiny Llama under Algorithms 1 and 2, measured at every knot."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from experiments.tracking import Plan, Work

LEAST = {"seed": 0, "links": 2, "batches": 4, "windows": 64}


@dataclass(frozen=True)
class Config:
    """Track gap, alignment and ranks of a language model's chain, and hold them against the theorems and the dense gradient.

    Attributes:
        links: links of a run, each with a knot at its end.
        link_steps: optimizer steps of a link.
        rank: of a link.
        lr: peak learning rate of a link.
        batches: fresh minibatches of a measurement, of 16 windows each like the training's.
        windows: held-out windows that the loss is about.
        curved: of them, those that the Hessian is taken over.
        pretraining_steps: steps of the tiny Llama on English.
        seed: of the data's order, the draws and the measurements.
        workers: processes that train at the same time; but for times, the results do not depend on it.
        out: folder for records, figures and report.
    """

    links: int = 8
    link_steps: int = 100
    rank: int = 2
    lr: float = 1e-2
    batches: int = 32
    windows: int = 512
    curved: int = 64
    pretraining_steps: int = 400
    seed: int = 0
    workers: int = 2
    out: Path = Path("results/gap-tracking")


PRESETS = {"smoke": Config(links=2, link_steps=4, batches=4, windows=64, curved=2, pretraining_steps=4, workers=1)}


def run(config: Config) -> None:
    """Trains, measures, builds the report from the records and prints its tables.

    Args:
        config: sizes and places.

    Raises:
        UsageError: a size is too small.
    """
    from experiments.errors import UsageError
    from experiments.starting import english_llama, open_folder, prepare

    prepare(config, LEAST)
    if not 0 < config.lr < float("inf"):
        raise UsageError(f"--lr {config.lr}: give a learning rate above 0.")

    from experiments.pages import gap_tracking as page
    from experiments.progress import progress
    from experiments.tracking import HeldOut, Plan, scout, track
    from experiments.workers import spread

    folder = open_folder(config)
    base = folder.path / "base.pt"
    english_llama(base, config.pretraining_steps)

    problem = HeldOut(str(base), steps=config.links * config.link_steps, evaluated=config.windows)
    plan = Plan(problem, config.lr, config.rank, config.links, config.link_steps, config.batches, config.curved, config.seed)
    with progress(total=4, description="a scout, then three runs", unit="run") as bar:
        scouted = scout(plan)
        bar.update()
        rows = spread(track, works(plan, scouted), workers=config.workers, on_done=lambda row: bar.update())
    folder.write_json("scout.json", scouted)
    folder.replace_rows("runs.jsonl", rows)
    page.build(folder)
    show(folder)


def works(plan: Plan, scouted: dict[str, Any]) -> list[Work]:
    """Algorithm 1, and Algorithm 2 with two step sizes, all in one set.

    The radius is the largest norm that a site's total update had at a knot of the scout: then Algorithm 1 stays in the set, up
    to its boundary. One step size of Algorithm 2 moves each site as far as the scout's links did on average; the other is that
    of Theorem C, with the scout's estimate of beta and with the loss at the start for what it can fall by.

    Args:
        plan: what the runs share.
        scouted: what an unmeasured run of Algorithm 1 found.

    Returns:
        The runs.
    """
    from experiments.tracking import Work
    from fwlora import Add, Centred, FrankWolfe, SupportBall

    ball = SupportBall(scouted["reach"], plan.rank)
    centred = Centred(max(scouted["curvatures"]), scouted["losses"][0], plan.links)
    return [
        Work(plan, "Algorithm 1", Add(), ball),
        Work(plan, "Algorithm 2, links' own length", FrankWolfe(ball, scouted["link"] / scouted["reach"]), ball),
        Work(plan, "Algorithm 2, Theorem C's step", FrankWolfe(ball, centred), ball),
    ]


def show(folder) -> None:
    """Prints the tables, the findings and where the report lies."""
    from experiments.pages import gap_tracking as page

    runs, scouted = folder.rows("runs.jsonl"), folder.read_json("scout.json")
    for run in runs:
        print(f"\n{run['label']}", *(table.to_text() for table in page.tables(run)), sep="\n\n")
    for title, sentences in page.findings(runs, scouted).items():
        print(f"\n{title}", *sentences, sep="\n  ")
    print(f"\nReport: {folder.path / 'report.html'}")
