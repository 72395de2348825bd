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
    """Draws the non-zero factor of a fresh link, and may replace the draw by what the gradient says."""

    @property
    def probes(self) -> int:
        """Optimizer steps at the start of a link that look at the gradient instead of training the link."""
        return 0

    @abstractmethod
    def draw(self, shape: tuple[int, ...], generator: Generator) -> Tensor:
        """A fresh factor of this shape: (rank, in, ...) for A, (out, rank) for an embedding's B."""

    def align(self, directions: Tensor) -> Tensor:
        """What a link starts from once the probes have told the gradient's top singular directions.

        Args:
            directions: (rank or fewer, fan_in), orthonormal rows, the strongest first.

        Returns:
            Rows of A; columns of B at an embedding.
        """
        return directions


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
        is_number = isinstance(self.std, int | float) and not isinstance(self.std, bool)
        if not (is_number and math.isfinite(self.std) and self.std > 0):
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


@dataclass(frozen=True)
class GradientAligned(ResetRule):
    """A starts as the top right singular directions of the gradient: the linear minimisation oracle's own answer.

    With ``G = U S V^T`` the rank-r step of steepest descent is ``-U_r S_r V_r^T``, so ``A = V_r^T`` lets B find it at once.
    The first `steps` optimizer steps of a link are spent on it, in the training loop as it is: half of them with A drawn and B
    zero, where grad_B = s G A^T; the rest with ``B = Q``, an orthonormal basis of those, and A zero, where grad_A = s Q^T G.
    This is one subspace iteration from a random start, so A holds V_r approximately where singular values decay slowly. What
    else is trained goes on training in these steps. Where the gradient is zero or not finite the link starts from
    `Kaiming`'s draw, and its record says so.

    Whether it pays depends on the task (`python -m experiments resets`, against the same chain from `Kaiming`, p corrected):
    new labels for a classifier +0.4 points with 2 steps (p = .13) and +0.8 with 8 (p = .048); rotated digits nothing with 2,
    and with 8 at rank 1 a loss of 5.5; a small language model nothing with 2, and a loss of .012 nats with 8.

    Args:
        steps: optimizer steps spent, at least 2. More average the gradient over more minibatches. They count for `link_lr`: a
            warm-up that is to be felt must be longer.

    Example:
        >>> GradientAligned().probes, Kaiming().probes
        (2, 0)
    """

    steps: int = 2

    def __post_init__(self) -> None:
        if isinstance(self.steps, bool) or not isinstance(self.steps, int) or self.steps < 2:
            raise ArgumentError(
                f"`GradientAligned(steps=...)` takes a whole number of optimizer steps, at least 2 (one for each side of the "
                f"gradient), and got {self.steps!r}."
            )

    @property
    def probes(self) -> int:
        """`steps`."""
        return self.steps

    def draw(self, shape: tuple[int, ...], generator: Generator) -> Tensor:
        """What the first probe looks along, and what a link starts from where there is no gradient: `Kaiming`'s draw."""
        return Kaiming().draw(shape, generator)
