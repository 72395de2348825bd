"""How tight is each theorem? Its bound beside the exact worst case, and its proof checked in fractions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from theory.certificates import Identity, PerformanceEstimation

SOLVER_ACCURACY = 1e-5
"""How far above its bound a computed worst case may lie."""


@dataclass(frozen=True)
class Config:
    """Compare the bounds with worst cases found by semidefinite programming, and verify their proofs in exact arithmetic.

    Attributes:
        horizons: T = 1, ..., horizons.
        drifting_horizons: the same where every iteration has a loss of its own, a much larger program.
        gaps: M, in units of beta D^2.
        drift: how far the loss may move between two iterations, in the same units.
        exact: numbers of iterations at which the proofs are verified.
        out: folder for records, figures and report.
    """

    horizons: int = 10
    drifting_horizons: int = 5
    gaps: tuple[float, ...] = (0.5, 0.1, 0.02)
    drift: float = 0.02
    exact: tuple[int, ...] = (1, 2, 3, 6, 20, 50)
    out: Path = Path("results/certificates")


PRESETS = {"smoke": Config(horizons=2, drifting_horizons=1, gaps=(0.5,), exact=(1, 2))}


def run(config: Config) -> None:
    """Verifies, solves, writes the records, builds the report from them and prints its tables.

    Args:
        config: sizes and places.

    Raises:
        UsageError: a size is not positive, or no solver is installed.
        Refuted: a proof does not check, or a worst case lies above its bound.
    """
    from experiments.errors import Refuted, UsageError

    sizes = {name: value if isinstance(value, tuple) else (value,) for name, value in vars(config).items() if name != "out"}
    for name, values in sizes.items():
        if not values or not min(values) > 0:
            raise UsageError(f"--{name.replace('_', '-')} {' '.join(map(str, values))}: give numbers above 0.")

    from experiments.pages import certificates as page
    from experiments.progress import progress
    from experiments.records import RunFolder, environment
    from theory.certificates import MissingDependencyError, PerformanceEstimation

    try:
        PerformanceEstimation([1.0], initial_gap=1.0).average()
    except MissingDependencyError as missing:
        raise UsageError(str(missing)) from None

    folder = RunFolder(config.out)
    folder.write_json("config.json", config)
    folder.write_json("environment.json", environment())

    folder.replace_rows("exact.jsonl", [verify(name, build, T) for T in config.exact for name, build in proofs().items()])
    rows = []
    with progress(total=len(config.gaps) * config.horizons, description="worst cases", unit="horizon") as bar:
        for M in config.gaps:
            for T in range(1, config.horizons + 1):
                cases = settings(M, T, config.drift, drifting=T <= config.drifting_horizons)
                rows += [{"M": M, "T": T, "theorem": theorem, **solve(*case)} for theorem, case in cases.items()]
                bar.update()
    folder.replace_rows("rows.jsonl", rows)
    page.build(folder)
    for title, table in page.tables(folder):
        print(f"\n{title}\n{table.to_text()}")
    print(f"\nReport: {folder.path / 'report.html'}")

    failed = [f"the proof of {row['theorem']} at T = {row['T']}" for row in folder.rows("exact.jsonl") if not row["holds"]]
    above = [row for row in rows if row["average"] is not None and row["average"] > row["bound"] + SOLVER_ACCURACY]
    failed += [f"{row['theorem']} at M = {row['M']}, T = {row['T']}: {row['average']} > {row['bound']}" for row in above]
    if failed:
        raise Refuted("; ".join(failed))


def proofs() -> dict[str, Callable[[int], Identity]]:
    """The exact certificates, at numbers that nothing favours."""
    from fractions import Fraction

    from theory.certificates import anytime_step, centred_step, drifting_loss, fixed_step

    known = {"eta": "2/7", "beta": "3/2", "initial_gap": "5/3"}
    return {
        "A": lambda T: fixed_step(T, diameter="4/3", **known),
        "B": lambda T: anytime_step([Fraction(2, t + 1) for t in range(1, T + 1)], "3/2", "4/3", "5/3"),
        "C": lambda T: centred_step(T, radius="2/3", **known),
        "C anywhere": lambda T: centred_step(T, radius="2/3", start_distance="2/3", **known),
        "E": lambda T: drifting_loss(T, diameter="4/3", up="1/5", down="1/9", **known),
    }


def verify(theorem: str, build: Callable[[int], Identity], T: int) -> dict[str, Any]:
    """A certificate's verdict, and how long it took."""
    began = perf_counter()
    certificate = build(T)
    holds = certificate.holds
    return {
        "theorem": theorem, "T": T, "holds": holds, "constraints": len(certificate.constraints),
        "squares": len(certificate.squares), "bound": str(certificate.bound), "seconds": perf_counter() - began,
    }  # fmt: skip


def settings(
    M: float, T: int, drift: float, *, drifting: bool
) -> dict[str, tuple[float, PerformanceEstimation | Callable[[], float] | None]]:
    """Every theorem's bound with ``beta = D = 1`` and, for the balls, ``R = 1/2``, beside what is to be compared with it.

    Args:
        M: the gap at the start, and for Theorem B the oscillation.
        T: iterations.
        drift: ``sup |L_{t+1} - L_t|``.
        drifting: whether Theorem E is wanted.

    Returns:
        Bound and worst case; a function where a run attains the bound, None where neither is known.
    """
    from theory.bounds import AnytimeBound, CircumradiusBound, DriftBound, FixedStepBound, PrintedBound, ShortStepBound
    from theory.certificates import PerformanceEstimation
    from theory.frank_wolfe import frank_wolfe
    from theory.problems import WorstCase
    from theory.step_sizes import Anytime, Centred, Fixed, ShortStep
    from theory.trajectory import Constants

    centre = Constants(beta=1.0, diameter=1.0, radius=0.5, initial_gap=M, oscillation=M, start_distance=0.0)
    away = replace(centre, start_distance=0.5)
    ball = {"diameter": None, "radius": 0.5}
    worst, moved = PerformanceEstimation.of, drift * (T - 1)

    def short_step() -> float:
        return float(frank_wolfe(WorstCase(M), ShortStep(), 1).column("gap")[0])

    cases = {
        "A": (FixedStepBound().value(T, centre), worst(Fixed(), T, centre)),
        "B": (AnytimeBound().value(T, centre), worst(Anytime(), T, centre, everywhere=True)),
        "C": (CircumradiusBound().value(T, centre), worst(Centred(), T, centre, **ball, centred=True)),
        "C anywhere": (CircumradiusBound().value(T, away), worst(Centred(), T, away, **ball)),
        "D": (ShortStepBound().value(T, centre), short_step if T == 1 else None),
        "printed": (PrintedBound().value(T, centre), None),
    }
    if drifting:
        tuned = worst(Fixed(drift=2 * moved), T, centre, drift=drift)
        cases["E"] = (DriftBound(up=moved, down=moved).value(T, centre), tuned)
    return cases


def solve(bound: float, case: PerformanceEstimation | Callable[[], float] | None) -> dict[str, Any]:
    """The worst case of a bound's setting.

    Args:
        bound: its value.
        case: what to solve or to run.

    Returns:
        The bound, the worst average and least gap under its assumptions, the same for losses smooth from both sides, and
        the share of the bound that is attained.
    """
    began = perf_counter()
    worst: dict[str, float | None]
    if case is None or callable(case):
        known = case() if case else None
        worst = dict.fromkeys(("average", "minimum", "smooth_average", "smooth_minimum"), known)
    else:
        # What the theorems ask for, and what most readers think of.
        above = replace(case, upper_only=True)
        worst = {"average": above.average(), "minimum": above.minimum()}
        worst |= {"smooth_average": case.average(), "smooth_minimum": case.minimum()}
    ratio = None if worst["average"] is None else worst["average"] / bound
    return {"bound": bound, **worst, "ratio": ratio, "seconds": perf_counter() - began}
