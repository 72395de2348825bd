"""The page on knot schedules: can a trigger that reads the run tell when a knot pays?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from experiments import plots
from experiments.pages.knot_trials import TITLES, Trials, collect
from experiments.records import RunFolder
from experiments.report import Page, describe
from experiments.statistics import interval
from experiments.tying import NEVER, TRIGGERS


def findings(problems: Mapping[str, Trials]) -> dict[str, list[str]]:
    """What the comparisons say, under headings; the measured verdicts decide which.

    Args:
        problems: the results.

    Returns:
        Sentences by heading.
    """
    said: dict[str, list[str]] = {heading: [] for heading in HEADINGS}
    answers, counted, helps, helps_not = said.values()
    for trigger in TRIGGERS:
        answers += [answer(problems, trigger), knots_sentence(problems, trigger)]
    for name, results in problems.items():
        place = f"{TITLES[name]}: "
        counted.append(place + results.say(results.counted, NEVER))
        for trigger in TRIGGERS:
            for control in (NEVER, results.counted):
                better = results.against(trigger, control).verdict == "better"
                (helps if better else helps_not).append(place + results.say(trigger, control))
    return said


def answer(problems: Mapping[str, Trials], trigger: str) -> str:
    """Whether a trigger is better than never tying wherever the best counted schedule is, and nowhere worse.

    Args:
        problems: the results.
        trigger: its name.

    Returns:
        The sentence.
    """
    counted = {name: results.against(results.counted).verdict for name, results in problems.items()}
    never = {name: results.against(trigger).verdict for name, results in problems.items()}
    rival = {name: results.against(trigger, results.counted).verdict for name, results in problems.items()}
    pays, costs, harms = _with(counted, "better"), _with(counted, "worse"), _with(never, "worse")
    if not pays or not costs:
        conclusion = "These runs lack a problem where counted knots clearly pay or one where they clearly cost, and cannot say"
    elif set(pays) <= set(_with(never, "better")) and not harms:
        conclusion = "In these runs it tells when a knot pays"
    else:
        conclusion = "In these runs it does not tell when a knot pays"
    return (
        f"{trigger}: {conclusion}. The best counted schedule beats never tying on {_titles(pays)}, and this one on "
        f"{_titles(_with(never, 'better'))}; never tying beats the best counted schedule on {_titles(costs)}, and this one on "
        f"{_titles(harms)}. It beats that counted schedule on {_titles(_with(rival, 'better'))}, and is beaten by it on "
        f"{_titles(_with(rival, 'worse'))}."
    )


def knots_sentence(problems: Mapping[str, Trials], trigger: str) -> str:
    """How many knots a trigger tied where."""
    counts = [f"{results.mean_knots(trigger):.1f} ({TITLES[name]})" for name, results in problems.items()]
    return f"{trigger}, knots a run: {', '.join(counts)}."


def build(folder: RunFolder) -> str:
    """Publishes the page from the folder's records.

    Args:
        folder: where the study wrote them.

    Returns:
        The page.
    """
    problems, config = collect(folder), folder.read_json("config.json")
    page = Page(
        "When should a knot be tied?",
        "Triggers that read the run, against counted knots and none. Equal steps, data order and trained parameters; paired "
        "seeds, every rate tuned; every sentence on who is ahead is derived from the runs.",
    )
    for heading, sentences in findings(problems).items():
        page.heading(heading)
        page.findings(sentences or ["Nowhere in these runs."])
    for name, results in problems.items():
        row = results.rows[NEVER][0]
        page.heading(TITLES[name])
        page.paragraph(f"{INTRODUCTIONS[name]} Every schedule trains {row['trainable']:,} parameters for {row['steps']} steps.")
        page.table(results.table())
        page.paragraph(edge_sentence(results))
        page.figure(name, figure(results, TITLES[name]), CAPTION)
    page.heading("How to read this")
    for text in reading(config, {row["schedule"] for results in problems.values() for row in _triggers(results)}):
        page.paragraph(text)
    page.heading("Repeat it")
    page.code("python -m experiments knot-schedules")
    return page.publish(folder, describe(folder.read_json("environment.json")))


def edge_sentence(results: Trials) -> str:
    """Which schedules might have done better at a rate that was not tried."""
    at_edge = [method for method in results.rows if results.choices[method].at_edge]
    if not at_edge:
        return "Every rate is bracketed by rates that validation likes less."
    return f"A star marks a rate at the edge of the rates tried, beyond which a better one may lie: {', '.join(at_edge)}."


def reading(config: Mapping[str, Any], triggers: set[str]) -> list[str]:
    """How the runs were made and compared.

    Args:
        config: the study's.
        triggers: the triggers as they were given.

    Returns:
        Paragraphs.
    """
    return [
        "Differences are paired over seeds, with Student's 95% interval of each by itself. The p-values are those of the "
        "paired two-sided t-test with Holm's correction over all comparisons on a problem, and it is these that the sentences "
        "go by. A win is a seed on which the schedule is strictly better. Seeds draw the factors and the order of the data.",
        f"Each schedule's learning rate is the best of a grid of {config['rates']} values, each twice the one before, by its "
        f"mean over {config['tuning_seeds']} seeds ({config['language_tuning_seeds']} on the Llama) on validation data; a grid "
        f"whose best value lay at its edge was extended, up to {config['extensions']} times. The tests are on other seeds and, "
        "but for the regressions, whose error is the population's, on other data.",
        f"The triggers are {' and '.join(sorted(triggers))} on every problem: their defaults but for the shortest link, "
        "not tuned. GapBelow judges the magnitude of the descent since runs on other seeds showed it below zero for most of a "
        "link; nothing else was changed after a look. With the default of 300 steps the triggers tie nothing in runs of fewer "
        "than 600. In all runs the rate falls "
        "linearly to zero over the whole run, with 10 steps of warm-up after a knot. A rate that decays within each link, "
        "which `python -m experiments demo` measures, must know where the link ends: a trigger rules it out.",
    ]


def figure(results: Trials, title: str) -> bytes:
    """The metric of each schedule beside the steps at which it tied.

    Args:
        results: one problem's.
        title: above the figure.

    Returns:
        A PNG.
    """
    drawing = Figure(figsize=(9.2, 0.5 * len(results.rows) + 1.3), layout="constrained")
    left, right = drawing.subplots(1, 2, sharey=True)
    left.axvline(interval(results.values(NEVER)).mean, color="#9aa1a9", linewidth=1, linestyle="--")
    for place, method in enumerate(results.rows):
        colour = "#6b7280" if method == NEVER else plots.COLOURS[method in TRIGGERS]
        values = results.values(method)
        mean, lanes = interval(values), _lanes(len(values), place)
        left.plot(values, lanes, "o", color=colour, alpha=0.35, markersize=3.5, markeredgewidth=0)
        reach = [[mean.mean - mean.low], [mean.high - mean.mean]] if len(values) > 1 else None
        left.errorbar(mean.mean, place, xerr=reach, fmt="D", color=colour, markersize=5, capsize=3.5, linewidth=1.7)
        for lane, steps in zip(lanes, results.steps_tied(method), strict=True):
            right.plot(steps, [lane] * len(steps), "o", color=colour, markersize=3.2, markeredgewidth=0)
    left.set_yticks(range(len(results.rows)), list(results.rows))
    left.invert_yaxis()
    for axes in (left, right):
        axes.grid(axis="y", visible=False)
    left.set(xlabel=results.metric.name, title=title)
    right.set(xlabel="optimizer step", title="knots, one row a seed", xlim=(0, results.rows[NEVER][0]["steps"]))
    right.tick_params(axis="y", length=0)
    return plots.png(drawing)


def _lanes(seeds: int, place: int) -> list[float]:
    """A height for each seed, within the row of its schedule."""
    return [place + 0.6 * ((seed + 0.5) / seeds - 0.5) for seed in range(seeds)]


def _triggers(results: Trials) -> list[dict[str, Any]]:
    return [row for trigger in TRIGGERS for row in results.rows[trigger]]


def _with(verdicts: Mapping[str, str], verdict: str) -> list[str]:
    return [name for name, found in verdicts.items() if found == verdict]


def _titles(names: Sequence[str]) -> str:
    return ", ".join(f'"{TITLES[name]}"' for name in names) or "none"


HEADINGS = (
    "Can a trigger tell when a knot pays?",
    "Where counted knots pay, and where they do not",
    "Where a trigger helps",
    "Where it does not",
)
CAPTION = (
    "Left: seeds as dots, means with 95% intervals as diamonds; dashed: the mean of never tying. Right: the steps after which "
    "knots were tied."
)
INTRODUCTIONS = {
    "digits": (
        "A 64-128-128-10 network trained on upright digits is adapted to digits turned by 90 degrees, in several passes over "
        "500 images, by links of rank 1."
    ),
    "regression-rank-16": "A 64 x 64 matrix is to be moved by a matrix of rank 16, by links of rank 2.",
    "regression-rank-2": "The same with an update of rank 2, which one link of rank 2 can hold.",
    "source": (
        "A tiny Llama (two layers, characters as tokens), trained on the English of Python's manual, is adapted to the "
        "standard library's source with windows drawn anew at every step, by links of rank 2 in all linear layers: a short run "
        "with nothing seen twice."
    ),
}
