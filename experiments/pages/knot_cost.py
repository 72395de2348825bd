"""The page on a knot's cost: time, memory and what arrives, beside PEFT's merges, from records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from experiments.accounting import targets
from experiments.accounting.targets import MIB
from experiments.pages.knot_targets import judged
from experiments.pages.running import command_of, sizes
from experiments.pages.ties import CHAIN, FIRST, MERGE, STEP, Ties, collect
from experiments.plots import COLOURS, canvas, png
from experiments.records import RunFolder
from experiments.report import Page, Table, describe
from experiments.studies.knot_cost import Config

Gain = Mapping[str, Any]
HEADINGS = ("way", "time [ms]", "steps of LoRA", "quartiles", "of PEFT's merge()", "transient [MiB]", "largest weights")


def build(folder: RunFolder) -> str:
    """Publishes the page from the folder's records.

    Args:
        folder: where the study wrote them.

    Returns:
        The page.
    """
    cases, gains = collect(folder), folder.rows("gains.jsonl")
    config, machine = folder.read_json("config.json"), folder.read_json("machine.json")
    aims = judged(cases, gains, config)
    page = Page("What does a knot cost?", f"{sizes(config)}; {config['knots']} knots a case on {machine['name']}.")
    page.findings([*targets.findings(aims), *findings(cases, gains)])
    page.heading("Targets")
    page.table(targets.table(aims))
    for case in cases:
        page.heading(case.label)
        page.table(table(case))
    if any(case.reason is None for case in cases):
        page.figure("knots", times(cases), "Every merge in steps of LoRA of its round. Line: median.")
    page.heading("What arrives in bf16")
    page.table(gain_table(gains))
    page.figure(
        "gains", curves(gains), "The part of all merges that is in the weights, by the length of each merge over theirs."
    )
    page.heading("How to read this")
    for text in reading(cases, config, machine):
        page.paragraph(text)
    page.code(command_of("knot-cost", config, Config()))
    return page.publish(folder, describe(folder.read_json("environment.json")))


def show(folder: RunFolder) -> None:
    """Prints the tables and the findings.

    Args:
        folder: where the records are.
    """
    cases, gains = collect(folder), folder.rows("gains.jsonl")
    for case in cases:
        print(f"\n{case.label}\n{table(case).to_text()}")
    aims = judged(cases, gains, folder.read_json("config.json"))
    print(f"\n{gain_table(gains).to_text()}\n\n{targets.table(aims).to_text()}")
    said = [*targets.findings(aims), *findings(cases, gains)]
    print("", *said, f"\nReport: {folder.path / 'report.html'}", sep="\n")


def table(case: Ties) -> Table:
    """LoRA's step, and all ways to merge; or the reason why there is nothing."""
    if case.reason is not None:
        return Table(HEADINGS, [[way, case.reason, *["-"] * (len(HEADINGS) - 2)] for way in case.rows])
    rows = [[STEP, f"{1e3 * np.median(case.seconds(STEP)):.2f}", "1", "-", "-", "-", "-"]]
    for way in case.ways:
        low, high = np.quantile(case.steps(way), (0.25, 0.75))
        rows.append([
            way, f"{1e3 * np.median(case.seconds(way)):.2f}", f"{case.typical(way):.4f}", f"{low:.4f} to {high:.4f}",
            f"{case.typical(way) / case.typical(MERGE):.2f}", f"{case.transient(way) / MIB:.2f}",
            f"{case.transient(way) / case.rows[way]['largest']:.2f}",
        ])  # fmt: skip
    return Table(HEADINGS, rows)


def gain_table(gains: Sequence[Gain]) -> Table:
    """What arrived, and how far the weights are from what was asked."""
    return Table(
        ("way", "|dW|/|W| of a merge", "merges", "realised gain", "error"),
        [
            [row["way"], f"{row['relative']:g}", str(row["merges"]), f"{row['gain']:.4f}", f"{row['error']:.3f}"]
            for row in gains
        ],
    )


def findings(cases: Sequence[Ties], gains: Sequence[Gain]) -> list[str]:
    """What the numbers say: a knot against PEFT's merge in every case, and what stays of small merges."""
    said = []
    for case in cases:
        if case.reason is not None:
            said.append(f"{case.label}: not measured; {case.reason}.")
            continue
        said.append(
            f"{case.label}: a knot takes {case.typical(CHAIN):.3f} steps of LoRA, the first one {case.typical(FIRST):.3f}, and "
            f"holds {case.transient(CHAIN) / MIB:.2f} MiB for a while ({case.transient(FIRST) / MIB:.2f} MiB the first); "
            f"PEFT's merge() takes {case.typical(MERGE):.3f} steps and holds {case.transient(MERGE) / MIB:.2f} MiB."
        )
    found = {(row["way"], row["relative"], row["merges"]): row["gain"] for row in gains}
    for length in dict.fromkeys(row["relative"] for row in gains):
        most = max(row["merges"] for row in gains)
        said.append(
            f"|dW|/|W| = {length:g}: of {most} merges {found[CHAIN, length, most]:.3f} is in bf16 weights under a chain, and "
            f"{found[MERGE, length, most]:.3f} under PEFT's merge()."
        )
    return said


def reading(cases: Sequence[Ties], config: Mapping[str, Any], machine: Mapping[str, Any]) -> list[str]:
    """How the numbers came about."""
    on_cuda = machine["device"].startswith("cuda")
    clock = "wall time, the device waited for" if on_cuda else "processor time on one thread"
    held = (
        "what torch allocated at most beyond what was there before"
        if on_cuda
        else "the most bytes of tensors that operations make and that are gone afterwards; what a kernel allocates for itself "
        "is not seen"
    )
    return [
        f"Weights and tokens are random; times are {clock}. In every round a step of PEFT's LoRA, optimizer included, and a "
        "merge by every way take turns, in an order that changes from round to round, on factors drawn anew; the ratio is to "
        "the round's step. A chain's knot is all of `tie_knot()`: checks, norms, copies of the retired link for the host, the "
        "merge, with error feedback where weights are in half precision, fresh factors, the state of Adam, which has taken a "
        "step, forgotten, and a record. A first knot also takes "
        f"fingerprints of the original weights and makes room for rounding errors; {config['firsts']} were timed. PEFT's "
        "merges only add: what a loop needs beside, such as fresh factors, is not in them. addmm_ is a loop over the layers in "
        "the weights' own precision, in place: what a knot could cost at least, without a look at what is lost.",
        f"Transient memory is {held}. The retired link's copies stay and do not count.",
        f"What arrives is measured on one bf16 weight of {config['size']} x {config['size']}, normal with deviation 0.02, rank "
        f"{config['rank']}, each merge a fresh independent direction: the change of the stored weight along the sum of what "
        "was asked, in float64, over that sum; and the length of the difference over the sum's. A chain's rounding errors, "
        "which it keeps and gives back at the next merge, are not counted as arrived.",
    ]


def times(cases: Sequence[Ties]) -> bytes:
    """A line for each case, on it a dot for each merge by each way.

    Args:
        cases: those that were run are drawn.

    Returns:
        A PNG.
    """
    shown = [case for case in cases if case.reason is None]
    figure, axes = canvas(7.2, 0.5 * len(shown) + 1.6)
    for colour, way in zip(COLOURS, shown[0].ways, strict=False):
        for place, case in enumerate(shown):
            steps = case.steps(way)
            axes.plot(steps, np.full(len(steps), place), "o", color=colour, alpha=0.3, markersize=4, markeredgewidth=0)
            axes.plot([np.median(steps)] * 2, [place - 0.3, place + 0.3], color=colour, linewidth=2)
        axes.plot([], [], "o", color=colour, label=way)
    axes.set_yticks(range(len(shown)), [case.label for case in shown])
    axes.set(xlabel="steps of LoRA", xscale="log", ylim=(len(shown) - 0.5, -0.5))
    axes.grid(axis="y", visible=False)
    # Numbers, not powers of ten, and some within a decade.
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    figure.legend(loc="outside lower center", ncols=3)
    return png(figure)


def curves(gains: Sequence[Gain]) -> bytes:
    """The gain against the number of merges.

    Args:
        gains: of all ways and lengths.

    Returns:
        A PNG.
    """
    figure, axes = canvas(7.2, 3.6)
    lengths = list(dict.fromkeys(row["relative"] for row in gains))
    for way, style in ((CHAIN, "o-"), (MERGE, "s--")):
        for colour, length in zip(COLOURS, lengths, strict=False):
            found = [(row["merges"], row["gain"]) for row in gains if (row["way"], row["relative"]) == (way, length)]
            axes.plot(*zip(*found, strict=True), style, color=colour, label=f"{way}, |dW|/|W| = {length:g}", markersize=4.5)
    axes.set(xlabel="merges", ylabel="realised gain", ylim=(0, 1.05))
    figure.legend(loc="outside lower center", ncols=2)
    return png(figure)
