"""Where a fresh link starts from: the factor that is drawn, while the other is set to zero.

The drawn factor is A, and B at embedding sites, whose A has a row for each token and is therefore the one to be zero (as in
PEFT). Draws are made on the CPU in float32 from the generator they are handed, so that every rank and device gets the same.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from fwlora.errors import ArgumentError


class ResetRule(ABC):
    """Draws the non-zero factor of a fresh link."""

    @abstractmethod
    def draw(self, shape: tuple[int, ...], generator: Generator) -> Tensor:
        """A fresh factor of this shape: (rank, in, ...) for A, (out, rank) for an embedding's B."""


@dataclass(frozen=True)
class Kaiming(ResetRule):
    """PEFT's own start, ``U(-1/sqrt(fan_in), 1/sqrt(fan_in))`` (He et al. 2015 with a = sqrt 5).

    Example:
        >>> bool((Kaiming().draw((4, 100), torch.Generator()).abs() <= 0.1).all())
        True
    """

    def draw(self, shape: tuple[int, ...], generator: Generator) -> Tensor:
        """Uniform, bounded by the inverse root of the fan-in."""
        bound = 1 / math.sqrt(math.prod(shape[1:]))
        return torch.empty(shape).uniform_(-bound, bound, generator=generator)


@dataclass(frozen=True)
class Gaussian(ResetRule):
    """Independent normal entries.

    Args:
        std: standard deviation. PEFT's ``1/r`` was measured to be a poor restart; 0.02 is the better choice.

    Example:
        >>> Gaussian(std=0.5).draw((2, 3), torch.Generator()).shape
        torch.Size([2, 3])
    """

    std: float = 0.02

    def __post_init__(self) -> None:
        if not (isinstance(self.std, int | float) and math.isfinite(self.std) and self.std > 0):
            raise ArgumentError(f"`Gaussian(std=...)` takes a positive number and got {self.std!r}.")

    def draw(self, shape: tuple[int, ...], generator: Generator) -> Tensor:
        """Normal with mean zero."""
        return torch.empty(shape).normal_(0.0, self.std, generator=generator)


@dataclass(frozen=True)
class Orthogonal(ResetRule):
    """Orthonormal rows (columns, where there are more rows than columns), Haar-distributed.

    Example:
        >>> A = Orthogonal().draw((3, 8), torch.Generator())
        >>> torch.allclose(A @ A.mT, torch.eye(3), atol=1e-6)
        True
    """

    def draw(self, shape: tuple[int, ...], generator: Generator) -> Tensor:
        """The Q of a QR of normal entries, signs fixed; axes after the first are one."""
        return torch.nn.init.orthogonal_(torch.empty(shape), generator=generator)
