"""Who completes a large matrix, each measured in a process of its own: seconds, memory, loss and gap by iteration."""

from __future__ import annotations

import multiprocessing
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import numpy as np
from scipy.sparse.linalg import svds

from theory.corrections import Correction, FactorSweep
from theory.frank_wolfe import frank_wolfe
from theory.oracles import Answer, Ask, Lanczos, Oracle
from theory.points import LowRank
from theory.problems.sparse_completion import SparseCompletion
from theory.sets import ConvexSet
from theory.step_sizes import ShortStep

LANCZOS, SWEPT, SVDS, COPT = "Lanczos", "Lanczos + FactorSweep", "scipy svds", "copt TraceBall"


@dataclass(frozen=True)
class Contest:
    """One contender on one instance.

    Attributes:
        contender: a key of `CONTENDERS`.
        seed: of the instance.
        shape: of the matrix.
        entries: observations.
        rank: of the planted matrix.
        noise: standard deviation of what is added to its entries.
        iterations: short steps.
        lanczos_steps: pairs of products of an answer by `Lanczos`.
        repeat: the number of the repetition.
    """

    contender: str
    seed: int
    shape: tuple[int, int]
    entries: int
    rank: int
    noise: float
    iterations: int
    lanczos_steps: int
    repeat: int

    def problem(self) -> SparseCompletion:
        """The instance."""
        return SparseCompletion.skewed(self.seed, self.shape, self.entries, self.rank, self.noise)


class Missing(Exception):
    """A contender cannot run here; the message says why."""


@dataclass
class Stopwatch:
    """Wall and processor time from one iteration to the next; what precedes the first iteration is part of it."""

    laps: list[tuple[float, float]] = field(default_factory=list)
    last: tuple[float, float] = field(default_factory=lambda: (perf_counter(), process_time()))

    def lap(self) -> None:
        """An iteration ends."""
        now = (perf_counter(), process_time())
        self.laps.append((now[0] - self.last[0], now[1] - self.last[1]))
        self.last = now


@dataclass(frozen=True)
class Svds(Oracle):
    """The nuclear ball's oracle by scipy's ARPACK to machine precision, from a random start each time."""

    def open(self, K: ConvexSet, rng: np.random.Generator) -> Ask:
        """Answers in factors."""

        def ask(G: Any, W: Any) -> Answer:
            u, _, vt = svds(G, k=1, rng=rng)
            assert u is not None
            assert vt is not None
            return Answer(LowRank(-u, np.array([K.radius]), vt.T), 0.0)

        return ask


def ours(oracle: Callable[[Contest], Oracle], correction: Correction | None = None) -> Callable[[Contest], dict[str, Any]]:
    """A run of `theory.frank_wolfe` on factors and observed entries."""

    def run(contest: Contest) -> dict[str, Any]:
        problem, watch = contest.problem(), Stopwatch()
        trajectory = frank_wolfe(
            problem, ShortStep(), contest.iterations, oracle=oracle(contest), correction=correction, seed=contest.seed,
            on_iteration=lambda _: watch.lap(),
        )  # fmt: skip
        gaps = [iteration.gap for iteration in trajectory]
        return {"laps": watch.laps, "losses": trajectory.losses_after().tolist(), "gaps": gaps, "rank": trajectory.final.rank()}

    return run


def copt(contest: Contest) -> dict[str, Any]:
    """Copt's Frank-Wolfe on its trace ball, with the same step size. Its points and gradients are dense.

    The objective is as quick as dense ones get: the gradient is zero off the observed entries and copt asks for the next one
    only when it has done with the last, so one array is filled again and again.

    Args:
        contest: what to run.

    Returns:
        The measurements.

    Raises:
        Missing: copt is not installed.
    """
    minimize_frank_wolfe, TraceBall = _copt()
    problem = contest.problem()
    entries, targets = problem.entries, problem.targets
    flat = entries.rows * contest.shape[1] + entries.columns
    gradient = np.zeros(contest.shape[0] * contest.shape[1])

    def objective(x: np.ndarray) -> tuple[float, np.ndarray]:
        residual = x[flat] - targets
        gradient[flat] = residual
        return 0.5 * float(residual @ residual), gradient

    losses, gaps = [], []

    def note(state: dict[str, Any]) -> None:
        # copt calls once more when it is done.
        if len(losses) < contest.iterations:
            watch.lap()
            losses.append(float(state["f_next"]))
            gaps.append(float(state["certificate"]))

    ball = TraceBall(problem.constraint.radius, contest.shape)
    watch = Stopwatch()
    minimize_frank_wolfe(
        objective, np.zeros(gradient.size), ball.lmo, jac=True, step="DR", lipschitz=problem.beta,
        max_iter=contest.iterations, callback=note,
    )  # fmt: skip
    return {"laps": watch.laps, "losses": losses, "gaps": gaps, "rank": None}


CONTENDERS: dict[str, Callable[[Contest], dict[str, Any]]] = {
    LANCZOS: ours(lambda contest: Lanczos(contest.lanczos_steps)),
    SWEPT: ours(lambda contest: Lanczos(contest.lanczos_steps), FactorSweep()),
    SVDS: ours(lambda contest: Svds()),
    COPT: copt,
}


def measure(contest: Contest) -> dict[str, Any]:
    """Runs a contender in this process.

    Args:
        contest: who and on what.

    Returns:
        A record; `reason` says why there are no measurements, and is None otherwise. Memory is in MB, None where the system has
        no /proc.
    """
    record = {**asdict(contest), "reason": None}
    try:
        if contest.contender == COPT:
            _copt()
        imported = _memory("VmRSS")
        record |= CONTENDERS[contest.contender](contest)
    except Missing as missing:
        return record | {"reason": str(missing)}
    peak = _memory("VmHWM")
    return record | {"imported": imported, "above": None if imported is None or peak is None else peak - imported}


def isolated(contest: Contest) -> dict[str, Any]:
    """`measure` in a new process, whose peak of memory nobody else has raised."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(measure, contest).result()


def _copt() -> tuple[Any, Any]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # copt imports a deprecated corner of scipy
            from copt import minimize_frank_wolfe
            from copt.constraint import TraceBall
    except ImportError as error:
        raise Missing(f"copt cannot be imported ({error}): pip install copt") from None
    return minimize_frank_wolfe, TraceBall


def _memory(line: str) -> float | None:
    """A line of /proc/self/status. Not `getrusage`, whose peak a child inherits from its parent."""
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    return next(int(text.split()[1]) / 1024 for text in status.read_text().splitlines() if text.startswith(line))
