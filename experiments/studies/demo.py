"""When does a chain of LoRA pay? Digits, a matrix and a tiny Llama, in under three minutes and without a download."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from experiments.compare import Run
    from experiments.methods import Method


@dataclass(frozen=True)
class Config:
    """Compare chains with LoRA on small real problems and check the exported adapter.

    Attributes:
        seeds: paired seeds of the digits and the matrix problems.
        language_seeds: paired seeds of the language model.
        epochs: passes over the digits.
        matrix_steps: optimizer steps of the matrix problems.
        pretraining_steps: steps of the tiny Llama on English.
        adaptation_steps: steps of its adaptation to Python source.
        workers: processes that train at the same time; the results do not depend on it.
        out: folder for records, figures, adapter and report.
    """

    seeds: int = 8
    language_seeds: int = 3
    epochs: int = 20
    matrix_steps: int = 600
    pretraining_steps: int = 400
    adaptation_steps: int = 300
    workers: int = 2
    out: Path = Path("results/demo")


PRESETS = {
    "smoke": Config(seeds=2, language_seeds=2, epochs=1, matrix_steps=20, pretraining_steps=6, adaptation_steps=6, workers=1)
}


def run(config: Config) -> None:
    """Trains, writes the records, builds the report from them and prints its tables.

    Args:
        config: sizes and places.

    Raises:
        UsageError: a size is not positive.
    """
    from experiments.starting import english_llama, open_folder, prepare

    prepare(config)

    from experiments.compare import execute
    from experiments.pages import demo as page
    from experiments.progress import progress
    from experiments.workers import spread

    folder = open_folder(config)
    base = folder.path / "base.pt"
    pretraining = english_llama(base, config.pretraining_steps)
    folder.write_json("pretraining.json", {"losses": pretraining})

    runs = plan(config, base)
    with progress(total=len(runs), description="LoRA, chains and controls", unit="run") as bar:
        rows = spread(execute, runs, workers=config.workers, on_done=lambda row: bar.update())
    folder.replace_rows("runs.jsonl", rows)
    page.build(folder)
    show(folder)


def plan(config: Config, base: Path) -> list[Run]:
    """Every run of the demo: problems x methods x seeds.

    Learning rates were chosen once, from three values each and with other seeds than these: the digits' on their validation
    images, the language model's on its held-out text.

    Args:
        config: sizes and places.
        base: the pretrained tiny Llama.

    Returns:
        The runs, the longest first so that no worker is left alone with one at the end.
    """
    from experiments.compare import Run
    from experiments.methods import ChainKeepingAdam, ChainOfLoRA, FullFineTuning, LoRA, chain_with_decay
    from experiments.tasks.digits import Digits
    from experiments.tasks.pydoc_text import Source
    from experiments.tasks.regression import Regression
    from fwlora import Evenly

    on_source: list[Method] = [LoRA("LoRA r=2", 2e-2, 2), ChainOfLoRA("chain of 3", 2e-2, 2, Evenly(3))]
    on_digits: list[Method] = [
        LoRA("LoRA r=1", 2e-2, 1),
        *(ChainOfLoRA(f"chain of {links}", 2e-2, 1, Evenly(links)) for links in (2, 3, 5)),
        chain_with_decay("chain of 5, Decay", 2e-2, 1, Evenly(5), warmup=5),
        ChainKeepingAdam("chain of 5, Adam state kept", 2e-2, 1, 5),
        LoRA("LoRA r=5", 2e-2, 5),
        FullFineTuning("full fine-tuning", 1e-2),
    ]
    on_matrices: list[Method] = [LoRA("LoRA r=2", 1e-2, 2), *(ChainOfLoRA(f"chain of {n}", 1e-2, 2, Evenly(n)) for n in (3, 5))]
    source = Source(str(base), steps=config.adaptation_steps)
    adapter = str(config.out / "adapter")
    exported = on_source[-1]
    runs = [
        Run(source, method, seed, export_to=adapter if method is exported and seed == 0 else None)
        for seed in range(config.language_seeds)
        for method in on_source
    ]
    runs += [Run(Digits(epochs=config.epochs), method, seed) for seed in range(config.seeds) for method in on_digits]
    for true_rank in (2, 16):
        problem = Regression(true_rank, steps=config.matrix_steps)
        runs += [Run(problem, method, seed) for seed in range(config.seeds) for method in on_matrices]
    return runs


def show(folder) -> None:
    """Prints the tables, the findings and where the report lies."""
    from experiments.pages import demo as page

    problems = page.collect(folder.rows("runs.jsonl"))
    for results in problems.values():
        print(f"\n{page.describe_problem(results)}\n{results.table().to_text()}")
    wins, others = page.findings(problems)
    print("\nWhere the chain wins", *wins, sep="\n  ")
    print("\nWhere it does not", *others, sep="\n  ")
    exports = [row["export"] for row in folder.rows("runs.jsonl") if row["export"]]
    print("\nThe export", *map(page.export_sentence, exports), sep="\n  ")
    print(f"\nReport: {folder.path / 'report.html'}")
