"""The grid that a study of speed walks: bases, dtypes, sets of targets, batch sizes."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from experiments.accounting.bench import ALL_LINEAR, Bench, targets_of
from experiments.accounting.contenders import FLOOR, chosen
from experiments.errors import UsageError
from experiments.language.loading import DTYPES
from experiments.methods import Method

# In every case where no methods are named; the first has all but those that no chain is measured against.
FEW = ("LoRA, fused AdamW", "chain", "chain, B only")
# Beside them on all linear layers of a bf16 base, which have targets for them.
BESIDE = ("chain, one block a link", "LoRA, compiled", "chain, compiled")
ASKED_FOR = ("LoRA+", "rsLoRA", "DoRA", "PiSSA", "prefix tuning", "bottleneck adapters")

# They are nothing of their own on a float32 base.
HALF_ONLY = ("LoRA, bf16 adapters", "GaLore, half-precision weights")


@dataclass(frozen=True)
class Case:
    """A place in the grid.

    Attributes:
        bench: the model and the batches.
        targets: what is adapted, as it was given.
        label: the case's name on the page.
    """

    bench: Bench
    targets: str
    label: str

    @property
    def facts(self) -> dict[str, Any]:
        """What every record of the case begins with."""
        bench = self.bench
        return {
            "case": self.label, "base": bench.base, "dtype": bench.dtype, "targets": self.targets, "rows": bench.rows
        }  # fmt: skip

    def methods(self, labels: Sequence[str], *, first: bool) -> list[Method]:
        """The frozen floor, LoRA, and what else takes part.

        Args:
            labels: of the methods; none for the usual ones.
            first: whether this is the grid's first case.

        Returns:
            The methods, each once.
        """
        every = self.bench.variants()
        few = FEW + (BESIDE if (self.bench.dtype, self.targets) == ("bf16", ALL_LINEAR) else ())
        usual = [method.label for method in every if method.label not in ASKED_FOR] if first else few
        there = [label for label in labels if self.bench.dtype != "fp32" or label not in HALF_ONLY]
        found = chosen(every, (FLOOR, *(there if labels else usual)))
        return sorted(found, key=lambda method: method.label != FLOOR)


def cases_of(config: Any, steps: int) -> list[Case]:
    """The grid of a study's options.

    Args:
        config: of `speed`.
        steps: of a run.

    Returns:
        Its cases, checked, the bases outermost.

    Raises:
        UsageError: there is no such base, dtype, layer or device, or the grid is empty.
    """
    axes = {
        "--bases": config.bases, "--dtypes": config.dtypes, "--targets": config.targets, "--batch-sizes": config.batch_sizes
    }  # fmt: skip
    for option, values in axes.items():
        if not values or len(set(values)) < len(values):
            raise UsageError(f"{option} {' '.join(map(str, values))}: give one or more, each once.")
    for dtype in config.dtypes:
        if dtype not in DTYPES:
            raise UsageError(f"--dtypes {dtype}: choose from {', '.join(DTYPES)}.")
    if min(config.batch_sizes) < 1:
        raise UsageError(f"--batch-sizes {min(config.batch_sizes)}: give numbers of at least 1.")
    auto = "cuda" if torch.cuda.is_available() else "cpu"
    device = auto if config.device == "auto" else config.device
    cases = []
    for base, dtype, targets, rows in itertools.product(*axes.values()):
        bench = Bench(
            base, dtype, device, rows, config.length, targets_of(base, tuple(targets.split("+"))), config.rank, config.knots,
            steps, config.autocast, config.checkpointing,
        )  # fmt: skip
        bench.check()
        size = "" if len(config.batch_sizes) == 1 else f", {rows} row{'s' * (rows > 1)}"
        cases.append(Case(bench, targets, f"{base}, {dtype}, {targets}{size}"))
    return cases


def check_room(cases: Sequence[Case]) -> None:
    """Finds out whether LoRA, which everything is compared with, can run anywhere.

    Args:
        cases: the grid.

    Raises:
        UsageError: it can in no case.
    """
    reasons = [case.bench.obstacle(method) for case in cases for method in case.bench.methods(("LoRA",))]
    if None not in reasons:
        bases = dict.fromkeys(case.bench.base for case in cases)
        raise UsageError(f"--bases {' '.join(bases)}: LoRA itself {reasons[0]}.")
