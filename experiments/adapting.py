"""Who meets in the study of adaptation: LoRA, chains of several lengths and starts, falling ranks, and full fine-tuning.

A method's learning rate here is the middle of the grid from which its own is chosen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from experiments.compare import Run
from experiments.methods import ChainOfLoRA, FullFineTuning, LoRA, Method
from experiments.tasks.adaptation import Adaptation
from fwlora import Decay, Evenly, Flat, GradientAligned, Kaiming, RankSchedule, ResetRule, StepDown

WARMUP = 5  # steps after each knot
BASELINE, FULL = "LoRA", "full fine-tuning"


def contenders(rank: int) -> list[Method]:
    """Every method, LoRA first.

    Args:
        rank: of LoRA and of a chain's first link.

    Returns:
        The methods; their labels tell them apart.
    """
    halves = [max(1, rank >> link) for link in range(3)]
    return [
        LoRA(BASELINE, 1e-2, rank),
        *(_chain(f"chain of {links}", rank, links) for links in (2, 3, 5)),
        ChainOfLoRA("chain of 3, one decay", 1e-2, rank, Evenly(3), link_lr=Flat(WARMUP)),
        *(_chain(f"chain of {links}, aligned", rank, links, reset=GradientAligned()) for links in (2, 3)),
        _chain(f"chain of 3, rank {' to '.join(map(str, halves))}", rank, 3, ranks=StepDown(halves)),
        FullFineTuning(FULL, 2e-3),
    ]


@dataclass(frozen=True)
class Contest:
    """The methods on one problem.

    Attributes:
        problem: a text to adapt to.
        methods: by their labels.
    """

    problem: Adaptation
    methods: Sequence[Method]

    def run(self, label: str, lr: float, seed: int) -> Run:
        """One method's run at a learning rate."""
        (method,) = [method for method in self.methods if method.label == label]
        return Run(self.problem, replace(method, lr=lr), seed)  # pyright: ignore[reportArgumentType]


def _chain(label: str, rank: int, links: int, reset: ResetRule | None = None, ranks: RankSchedule | None = None) -> ChainOfLoRA:
    """A chain of equal links whose rate decays within each."""
    return ChainOfLoRA(
        label, 1e-2, ranks or rank, Evenly(links), link_lr=Decay(WARMUP), schedule=None, reset=reset or Kaiming()
    )  # fmt: skip
