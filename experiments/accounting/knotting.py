"""What it costs to merge all factors into the weights: a chain's knot and other ways, beside a step of LoRA."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from experiments.accounting.bench import Bench, short_links, sweep
from experiments.accounting.contenders import RATE
from experiments.accounting.refusals import Refusals, told
from experiments.accounting.timing import Lap, Runner, Watched, order
from experiments.accounting.transient import transient_bytes
from experiments.methods import ChainOfLoRA, LoRA
from experiments.methods.lora import ADAPTER
from fwlora import ChainLoRAOptimizer, Never

STEP, CHAIN, FIRST, PLAIN, MERGE, SAFE_MERGE = (
    "a step of LoRA", "chain", "chain, the first knot", "addmm_, no feedback", "PEFT's merge()",
    "PEFT's merge(safe_merge=True)",
)  # fmt: skip
# Rounds before the first that counts.
WARM_UP = 2
# |dW| / |W| of what is merged; no clock depends on it.
RELATIVE = 1e-3

Row = dict[str, Any]


def race(bench: Bench, rounds: int, firsts: int, *, on_round: Callable[[], object] = lambda: None) -> list[Row]:
    """Ties knots in turns with steps of LoRA, and by other ways of merging.

    Args:
        bench: the model and the batches.
        rounds: that count, each of a step of LoRA and of a merge by every way.
        firsts: chains whose first knot, which takes the original weights' fingerprints, is timed.
        on_round: called after each round.

    Returns:
        Plain data, a row for the step and for each way: its laps, the most bytes that it held for a while, or the reason why
        there are none; and the bytes of the largest weight that is merged into.
    """
    reason = obstacle(bench)
    if reason is None:
        try:
            with short_links():
                return _race(bench, rounds, firsts, on_round)
        except Refusals as error:
            reason = told(error)
    return [{"way": way, "reason": reason, "laps": [], "transient": None, "largest": None}
            for way in (STEP, CHAIN, FIRST, PLAIN, MERGE, SAFE_MERGE)]  # fmt: skip


def obstacle(bench: Bench) -> str | None:
    """Why a model under LoRA cannot run here beside one under a chain; None where it can."""
    lora, chain = _methods(bench)
    return bench.obstacle(lora, beside=bench.bytes(chain).state)


def _nothing() -> None:
    pass


@dataclass
class Way:
    """Merges all factors of a model, or takes a step.

    Attributes:
        label: its name.
        work: what is timed.
        prepare: done before it, off the clock.
        tidy: done after it, off the clock.
        laps: that count.
        transient: bytes.
    """

    label: str
    work: Callable[[], object]
    prepare: Callable[[], object] = _nothing
    tidy: Callable[[], object] = _nothing
    laps: list[Lap] = field(default_factory=list)
    transient: int | None = None

    def lap(self, device: str) -> Lap:
        """One turn."""
        clock = Watched(cast(Any, None), device)
        self.prepare()
        clock.began = clock.now()
        self.work()
        lap = clock.lap()
        self.tidy()
        return lap

    def weigh(self, device: str) -> None:
        """One turn for its memory, which takes no time that counts."""
        self.prepare()
        self.transient = transient_bytes(self.work, device)
        self.tidy()

    def row(self, largest: int) -> Row:
        """What there is to tell."""
        return {"way": self.label, "reason": None, "laps": self.laps, "transient": self.transient, "largest": largest}


def _methods(bench: Bench) -> tuple[LoRA, ChainOfLoRA]:
    return LoRA("LoRA", RATE, bench.rank), ChainOfLoRA("chain", RATE, bench.rank, Never())


def _race(bench: Bench, rounds: int, firsts: int, on_round: Callable[[], object]) -> list[Row]:
    lora, chain = _methods(bench)
    sweep()
    first, tied = Way(FIRST, _nothing), Way(CHAIN, _nothing)
    for number in range(firsts + 1):
        # The chain before it goes first, with its model: two are there at a time, and not three.
        tied.work = tied.prepare = first.work = first.prepare = _nothing
        sweep()
        tied = _chain(bench, chain)
        first.work, first.prepare = tied.work, tied.prepare
        if number == 0:
            first.weigh(bench.device)
        else:
            first.laps.append(first.lap(bench.device))
    runner = Runner.ready(bench, lora)
    layers = {name: layer for name, layer in runner.setup.model.named_modules() if isinstance(layer, LoraLayer)}
    ways = [Way(STEP, runner.step), tied, *_of_peft(layers)]
    for number in range(WARM_UP + rounds):
        for place in order(len(ways), number):
            lap = ways[place].lap(bench.device)
            if number >= WARM_UP:
                ways[place].laps.append(lap)
        on_round()
    for way in ways[1:]:
        way.weigh(bench.device)
    largest = max(_weight(layer).nbytes for layer in layers.values())
    return [way.row(largest) for way in (ways[0], ways[1], first, *ways[2:])]


def _chain(bench: Bench, method: ChainOfLoRA) -> Way:
    optimizer = Runner.ready(bench, method).setup.optimizer
    assert isinstance(optimizer, ChainLoRAOptimizer)
    sites = optimizer.sites
    generator = torch.Generator().manual_seed(0)

    def prepare() -> None:
        step(optimizer)
        fill(((site.weight, site.A, site.B, site.scaling) for site in sites.values()), generator)

    return Way(CHAIN, optimizer.tie_knot, prepare)


def step(optimizer: torch.optim.Optimizer) -> None:
    """A step on gradients of ones, so that Adam has a state for the knot to forget.

    Args:
        optimizer: of the chain.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    for parameter in parameters:
        parameter.grad = None


def _of_peft(layers: Mapping[str, LoraLayer]) -> list[Way]:
    """Three ways on PEFT's layers, whose merged state is forgotten after each: the next merge is another."""
    generator = torch.Generator().manual_seed(0)

    def prepare() -> None:
        fill((_factors(layer) for layer in layers.values()), generator)

    def merge(*, safe: bool) -> Callable[[], None]:
        return lambda: [layer.merge(safe_merge=safe) for layer in cast(Iterable[Any], layers.values())].clear()

    def tidy() -> None:
        for layer in cast(Iterable[Any], layers.values()):
            layer.merged_adapters.clear()

    return [
        Way(PLAIN, lambda: add([_factors(layer) for layer in layers.values()]), prepare),
        Way(MERGE, merge(safe=False), prepare, tidy),
        Way(SAFE_MERGE, merge(safe=True), prepare, tidy),
    ]


@torch.no_grad()
def add(factors: Iterable[tuple[Tensor, Tensor, Tensor, float]]) -> None:
    """``W += s B A`` in W's own precision and in place, rounding as it comes.

    Args:
        factors: W, A, B and s of every layer.
    """
    for W, A, B, scale in factors:
        W.addmm_(B.to(W.dtype), A.to(W.dtype), alpha=scale)


@torch.no_grad()
def fill(factors: Iterable[tuple[Tensor, Tensor, Tensor, float]], generator: torch.Generator) -> None:
    """Draws every B anew, so that about ``|s B A| = RELATIVE |W|``.

    Args:
        factors: W, A, B and s of every layer.
        generator: of the draws, on the CPU.
    """
    for W, A, B, scale in factors:
        wanted = RELATIVE * torch.linalg.vector_norm(W, dtype=torch.float32)
        drawn = torch.randn(B.shape, generator=generator).to(B)
        # |B A| is about |A| sqrt(out) for independent entries of B with unit variance.
        B.copy_(drawn * (wanted / (abs(scale) * torch.linalg.vector_norm(A, dtype=torch.float32) * len(B) ** 0.5)))


def _factors(layer: LoraLayer) -> tuple[Tensor, Tensor, Tensor, float]:
    A, B = cast(nn.Linear, layer.lora_A[ADAPTER]).weight, cast(nn.Linear, layer.lora_B[ADAPTER]).weight
    return _weight(layer), A, B, float(layer.scaling[ADAPTER])


def _weight(layer: LoraLayer) -> Tensor:
    return cast(Tensor, layer.get_base_layer().weight)
