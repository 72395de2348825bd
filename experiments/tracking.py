"""Chains that look at themselves at every knot: as the library measures it on minibatches, and as the whole data has it.

The loss L of these runs is the mean over a fixed set of held-out windows. Value, gap and curvature are all of this one loss,
and the set is so small that its gradient can be had in full: what the library estimates is also known.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean
from time import perf_counter
from typing import Any, NamedTuple

import torch
from torch import Tensor

from experiments.compare import one_thread
from experiments.dense_gap import Matrices, bend, difference, length, matrix, truth, unit_link
from experiments.landscape import Landscape
from experiments.tasks.pydoc_text import Source
from experiments.train import Setup, train
from fwlora import Add, ChainLoRAOptimizer, Decay, Every, KnotRecord, MergeRule, SupportBall
from fwlora.linalg import effective_rank, stable_rank

WARMUP = 5


@dataclass(frozen=True)
class HeldOut(Source):
    """The adaptation to source; its held-out windows are the data that L is about."""

    def windows(self) -> Tensor:
        """All of them, of equal weight."""
        return self._held_out("source")

    def samples(self, seed: int, knot: int, batches: int) -> list[Tensor]:
        """Minibatches of windows, each drawn by itself, so that a batch's gradient is unbiased for that of L.

        Args:
            seed: of the run.
            knot: each has batches of its own.
            batches: how many, of `batch_size` windows each.

        Returns:
            The batches.
        """
        windows = self.windows()
        generator = torch.Generator().manual_seed(1_000_003 * seed + knot)
        return list(windows[torch.randint(len(windows), (batches, self.batch_size), generator=generator)])


@dataclass(frozen=True)
class Plan:
    """What all runs have in common.

    Attributes:
        problem: the model and its data.
        lr: peak learning rate of every link.
        rank: of a link.
        links: how many, each with a knot at its end.
        link_steps: optimizer steps of a link.
        batches: minibatches of a measurement.
        curved: windows that the Hessian is taken over.
        seed: of the data's order, the draws and the batches.
    """

    problem: HeldOut
    lr: float
    rank: int
    links: int
    link_steps: int
    batches: int
    curved: int
    seed: int

    @property
    def steps(self) -> int:
        """Optimizer steps of a run."""
        return self.links * self.link_steps

    def prepare(self, merge: MergeRule) -> tuple[Setup, ChainLoRAOptimizer]:
        """A fresh model with a chain on it, whose rate decays within each link."""
        model = self.problem.model()
        optimizer = ChainLoRAOptimizer(
            model,
            lr=self.lr,
            rank=self.rank,
            target_modules=list(self.problem.targets),
            knots=Every(self.link_steps),
            link_lr=Decay(warmup=WARMUP),
            merge=merge,
            seed=self.seed,
        )
        return Setup(model, optimizer, optimizer.parameters()), optimizer

    def landscape(self, optimizer: ChainLoRAOptimizer) -> Landscape:
        """L over the layers that the chain adapts."""
        return Landscape(self.problem.model(), list(optimizer.sites), self.problem.task(self.seed).loss, self.problem.windows())


def scout(plan: Plan) -> dict[str, Any]:
    """Algorithm 1 without any measurement: how far it goes, how long its links are, how L curves where it begins and ends.

    Args:
        plan: what to run.

    Returns:
        Plain data: the training losses, the largest norm of a sum of links at any site and knot, the mean norm of a link, and
        the curvatures. Norms are those of the ball whose vertices are links.
    """
    with one_thread():
        setup, optimizer = plan.prepare(Add())
        ball = SupportBall(1.0, plan.rank)
        reach: list[float] = []
        optimizer.on_knot(lambda record: reach.append(_largest_norm(optimizer, ball)))
        losses = train(setup, plan.problem.task(plan.seed), steps=plan.steps)
        landscape = plan.landscape(optimizer)
        places = (landscape.origin, landscape.weights_of(setup.model))
        return {
            "losses": losses,
            "reach": max(reach),
            "link": fmean(ball.norm(factors.spectrum()) for link in optimizer.chain for factors in link.factors.values()),
            "curvatures": [landscape.curvature(weights, plan.curved) for weights in places],
        }


@dataclass(frozen=True)
class Work:
    """One run that is measured at its knots.

    Attributes:
        plan: what it shares with the others.
        label: its name.
        merge: Algorithm 1 or 2.
        ball: the set of the gap, around the original weights.
    """

    plan: Plan
    label: str
    merge: MergeRule
    ball: SupportBall


def track(work: Work) -> dict[str, Any]:
    """Trains with a measurement at every knot.

    Args:
        work: what to run.

    Returns:
        Plain data: the training losses, one entry a knot, and what all of it cost.
    """
    with one_thread():
        plan = work.plan
        setup, optimizer = plan.prepare(work.merge)
        watch = Watch(work, setup, optimizer)
        optimizer.measure_at_knots(watch.begin, watch.loss, work.ball)
        optimizer.on_knot(watch.end)
        began = perf_counter()
        losses = train(setup, plan.problem.task(plan.seed), steps=plan.steps)
        seconds = perf_counter() - began
    return {
        "label": work.label,
        "radius": work.ball.radius,
        "rank": plan.rank,
        "sites": len(optimizer.sites),
        "losses": losses,
        "knots": watch.knots,
        "last_loss": watch.here.loss,
        "passes": watch.passes,
        "seconds": {"training": seconds - watch.inside, "measuring": watch.measuring},
    }


class Place(NamedTuple):
    """Where a run stands between two links.

    Attributes:
        weights: the adapted ones.
        loss: L there.
        gradient: of L, dense.
    """

    weights: Matrices
    loss: float
    gradient: Matrices


class Watch:
    """Sees a run's knots begin and end.

    Args:
        work: the run.
        setup: its model.
        optimizer: its chain.

    Attributes:
        here: where the run has stood since the last knot.
        knots: what was seen, one entry a knot.
        passes: forward and backward passes of all measurements.
        measuring: seconds of all measurements.
        inside: seconds of all that happens at knots, the checks on the whole data included.
    """

    def __init__(self, work: Work, setup: Setup, optimizer: ChainLoRAOptimizer) -> None:
        self._work, self._model, self._optimizer = work, setup.model, optimizer
        self._landscape = work.plan.landscape(optimizer)
        self._before, self._links = float("nan"), {}
        self._entered = self._began = 0.0
        self.here = self._stand(self._landscape.origin)
        self.knots: list[dict[str, Any]] = []
        self.passes, self.measuring, self.inside = 0, 0.0, 0.0

    def begin(self) -> Sequence[Tensor]:
        """A knot begins: what the model with its live link is worth, and fresh batches for the measurement."""
        self._entered = perf_counter()
        plan = self._work.plan
        self._before = plan.problem.evaluate(self._model)
        self._model.train()
        self._links = {name: matrix(site.live()) for name, site in self._optimizer.sites.items()}
        batches = plan.problem.samples(plan.seed, len(self.knots), plan.batches)
        self._began = perf_counter()
        return batches

    def loss(self, batch: Tensor) -> Tensor:
        """A batch of the measurement; a backward pass follows."""
        self.passes += 1
        return self._work.plan.problem.task(0).loss(self._model, batch)

    def end(self, record: KnotRecord) -> None:
        """The knot is tied: the same numbers from the dense gradient, and where the run stands now."""
        self.measuring += perf_counter() - self._began - record.seconds
        plan, ball, origin = self._work.plan, self._work.ball, self._landscape.origin
        there, self.here = self.here, self._stand(self._landscape.weights_of(self._model))
        update = difference(there.weights, origin)
        units = {name: unit_link(ball, link) for name, link in self._links.items()}
        vertex = {name: ball.radius * unit for name, unit in units.items()}
        spectra = {name: self._optimizer.chain.spectrum(name) for name in origin}
        self.knots.append({
            "step": record.step,
            "loss": there.loss,
            "before": self._before,
            "after": self.here.loss,
            "eta": record.eta,
            "gap": record.gap,
            "truth": truth(ball, there.gradient, update, units),
            "curvature": self._landscape.curvature(there.weights, plan.curved),
            "bend": bend(self.here.loss - there.loss, there.gradient, difference(self.here.weights, there.weights)),
            "distance": length(difference(vertex, update)),
            "largest_norm": _largest_norm(self._optimizer, ball),
            "stable_rank": _ranks(stable_rank, spectra, plan.problem.watched),
            "effective_rank": _ranks(effective_rank, spectra, plan.problem.watched),
        })
        self.inside += perf_counter() - self._entered

    def _stand(self, weights: Matrices) -> Place:
        return Place(weights, *self._landscape.gradient(weights))


def _largest_norm(optimizer: ChainLoRAOptimizer, ball: SupportBall) -> float:
    return max(ball.norm(optimizer.chain.spectrum(name)) for name in optimizer.sites)


def _ranks(kind: Callable[[Tensor], float], spectra: Matrices, watched: str) -> dict[str, float]:
    return {"mean": fmean(map(kind, spectra.values())), "watched": kind(spectra[watched])}
