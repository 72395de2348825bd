"""A study under the paper's protocol, from its options to its report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from experiments.errors import UsageError
from experiments.pages import paper as page
from experiments.pages.paper_results import collect, forecast
from experiments.planning import Cell, Entries, plan
from experiments.protocol import ProtocolOptions, check
from experiments.starting import open_folder, prepare
from experiments.sweep import Sweep
from experiments.workers import reach


def carry_out(config: Any, entries: Entries, *, title: str, lead: str) -> None:
    """A whole study: its plan, its runs or those that are finished already, its report and what is printed.

    Args:
        config: with `protocol` and `out`.
        entries: the methods.
        title: of the page.
        lead: one sentence on it.

    Raises:
        UsageError: an option, a file or the model is not usable.
    """
    options: ProtocolOptions = config.protocol
    check(options)
    prepare(config, hub=True)
    if options.device == "cuda" and not torch.cuda.is_available() and not options.dry_run:
        raise UsageError("--device cuda: torch finds no CUDA device here; give --device cpu, or --dry-run for the plan alone.")
    entries(options, options.max_steps or 1)  # a wrong name is told before data and models are read
    cells = plan(options, entries)
    if options.dry_run:
        print(forecast([cell.record() for cell in cells], len(options.lrs) * options.seeds))
        return
    reach(options.scheduler)
    folder = open_folder(config)
    sweep = Sweep(folder.path / "runs.sqlite", options.workers, options.scheduler)
    rows = conduct(cells, options, sweep)
    folder.write_json("plan.json", [cell.record() for cell in cells])
    folder.replace_rows("runs.jsonl", rows)
    page.build(folder, title, lead)
    results = collect(folder)
    print(f"\n{results.overview().to_text()}\n", *page.findings(results), sep="\n  ")
    print(f"\nReport: {folder.path / 'report.html'}")


def conduct(cells: Sequence[Cell], options: ProtocolOptions, sweep: Sweep) -> list[dict[str, Any]]:
    """Makes the runs, or finds them made.

    Args:
        cells: of the plan.
        options: the protocol.
        sweep: keeps and makes runs.

    Returns:
        A row a run, with its rate.
    """
    # The cheapest first: a sweep that is cut off has kept as many as it could.
    runs = [run for cell in sorted(cells, key=lambda cell: cell.flops) for run in cell.runs(options)]
    rows = sweep.rows(runs, "fine-tuning")
    return [
        row | {"task": run.problem.name, "label": run.method.label, "lr": run.method.lr, "seed": run.seed}
        for row, run in zip(rows, runs, strict=True)
    ]
