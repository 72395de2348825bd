"""The page on memory: what each method holds beside LoRA and the frozen model, from records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from experiments.accounting import targets
from experiments.accounting.targets import MIB
from experiments.pages.memory_figures import dots, stacked
from experiments.pages.memory_targets import judged, why
from experiments.pages.running import command_of, sizes
from experiments.pages.weighings import CHAIN, FLOOR, LORA, STATE, Weighing, collect
from experiments.records import RunFolder
from experiments.report import Page, Table, describe
from experiments.studies.memory import Config

Row = Mapping[str, Any]
HEADINGS = (
    "method", *(f"{heading} [MiB]" for heading in STATE.values()), "kept by autograd [MiB]", "of LoRA's",
    "before the logits [MiB]", "of LoRA's", "on the host [MiB]", "estimate", "peak [MiB]", "of LoRA's",
)  # fmt: skip


def build(folder: RunFolder) -> str:
    """Publishes the page from the folder's records.

    Args:
        folder: where the study wrote them.

    Returns:
        The page.
    """
    cases, config, machine = collect(folder), folder.read_json("config.json"), folder.read_json("machine.json")
    aims = judged(cases, config)
    page = Page("How much memory does a method hold?", f"{sizes(config)}; {config['steps']} steps on {machine['name']}.")
    page.findings([*targets.findings(aims), *why(cases, config), *findings(cases)])
    if aims:
        page.heading("Targets")
        page.table(targets.table(aims))
    for place, case in enumerate(cases):
        page.heading(case.label)
        page.table(table(case, estimated=not (config["autocast"] or config["checkpointing"])))
        if place == 0:
            page.figure(
                "memory", stacked(case), "Weights and what is held beside them in a step, by kind; temporaries left out."
            )
    if len(cases) > 1:
        page.figure("saved", dots(cases), "What autograd keeps for the backward pass, over LoRA's, case by case.")
    page.heading("How to read this")
    for text in reading(machine):
        page.paragraph(text)
    page.code(command_of("memory", config, Config()))
    return page.publish(folder, describe(folder.read_json("environment.json")))


def show(folder: RunFolder) -> None:
    """Prints the tables and the findings.

    Args:
        folder: where the records are.
    """
    cases, config = collect(folder), folder.read_json("config.json")
    for case in cases:
        print(f"\n{case.label}\n{table(case, estimated=not (config['autocast'] or config['checkpointing'])).to_text()}")
    aims = judged(cases, config)
    if aims:
        print(f"\n{targets.table(aims).to_text()}")
    said = [*targets.findings(aims), *why(cases, config), *findings(cases)]
    print("", *said, f"\nReport: {folder.path / 'report.html'}", sep="\n")


def table(case: Weighing, *, estimated: bool = True) -> Table:
    """All methods of a case; one that could not run has its reason in a cell."""
    cells = []
    for name in case.names:
        row = case.rows[name]
        if row["reason"] is not None:
            cells.append([name, row["reason"], *["-"] * (len(HEADINGS) - 2)])
            continue
        cells.append([
            name,
            *(size(row[kind]) for kind in STATE),
            size(row["kept_mean"]), number(case.ratio(name, LORA, "kept_mean")),
            size(row["body_mean"]), number(case.ratio(name, LORA, "body_mean")),
            size(row["host"]), agreement(row) if estimated and row["body"] is not None else "-",
            size(row["peak"], 0), number(case.ratio(name, LORA, "peak"), 2),
        ])  # fmt: skip
    return Table(HEADINGS, cells)


def size(value: float | None, digits: int = 2) -> str:
    """Bytes in MiB, or a dash where there are none."""
    return "-" if value is None else f"{value / MIB:,.{digits}f}"


def number(value: float | None, digits: int = 3) -> str:
    """A ratio, or a dash where there is none."""
    return "-" if value is None else f"{value:.{digits}f}"


def agreement(row: Row) -> str:
    """What was measured on the device over what the shapes said: gradients, optimizer and what is saved, together."""
    estimate = row["estimate"]
    expected = estimate["gradients"] + estimate["optimizer"] + estimate["activations"]
    return f"{(row['gradients'] + row['optimizer'] + row['saved']) / expected:.3f}"


def findings(cases: Sequence[Weighing]) -> list[str]:
    """What the numbers say: the chain in every case, and every method against LoRA in the first."""
    said = [sentence for case in cases for sentence in chains(case)]
    for name in cases[0].names if cases else ():
        row = cases[0].rows[name]
        if row["reason"] is not None:
            said.append(f"{name}, {cases[0].label}: not measured; {row['reason']}.")
        elif name not in {LORA, FLOOR, CHAIN} and cases[0].ran(LORA):
            said.append(f"{name}, {cases[0].label}: {_against_lora(cases[0], name)}.")
    return said


def chains(case: Weighing) -> list[str]:
    """What a chain holds in one case."""
    if not case.ran(LORA):
        reason = case.rows[LORA]["reason"] if LORA in case.rows else "LoRA took no part"
        return [f"{case.label}: nothing to compare with; {reason}."]
    if CHAIN in case.rows and not case.ran(CHAIN):
        return [f"{case.label}: the chain is not measured; {case.rows[CHAIN]['reason']}."]
    floor = case.ratio(LORA, FLOOR, "kept")
    beside = "" if floor is None else f" Under LoRA autograd keeps {floor:.2f} times what it keeps under the frozen floor."
    return [f"{case.label}: a chain holds {_against_lora(case, CHAIN)}.{beside}"] if CHAIN in case.rows else []


def _against_lora(case: Weighing, name: str) -> str:
    row, (state, kept, peak) = case.rows[name], (
        case.ratio(name, LORA, *kinds) for kinds in (tuple(STATE), ("kept_mean",), ("peak",))
    )  # fmt: skip
    most = "" if row["blocks"] == 1 else f" (at most {size(row['kept'])} MiB, over its blocks {size(row['kept_mean'])} MiB)"
    early = case.ratio(name, LORA, "peak_body")
    before = "" if early is None else f", {early:.2f} before the logits"
    highest = "" if peak is None else f", and its peak above the weights is {peak:.2f} of LoRA's{before}"
    beside = f"; {size(row['host'])} MiB lie on the host" if row["host"] else ""
    return (
        f"{number(state, 2)} of LoRA's trained parameters, gradients and optimizer, {number(kept, 2)} of what autograd keeps "
        f"under LoRA{most}{highest}{beside}"
    )


def reading(machine: Mapping[str, Any]) -> list[str]:
    """How the numbers came about."""
    on_cuda = machine["device"].startswith("cuda")
    peak = (
        "what torch allocated on the device at most"
        if on_cuda
        else "the most that a process of its own had resident above what it had before the model was made"
    )
    emptied = " Its package empties CUDA's cache at every step." if on_cuda else ""
    knots = "" if on_cuda else " It has the knots in it, on whose host, here the same machine, the links are kept."
    return [
        "Weights and tokens are random. Kept by autograd are the storages that it saves for the backward pass in a forward "
        "pass, each once and parameters left out: not the logits, which whoever calls the model holds, where the loss has a "
        "copy of its own. Targets are judged by it. Before the logits is what of it is there when the head is called. Where "
        "one part of the model learns after another, both are the mean over the parts, and there is none if a part had no "
        "turn. The optimizer's state is the most over the steps. On the host lie a chain's retired links and, for a "
        "half-precision base, the rounding errors of the merged weights, one byte each.",
        "The frozen floor is the model without adapters, forward and backward to the output of its embeddings. LoRA is PEFT's "
        "default, float32 factors on the base as it is. Full fine-tuning and GaLore hold half-precision weights in float32: "
        "their steps would be lost in them otherwise. GaLore, half-precision weights, holds them as they are, as its authors "
        "do. BAdam holds a float32 copy of one layer." + emptied,
        "The estimate's column is measured over estimated, from shapes, without the weights: gradients, optimizer, what is "
        "kept and the logits, for the part of the model that holds most.",
        f"The peak is {peak}, less the base's weights; temporaries are included.{knots}",
    ]
