"""theory's testbeds as torch modules: the same loss, and the same gradient, of the effective weight of adapted layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fwlora import ChainLoRAOptimizer, Flat, Never
from fwlora.layers.sites import Site
from theory.points import Array, LowRank, dense
from theory.problems import Problem
from theory.sets import ConvexSet, Product


class _Loss(torch.autograd.Function):
    """``L(W)`` and ``grad L(W)`` as numpy says them."""

    @staticmethod
    def forward(ctx: Any, W: Tensor, problem: Problem) -> Tensor:
        ctx.problem, ctx.W = problem, W.detach().numpy().copy()
        return W.new_tensor(problem.loss(ctx.W))

    @staticmethod
    def backward(ctx: Any, *seeds: Tensor) -> tuple[Tensor, None]:
        return seeds[0] * torch.from_numpy(dense(ctx.problem.gradient(ctx.W)).copy()), None


class Testbed(nn.Module):
    """A testbed whose point is ``W = W_eff - W_0``: one float64 Linear for a set of matrices, one a factor for a product.

    A Linear that is called on the identity puts out its effective weight, transposed, the live link included.

    Args:
        problem: on matrices, or on a `Product` of sets of matrices.
        seed: of the original weights W_0, which are not zero: balls lie around them.
    """

    __test__ = False  # not for pytest, whatever its name

    def __init__(self, problem: Problem, seed: int = 0) -> None:
        super().__init__()
        self.problem = problem
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.maps = nn.ModuleList(
                nn.Linear(K.shape[1], K.shape[0], bias=False, dtype=torch.float64) for K in _factors(problem.constraint)
            )
        self.originals = [linear.weight.detach().clone() for linear in self.maps]  # pyright: ignore[reportCallIssue]

    @property
    def names(self) -> list[str]:
        """Of the sites."""
        return [f"maps.{i}" for i in range(len(self.originals))]

    def forward(self, batch: Any = None) -> Tensor:
        """The loss; there is no data but the problem's own."""
        eyes = [torch.eye(W.shape[1], dtype=W.dtype) for W in self.originals]
        points = [linear(eye).mT - W for linear, eye, W in zip(self.maps, eyes, self.originals, strict=True)]
        whole = len(points) == 1 and not isinstance(self.problem.constraint, Product)
        point = points[0] if whole else torch.cat([point.reshape(-1) for point in points])
        return _Loss.apply(point.contiguous(), self.problem)  # pyright: ignore[reportReturnType]

    def chain(self, **options: Any) -> ChainLoRAOptimizer:
        """An optimizer of it whose knots are tied by hand."""
        defaults = {"lr": 0.02, "rank": 1, "knots": Never(), "link_lr": Flat(warmup=0), "target_modules": self.names}
        return ChainLoRAOptimizer(self, **{**defaults, **options})

    def merged(self, optimizer: ChainLoRAOptimizer) -> Array:
        """The point after the last knot, read off the base layers' own weights; the live link is not counted."""
        blocks = [
            (optimizer.sites[name].weight.detach() - W).numpy() for name, W in zip(self.names, self.originals, strict=True)
        ]
        return join(self.problem.constraint, blocks)

    def summed(self, optimizer: ChainLoRAOptimizer) -> Array:
        """The same point as the sum of the retired links; the live link must be zero."""
        return join(self.problem.constraint, [optimizer.delta(name).numpy() for name in self.names])


def split(K: ConvexSet, X: Array) -> list[Array]:
    """A point's matrices, one a site."""
    return K.split(X) if isinstance(K, Product) else [X]


def join(K: ConvexSet, blocks: Sequence[Array]) -> Array:
    """A point from its matrices."""
    return K.join(blocks) if isinstance(K, Product) else blocks[0]


def live(site: Site) -> Array:
    """The live link, ``s B A``."""
    A, B = site.live().matrices()
    return (site.scaling * B @ A).numpy()


@torch.no_grad()
def set_link(site: Site, vertex: Array | LowRank, size: float = 1.0) -> None:
    """Let the live link be a multiple of a vertex, as if the inner problem had been solved: B A = size * V/|V|_F."""
    U, s, Vt = np.linalg.svd(dense(vertex), full_matrices=False)
    r, root = site.rank, np.sqrt(size * s / np.linalg.norm(s))
    site.B.copy_(torch.from_numpy(U[:, :r] * root[:r]))
    site.A.copy_(torch.from_numpy(root[:r, None] * Vt[:r]))


def train(model: nn.Module, optimizer: ChainLoRAOptimizer, steps: int) -> None:
    """Steps on the full loss."""
    for _ in range(steps):
        optimizer.zero_grad()
        model(None).backward()
        optimizer.step()


def _factors(K: ConvexSet) -> Sequence[ConvexSet]:
    return K.sets if isinstance(K, Product) else [K]
