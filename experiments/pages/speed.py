"""The page on speed: a step of each method beside LoRA's and the frozen model's in the same rounds, from records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.accounting import targets
from experiments.pages.laps import FLOOR, LORA, Race, Ratios, accuracies, collect
from experiments.pages.running import command_of, sizes
from experiments.pages.step_targets import CHAIN, judged
from experiments.plots import COLOURS, canvas, png
from experiments.records import RunFolder
from experiments.report import Page, Table, describe
from experiments.studies.speed import Config

HEADINGS = (
    "method", "trained parameters", "step [ms]", "of LoRA's", "quartiles", "of the floor's", "quartiles", "a knot [steps]",
)  # fmt: skip

CAPTION = "{} over LoRA's in the same round, a dot a round, knots left out; dots beyond the frame too. Line: what is typical."


def build(folder: RunFolder) -> str:
    """Publishes the page from the folder's records.

    Args:
        folder: where the study wrote them.

    Returns:
        The page.
    """
    races, gradients = collect(folder), accuracies(folder)
    config, machine = folder.read_json("config.json"), folder.read_json("machine.json")
    aims = judged(races, gradients, config)
    page = Page("How fast is a step?", f"{sizes(config)}; {config['rounds']} rounds a case on {machine['name']}.")
    page.findings([*targets.findings(aims), *findings(races)])
    if aims:
        page.heading("Targets")
        page.table(targets.table(aims))
    for place, race in enumerate(races):
        page.heading(race.label)
        page.table(table(race))
        if place == 0 and methods_of(race):
            page.figure("rounds", dots(methods_of(race)), CAPTION.format("A step's time"))
    if len(cases_of(races)) > 1:
        page.figure("cases", dots(cases_of(races)), CAPTION.format("Case by case, the time of the chain's step"))
    page.heading("Gradients")
    page.table(exactness(gradients))
    page.heading("How to read this")
    for text in reading(races, config):
        page.paragraph(text)
    page.code(command_of("speed", config, Config()))
    return page.publish(folder, describe(folder.read_json("environment.json")))


def show(folder: RunFolder) -> None:
    """Prints the tables and the findings.

    Args:
        folder: where the records are.
    """
    races = collect(folder)
    for race in races:
        print(f"\n{race.label}\n{table(race).to_text()}")
    aims = judged(races, accuracies(folder), folder.read_json("config.json"))
    if aims:
        print(f"\n{targets.table(aims).to_text()}")
    print("", *targets.findings(aims), *findings(races), f"\nReport: {folder.path / 'report.html'}", sep="\n")


def table(race: Race) -> Table:
    """All methods of a case; one that could not run has its reason in a cell."""
    rows = []
    for name in race.names:
        row = race.rows[name]
        if not race.ran(name):
            rows.append([name, str(race.reason(name)), *["-"] * (len(HEADINGS) - 2)])
            continue
        knot = race.knot(name)
        rows.append([
            name, f"{row['parameters']:,}", f"{1e3 * race.step(name):.1f}", *cells(race.ratios(name, LORA)),
            *cells(race.ratios(name, FLOOR)), "-" if knot is None else f"{knot:.2f}",
        ])  # fmt: skip
    return Table(HEADINGS, rows)


def cells(ratios: Ratios | None) -> list[str]:
    """What is typical, and the quartiles; dashes where there is none."""
    if ratios is None or ratios.typical is None:
        return ["-", "-"]
    return [f"{ratios.typical:.3f}", "-" if ratios.quartiles is None else "{:.3f} to {:.3f}".format(*ratios.quartiles)]


def findings(races: Sequence[Race]) -> list[str]:
    """What the numbers say: the chain in every case, every method in the first, and how steady the machine was."""
    said = []
    for race in races:
        missing = next((name for name in (FLOOR, LORA, CHAIN) if name in race.rows and not race.ran(name)), None)
        if missing is not None:
            said.append(f"{race.label}: {missing} is not measured; {race.reason(missing)}.")
        elif CHAIN in race.rows and race.typical(CHAIN, LORA) is not None:
            said.append(
                f"{race.label}: a chain's step takes {race.typical(CHAIN, LORA):.2f} of LoRA's and "
                f"{race.typical(CHAIN, FLOOR):.2f} of the frozen floor's; LoRA's takes {race.typical(LORA, FLOOR):.2f}."
            )
    return [*said, *everyone(races[0]), *steadiness(races)]


def everyone(race: Race) -> list[str]:
    """Each method's step in a case, the shortest first, and why there is none of some."""
    found = {name: ratio for name in race.names if name != LORA and (ratio := race.typical(name, LORA)) is not None}
    listed = ", ".join(f"{name.replace(',', '')} {found[name]:.2f}" for name in sorted(found, key=found.__getitem__))
    absent = [name for name in race.names if not race.ran(name) and name not in {FLOOR, LORA, CHAIN}]
    skipped = [name for name in race.names if race.ran(name) and race.ran(LORA) and race.typical(name, LORA) is None]
    return [
        *([f"a step in LoRA's steps, {race.label}: {listed}."] if found else []),
        *[f"{name}: not measured, {race.label}; {race.reason(name)}." for name in absent],
        *[f"{name}: no mean, {race.label}; not every part has a round without a knot." for name in skipped],
    ]


def steadiness(races: Sequence[Race]) -> list[str]:
    """How far the machine lets ratios be told apart."""
    drifts = {race.label: race.drift.values for race in races if race.drift is not None}
    if not drifts:
        return []
    medians = [np.median(drift) for drift in drifts.values()]
    worst = max(drifts, key=lambda label: np.subtract(*np.quantile(drifts[label], (0.75, 0.25))))
    low, high = np.quantile(drifts[worst], (0.25, 0.75))
    return [
        f"steadiness: the floor's second lap of a round over its first has medians of {min(medians):.3f} to "
        f"{max(medians):.3f} over the cases; where it varies most, {worst}, half of the rounds lie between {low:.3f} and "
        f"{high:.3f}."
    ]


def exactness(gradients: Sequence[Mapping[str, Any]]) -> Table:
    """How far the factors' gradients are from PEFT's, and both from float32."""
    rows = []
    for row in gradients:
        if row["reason"] is not None:
            rows.append([row["case"], row["reason"], *["-"] * 5])
            continue
        beside = ["-"] * 4
        if row["chain"] is not None:
            errors = [f"{row[name]:.2e}" for name in ("chain", "lora")]
            beside = [*errors, f"{row['chain'] / row['lora']:.3f}", f"{row['paired']:.3f}"]
        rows.append([row["case"], f"{row['difference']:.1e}", f"{row['largest']:.1e}", *beside])
    headings = ("case", "difference from LoRA's", "in a factor", "median error", "LoRA's", "over LoRA's", "factor by factor")
    return Table(headings, rows)


def reading(races: Sequence[Race], config: Mapping[str, Any]) -> list[str]:
    """How the numbers came about."""
    on_cuda = races[0].clock == 0
    clock = "wall time, the device waited for" if on_cuda else "processor time on one thread"
    emptied = " BAdam's package empties the allocator's cache at every step, which is in its time." if on_cuda else ""
    return [
        f"Weights and tokens are random, rows full, with nothing masked; times are {clock}. All methods of a case are there at "
        "the same time, and in every "
        "round each takes one step of training. The order changes from round to round so that each follows each other about "
        "equally often. A ratio is taken within a round, so that what slows the machine slows both; the tables have the median "
        "over the rounds and the quartiles. The first steps of each, in which a model is compiled, do not count.",
        "LoRA is PEFT's default, float32 factors on the base as it is, under torch's AdamW as it comes. The frozen floor is "
        "the model without adapters, forward and backward to the output of its embeddings, without an optimizer; it takes two "
        "laps in every round, and ratios are to their mean. Adapting q_proj and v_proj alone can go below it: the first layer "
        "then needs no gradient of its inputs.",
        f"A chain ties {config['knots']} knots in a run, with one block a link one for each block but the last; ReLoRA merges "
        "as often. A step with a knot counts as a knot and not as a step: its cost is that step less a median step without, in "
        "steps of LoRA. Few are seen here, and `knot-cost` measures them well. Where one part of the model is trained after "
        "another, the ratio is the mean of the parts' medians, and there is none if a part had no round without a knot.",
        "Full fine-tuning and GaLore train half-precision weights in float32: their steps would be lost in them otherwise. "
        "GaLore, half-precision weights, trains them as they are, as its authors do. BAdam steps a float32 copy of one layer "
        "at a time. GaLore's new subspaces (its authors: every 200 steps; here as often as knots) are few, and no median shows "
        "their cost." + emptied,
        "Gradients are those of all factors for each of some batches at the same weights and factors, B not zero. A difference "
        "is relative to the length of LoRA's gradient, all factors as one vector or, in the next column, the largest of a "
        "factor by itself. Errors are distances to the gradients of a float32 model with the same values, medians over factors "
        "and batches; factor by factor is the median of the chain's error over LoRA's.",
    ]


def methods_of(race: Race) -> dict[str, Ratios]:
    """Every method over LoRA."""
    return _typical({name: race.ratios(name, LORA) for name in race.names if name != LORA})


def cases_of(races: Sequence[Race]) -> dict[str, Ratios]:
    """The chain over LoRA, case by case."""
    return _typical({race.label: race.ratios(CHAIN, LORA) for race in races})


def _typical(found: Mapping[str, Ratios | None]) -> dict[str, Ratios]:
    return {name: ratios for name, ratios in found.items() if ratios is not None and ratios.typical is not None}


def dots(shown: Mapping[str, Ratios]) -> bytes:
    """Every round's ratio as a dot, one line each, and what is typical as a bar.

    Args:
        shown: ratios by name.

    Returns:
        A PNG.
    """
    typical = [ratios.typical or 0.0 for ratios in shown.values()]
    figure, axes = canvas(7.2, 0.32 * len(shown) + 1.1)
    axes.axvline(1.0, color="#9aa1a9", linewidth=1, linestyle="--")
    for place, ratios in enumerate(shown.values()):
        offsets = 0.12 * (np.arange(len(ratios.values)) % 3 - 1)
        axes.plot(ratios.values, place + offsets, "o", color=COLOURS[0], alpha=0.3, markersize=3.5, markeredgewidth=0)
        axes.plot([typical[place]] * 2, [place - 0.3, place + 0.3], color=COLOURS[1], linewidth=2)
    axes.set_yticks(range(len(shown)), list(shown))
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    # A new subspace of GaLore takes several steps: on a scale that shows it nothing else is told apart.
    right = min(max(float(ratios.values.max()) for ratios in shown.values()), 1.6 * max(typical))
    axes.set(xlabel="step time / LoRA's", xlim=(0, 1.05 * right))
    return png(figure)
