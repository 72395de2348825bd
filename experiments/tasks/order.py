"""In which order rows are visited."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch


@dataclass(frozen=True)
class Order:
    """Epoch after epoch, each in its own random order, as a function of the step.

    Args:
        rows: number of rows.
        batch_size: rows per optimizer step.
        seed: of the permutations; two methods with one seed see the same batches.
        drop_last: leave out an epoch's incomplete last batch.

    Example:
        >>> order = Order(rows=5, batch_size=2, seed=0)
        >>> order.steps_per_epoch
        3
        >>> sorted(order.rows_of(0) + order.rows_of(1) + order.rows_of(2))
        [0, 1, 2, 3, 4]
    """

    rows: int
    batch_size: int
    seed: int
    drop_last: bool = False

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in one pass over the rows."""
        return self.rows // self.batch_size if self.drop_last else -(-self.rows // self.batch_size)

    def rows_of(self, step: int) -> list[int]:
        """The rows of optimizer step `step`, counted from 0."""
        epoch, position = divmod(step, self.steps_per_epoch)
        start = position * self.batch_size
        return _permutation(self.rows, self.seed, epoch)[start : start + self.batch_size]


@lru_cache(maxsize=4)
def _permutation(rows: int, seed: int, epoch: int) -> list[int]:
    # Seed and epoch share one generator seed; a million epochs apart they cannot meet.
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    return torch.randperm(rows, generator=generator).tolist()
