"""What tracked runs say, in sentences that the numbers decide."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean, median
from typing import Any

from experiments.guarantees import Run, Yardstick, estimated_beta, is_chain, steepest_bend, yardsticks
from fwlora import Interval

QUANTITIES = {
    "gap": "gap",
    "gradient_norm": "|G|_F",
    "truncated_norm": "|G|_{F,r}",
    "eps": "shortfall of the link",
    "alignment": "alignment",
}


def findings(runs: Sequence[Run], scouted: Mapping[str, Any]) -> dict[str, list[str]]:
    """What the runs say, under headings.

    Args:
        runs: the records, Algorithm 1's first.
        scouted: the unmeasured run.

    Returns:
        Sentences by heading.
    """
    beta, first, others = estimated_beta(scouted["curvatures"], runs), runs[0], runs[1:]
    return {
        "Does the gap fall?": [f"{run['label']}: {fall(run)}" for run in runs],
        "Do links point where the gradient does?": [f"{run['label']}: {alignment(run)}" for run in runs],
        "How does the rank of the total update grow?": [f"{run['label']}: {ranks(run)}" for run in runs],
        "What does Algorithm 2 cost?": [f"{run['label']}: {price(run, first)}" for run in others],
        "What would the theorems guarantee?": [
            *(f"{run['label']}: {guarantee(run, yardstick)}" for run in runs for yardstick in yardsticks(run, beta)),
            f"{first['label']}: {shortfall(first, beta)}",
            f"Curvature: {curvature(runs, scouted)}",
            *(f"{run['label']}: {after_the_fact(run)}" for run in others),
        ],
        "Can the intervals be trusted?": [f"{title}: {trust(runs, name)}" for name, title in QUANTITIES.items()],
        "What does measuring cost?": [f"Time: {cost(runs)}", f"Training: {unchanged(first, scouted)}"],
    }


def fall(run: Run) -> str:
    """Whether the gaps before the first link and before the last can be told apart, and what the dense gradient says."""
    knots = run["knots"]
    first, last = (Interval(*knots[end]["gap"]["total"]["gap"]) for end in (0, -1))
    if last.upper < first.lower:
        verdict = "falls"
    elif last.lower > first.upper:
        verdict = "rises"
    else:
        verdict = "may have fallen or not, as its first and its last interval overlap:"
    dense = [knot["truth"]["total"]["gap"] for knot in knots]
    below = sum(knot["gap"]["total"]["gap"][2] < first.lower for knot in knots[1:])
    after = f", {dense[1]:.3g} after one link" if len(dense) > 2 else ""
    return (
        f"the gap {verdict} from {first} before link 1 to {last} before link {len(knots)}; of the {len(knots) - 1} later "
        f"intervals {below} lie below the first. By the dense gradient it goes from {dense[0]:.3g} to {dense[-1]:.3g}{after}. "
        f"The loss goes from {knots[0]['loss']:.4f} to {run['last_loss']:.4f}, {knots[0]['after']:.4f} after one link."
    )


def alignment(run: Run) -> str:
    """How aligned trained links are."""
    values = [knot["truth"]["total"]["alignment"] for knot in run["knots"]]
    uphill = sum(value <= 0 for value in values)
    verdict = "All are directions of descent." if not uphill else f"{uphill} of {len(values)} are no directions of descent."
    return (
        f"trained links have alignments from {min(values):.3f} to {max(values):.3f} by the dense gradient, where the best "
        f"vertex has 1. {verdict}"
    )


def ranks(run: Run) -> str:
    """Effective and stable rank after the first link and after the last."""
    first, last = run["knots"][0], run["knots"][-1]
    grown = [f"{first[kind]['mean']:.1f} to {last[kind]['mean']:.1f}" for kind in ("effective_rank", "stable_rank")]
    return (
        f"from link 1 to link {len(run['knots'])} the effective rank goes from {grown[0]} in the mean over the layers, where "
        f"{run['rank'] * len(run['knots'])} is what the links' ranks add up to, and the stable rank from {grown[1]}."
    )


def price(run: Run, reference: Run) -> str:
    """Held-out loss at equal steps, and what a knot does to it."""
    difference = run["last_loss"] - reference["last_loss"]
    jumps = [fmean(knot["after"] - knot["before"] for knot in each["knots"]) for each in (run, reference)]
    return (
        f"after the same {run['knots'][-1]['step']} steps the held-out loss is {run['last_loss']:.4f}, "
        f"{abs(difference):.4f} nats {'worse' if difference > 0 else 'better'} than Algorithm 1's "
        f"{reference['last_loss']:.4f}. A knot changes it by {jumps[0]:+.4f} on average, for it does not take the link as it "
        f"was trained; Algorithm 1's by {jumps[1]:+.4f}."
    )


def guarantee(run: Run, yardstick: Yardstick) -> str:
    """A theorem with the estimated beta."""
    what = "the mean |G|²_{F,r}" if is_chain(run) else "the mean gap"
    measured, bound = Interval(*yardstick.measured[-1]), yardstick.guaranteed[-1]
    verdict = (
        "At some knot it is exceeded: the estimate of beta is too low, which refutes no theorem."
        if yardstick.is_exceeded
        else "It is not exceeded at any knot."
    )
    return (
        f"{what} over {len(run['knots'])} links is {measured}; the right-hand side of {yardstick.theorem} with the estimated "
        f"beta, no certificate, is {_number(bound)}, {_number(bound / measured.point)} times as much. {verdict}"
    )


def shortfall(run: Run, beta: float) -> str:
    """Theorem F's shortfall, by the dense gradient."""
    gained = [knot["loss"] - knot["after"] for knot in run["knots"]]
    promised = [knot["truth"]["total"]["truncated_norm"] ** 2 / (2 * beta) for knot in run["knots"]]
    short = sum(gain < promise for gain, promise in zip(gained, promised, strict=True))
    return (
        f"{short} of {len(gained)} links fall short of one truncated gradient step of length 1/beta, so that eps_F is "
        f"{'not ' if short else ''}zero. A link lowers L by {fmean(gained):.4f} on average; the step is promised "
        f"{fmean(promised):.4f}. By its definition the theorem's inequality holds for whatever a run does; what "
        "eps_F tells is whether a link was worth a plain gradient step."
    )


def curvature(runs: Sequence[Run], scouted: Mapping[str, Any]) -> str:
    """The estimate, beside what the runs' own steps met."""
    found = [*scouted["curvatures"], *(knot["curvature"] for run in runs for knot in run["knots"])]
    bends, beta = [knot["bend"] for run in runs for knot in run["knots"]], max(found)
    steepest = max(bends)
    said = (
        f"the Hessian's largest eigenvalue over the adapted weights was found to be {min(found):.3g} to {beta:.3g} at "
        f"{len(found)} places; the largest is the estimate of beta. Along the knots' own steps L curves by {min(bends):.2g} to "
        f"{steepest:.2g}"
    )
    if steepest > beta:
        return f"{said}: the estimate is too low."
    if steepest <= 0:
        return f"{said}, never upwards."
    return f"{said}, at least {_number(beta / steepest)} times less: links do not go where L curves most."


def after_the_fact(run: Run) -> str:
    """Theorem A with the curvature along the run's own steps, which is all that its proof uses."""
    bend = steepest_bend(run)
    yardstick = yardsticks(run, bend)[0]
    bound, eps = yardstick.guaranteed[-1], fmean(knot["gap"]["total"]["eps"][1] for knot in run["knots"])
    return (
        f"with the largest curvature of its own steps, {bend:.2g}, in beta's place, which is all that the proof uses and is "
        f"known after the fact only, the right-hand side of {yardstick.theorem} is {_number(bound)}, "
        f"{bound / yardstick.measured[-1, 1]:.2f} times the mean gap. {eps / bound:.0%} of it are the links' mean shortfall."
    )


def trust(runs: Sequence[Run], name: str) -> str:
    """How many intervals hold what they are about, and where their points lie."""
    totals, sites = list(_pairs(runs, name, "total")), list(_pairs(runs, name, "sites"))
    held = [sum(interval.lower <= value <= interval.upper for interval, value in pairs) for pairs in (totals, sites)]
    ratios = [interval.point / value for interval, value in totals]
    return (
        f"{held[0]} of {len(totals)} intervals in total and {held[1]} of {len(sites)} at single layers hold the value of the "
        f"dense gradient, where 95% was asked for. In total the points are {min(ratios):.2f} to {max(ratios):.2f} times that "
        f"value, {median(ratios):.2f} times in the median."
    )


def cost(runs: Sequence[Run]) -> str:
    """Passes and seconds of measurements."""
    knots = runs[0]["knots"]
    passes, steps = runs[0]["passes"] / len(knots), knots[0]["step"]
    shares = [run["seconds"]["measuring"] / sum(run["seconds"].values()) for run in runs]
    return (
        f"a measurement is {passes:.0f} forward and backward passes, on batches like the training's, after every {steps} "
        f"steps. The measurements took {min(shares):.1%} to {max(shares):.1%} of a run's wall time, this study's own checks "
        f"left out. After links of 500 steps, {passes:.0f} passes would be {passes / (passes + 500):.0%}."
    )


def unchanged(run: Run, scouted: Mapping[str, Any]) -> str:
    """Whether a measurement leaves the run alone."""
    same = sum(a == b for a, b in zip(run["losses"], scouted["losses"], strict=True))
    verdict = "measurements leave the run alone" if same == len(run["losses"]) else "measurements change the run"
    return f"{same} of {len(run['losses'])} losses are the same, to the last bit, as without measurements: {verdict}."


def _pairs(runs: Sequence[Run], name: str, where: str) -> Iterator[tuple[Interval, float]]:
    for knot in (knot for run in runs for knot in run["knots"]):
        measured, dense = (
            {"total": table["total"]} if where == "total" else table["sites"] for table in (knot["gap"], knot["truth"])
        )
        for site, row in measured.items():
            if row[name] is not None and dense[site][name]:
                yield Interval(*row[name]), dense[site][name]


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
