"""The page on memory: what each method holds beside LoRA and the frozen model, from records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from experiments.accounting import targets
from experiments.pages.memory_targets import judged, why
from experiments.pages.weighings import B_ONLY, BY_BLOCK, CHAIN, FLOOR, LORA, Weighing, collect
from experiments.plots import COLOURS, canvas, png
from experiments.records import RunFolder, plain
from experiments.report import Page, Table, describe
from experiments.studies.memory import Config

Row = Mapping[str, Any]
MB = 1e6
# Measured kinds, by their headings.
STATE = {"trained": "trained parameters", "gradients": "gradients", "optimizer": "optimizer"}
HEADINGS = (
    "method", *(f"{heading} [MB]" for heading in STATE.values()), "saved for backward [MB]", "of LoRA's",
    "before the logits [MB]", "of LoRA's", "on the host [MB]", "estimate", "peak [MB]", "of LoRA's",
)  # fmt: skip


def build(folder: RunFolder) -> str:
    """Publishes the page from the folder's records.

    Args:
        folder: where the study wrote them.

    Returns:
        The page.
    """
    cases, config, machine = collect(folder), folder.read_json("config.json"), folder.read_json("machine.json")
    aims = judged(cases)
    page = Page("How much memory does a method hold?", f"{sizes(config)}; {config['steps']} steps on {machine['name']}.")
    page.findings([*targets.findings(aims), *why(cases), *findings(cases)])
    if aims:
        page.heading("Targets")
        page.table(targets.table(aims))
    for place, case in enumerate(cases):
        page.heading(case.label)
        page.table(table(case, is_plain(config)))
        if place == 0:
            page.figure(
                "memory", stacked(case), "Weights and what is held beside them in a step, by kind; temporaries left out."
            )
    if len(cases) > 1:
        page.figure("saved", dots(cases), "What is saved for the backward pass, over what LoRA saves, case by case.")
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
        print(f"\n{case.label}\n{table(case, is_plain(config)).to_text()}")
    aims = judged(cases)
    if aims:
        print(f"\n{targets.table(aims).to_text()}")
    said = [*targets.findings(aims), *why(cases), *findings(cases)]
    print("", *said, f"\nReport: {folder.path / 'report.html'}", sep="\n")


def table(case: Weighing, estimated: bool = True) -> Table:
    """All methods of a case; one that could not run has its reason in a cell."""
    cells = []
    for name in case.names:
        row = case.rows[name]
        if row["reason"] is not None:
            cells.append([name, row["reason"], *["-"] * (len(HEADINGS) - 2)])
            continue
        cells.append([
            name,
            *(f"{row[kind] / MB:,.2f}" for kind in STATE),
            f"{row['mean'] / MB:,.2f}", number(case.ratio(name, LORA, "mean")),
            "-" if row["body_mean"] is None else f"{row['body_mean'] / MB:,.2f}", number(case.ratio(name, LORA, "body_mean")),
            f"{row['host'] / MB:,.2f}", agreement(row) if estimated and row["body"] is not None else "-",
            "-" if row["peak"] is None else f"{row['peak'] / MB:,.0f}", number(case.ratio(name, LORA, "peak"), 2),
        ])  # fmt: skip
    return Table(HEADINGS, cells)


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
    floor = case.ratio(LORA, FLOOR, "saved")
    beside = "" if floor is None else f" LoRA saves {floor:.2f} of what the frozen floor saves."
    return [f"{case.label}: a chain holds {_against_lora(case, CHAIN)}.{beside}"] if CHAIN in case.rows else []


def _against_lora(case: Weighing, name: str) -> str:
    row, (state, saved, peak) = case.rows[name], (
        case.ratio(name, LORA, *kinds) for kinds in (tuple(STATE), ("mean",), ("peak",))
    )  # fmt: skip
    most = (
        f" (at most {row['saved'] / MB:.1f} MB, over its blocks {row['mean'] / MB:.1f} MB)"
        if row["saved"] != row["mean"]
        else ""
    )
    early = case.ratio(name, LORA, "peak_body")
    before = "" if early is None else f", {early:.2f} before the logits"
    highest = "" if peak is None else f", and its peak above the weights is {peak:.2f} of LoRA's{before}"
    beside = f"; {row['host'] / MB:.2f} MB lie on the host" if row["host"] else ""
    return (
        f"{number(state, 2)} of LoRA's trained parameters, gradients and optimizer, {number(saved, 2)} of what LoRA saves for "
        f"the backward pass{most}{highest}{beside}"
    )


def reading(machine: Mapping[str, Any]) -> list[str]:
    """How the numbers came about."""
    on_cuda = machine["device"].startswith("cuda")
    peak = (
        "what torch allocated on the device at most"
        if on_cuda
        else "the most that a process of its own had resident above what it had before the model was made"
    )
    knots = "" if on_cuda else " It has the knots in it, on whose host, here the same machine, the links are kept."
    return [
        "Weights and tokens are random. What is saved for the backward pass are the storages that autograd keeps in a forward "
        "pass, each once and parameters left out, logits and loss included; before the logits, those that are there when the "
        "head is called. Targets are judged by what autograd itself keeps: not the logits, where the loss has a copy of its "
        "own. Where one part of the model learns after another, all are the mean over the parts. The optimizer's state is the "
        "most over the steps. On the host lie a chain's retired links and, for a half-precision base, the rounding errors of "
        "the merged weights, one byte each.",
        "The frozen floor is the model without adapters, forward and backward to the output of its embeddings. LoRA is PEFT's "
        "default, float32 factors on the base as it is.",
        "The estimate's column is measured over estimated, from shapes, without the weights: gradients, optimizer and what is "
        "saved, for the part of the model that holds most; BAdam begins at the other end, and a short run of a deep model does "
        "not reach that one.",
        f"The peak is {peak}, less the base's weights; temporaries are included.{knots}",
    ]


def is_plain(config: Mapping[str, Any]) -> bool:
    """Whether the model was run as the estimate has it."""
    return not (config["autocast"] or config["checkpointing"])


def sizes(config: Mapping[str, Any]) -> str:
    """What was run, in words."""
    batches = " or ".join(str(size) for size in config["batch_sizes"])
    extra = [word for option, word in (("autocast", "autocast"), ("checkpointing", "gradient checkpointing")) if config[option]]
    return ", ".join([f"{batches} rows of {config['length']} tokens, rank {config['rank']}, no dropout", *extra])


def command_of(study: str, config: Mapping[str, Any], usual: Any) -> str:
    """What repeats a run: every option that is not as it comes, but for the folder.

    Args:
        study: its name.
        config: of the run.
        usual: the study's config as it comes.

    Returns:
        A line for a shell.
    """
    default, said = plain(usual), [f"python -m experiments {study}"]
    for name, value in config.items():
        if name == "out" or value == default[name]:
            continue
        words = [f'"{item}"' if " " in str(item) else str(item) for item in (value if isinstance(value, list) else [value])]
        said.append(f"--{name.replace('_', '-')}" + ("" if value is True else f" {' '.join(words)}"))
    return " ".join(said)


def stacked(case: Weighing) -> bytes:
    """A bar for each method, its parts one after the other.

    Args:
        case: those that were measured are drawn, but for compiled models, which have no such parts.

    Returns:
        A PNG.
    """
    shown = [row for row in case.rows.values() if row["reason"] is None and row["body_mean"] is not None]
    parts = {
        "weights": [row["estimate"]["weights"] for row in shown],
        **{STATE[kind]: [row[kind] for row in shown] for kind in ("gradients", "optimizer")},
        "saved before the logits": [row["body_mean"] for row in shown],
        "logits and loss": [row["mean"] - row["body_mean"] for row in shown],
    }
    figure, axes = canvas(7.2, 0.32 * len(shown) + 1.3)
    left = [0.0] * len(shown)
    for colour, (name, values) in zip(COLOURS, parts.items(), strict=False):
        widths = [size / MB for size in values]
        axes.barh(range(len(shown)), widths, left=left, color=colour, label=name, height=0.7)
        left = [start + width for start, width in zip(left, widths, strict=True)]
    axes.set_yticks(range(len(shown)), [row["method"] for row in shown])
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.set(xlabel="MB")
    axes.legend()
    return png(figure)


def dots(cases: Sequence[Weighing]) -> bytes:
    """A line for each case, a dot on it for each way.

    Args:
        cases: what was weighed.

    Returns:
        A PNG.
    """
    figure, axes = canvas(7.2, 0.4 * len(cases) + 1.5)
    axes.axvline(1.0, color="#9aa1a9", linewidth=1, linestyle="--")
    for colour, name in zip(COLOURS, (CHAIN, B_ONLY, BY_BLOCK, FLOOR), strict=False):
        found = [(case.ratio(name, LORA, "mean"), place) for place, case in enumerate(cases)]
        axes.plot(*zip(*[(x, y) for x, y in found if x is not None], strict=True) or ([], []), "o", color=colour, label=name)
    axes.set_yticks(range(len(cases)), [case.label for case in cases])
    axes.invert_yaxis()
    axes.set(xlabel="saved for the backward pass / LoRA's", xlim=(0, None))
    figure.legend(loc="outside lower center", ncols=4)
    return png(figure)
