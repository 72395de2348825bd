"""How a chain finds its next link: a matrix of rank r at most that lowers the loss."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from scipy.optimize import minimize

from theory.errors import ArgumentError, count
from theory.points import Array, dense
from theory.problems.problem import Problem


@dataclass(frozen=True)
class LinkSolver(ABC):
    """Answers ``Delta ~ argmin_{rank Delta <= r} L(W + Delta)``.

    Args:
        rank: r.

    Attributes:
        never_worse: whether ``L(W + Delta) <= L(W - [G]_r/beta)`` is promised: Theorem F then needs no shortfall.
    """

    rank: int
    never_worse: ClassVar[bool]

    def __post_init__(self) -> None:
        count(f"{type(self).__name__}(rank=...)", self.rank)

    @property
    def label(self) -> str:
        """How a table names it."""
        return f"r={self.rank}"

    @abstractmethod
    def link(self, problem: Problem, W: Array, G: Array, rng: np.random.Generator) -> Array:
        """The link from W, where the gradient is G."""


@dataclass(frozen=True)
class TruncatedStep(LinkSolver):
    """``-[G]_r/beta``: one gradient step, cut to rank r. What a link is measured against."""

    never_worse = True

    def link(self, problem: Problem, W: Array, G: Array, rng: np.random.Generator) -> Array:
        """The best rank-r approximation of the gradient step.

        Args:
            problem: with beta > 0.
            W: not used.
            G: the gradient.
            rng: not used.

        Returns:
            The link.

        Raises:
            ArgumentError: beta = 0, where the step has no end.
        """
        if problem.beta == 0:
            raise ArgumentError(
                f"`TruncatedStep()` divides by beta, which is 0 for {problem!r}: a concave loss has no such step."
            )
        B, A = self.factors(G)
        return -(B @ A) / problem.beta

    def factors(self, G: Array) -> tuple[Array, Array]:
        """``B (d, r)`` and ``A (r, k)`` with ``B A = [G]_r``, balanced."""
        U, s, Vt = np.linalg.svd(G, full_matrices=False)
        root = np.sqrt(s[: self.rank])
        return U[:, : self.rank] * root, root[:, None] * Vt[: self.rank]


@dataclass(frozen=True)
class TrainedLink(LinkSolver):
    """LoRA: ``B = 0``, A drawn, both trained by some steps of L-BFGS on ``L(W + B A)``.

    Args:
        rank: r.
        inner_steps: of L-BFGS.
    """

    inner_steps: int = 20
    never_worse = False

    def __post_init__(self) -> None:
        super().__post_init__()
        count("TrainedLink(inner_steps=...)", self.inner_steps)

    @property
    def label(self) -> str:
        """With its steps."""
        return f"r={self.rank}, {self.inner_steps} steps"

    def link(self, problem: Problem, W: Array, G: Array, rng: np.random.Generator) -> Array:
        """Trained factors, multiplied."""
        B, A = np.zeros((W.shape[0], self.rank)), rng.standard_normal((self.rank, W.shape[1])) / np.sqrt(W.shape[1])
        return _train(problem, W, B, A, self.inner_steps)


@dataclass(frozen=True)
class BestLink(LinkSolver):
    """The minimiser over B and A as well as it can be had: L-BFGS from the truncated step, and so never worse than that."""

    most: int = 200
    never_worse = True

    def __post_init__(self) -> None:
        super().__post_init__()
        count("BestLink(most=...)", self.most)

    def link(self, problem: Problem, W: Array, G: Array, rng: np.random.Generator) -> Array:
        """The better of the truncated step and what training makes of it."""
        truncated = TruncatedStep(self.rank)
        first = truncated.link(problem, W, G, rng)
        B, A = truncated.factors(-G / problem.beta)
        return min((_train(problem, W, B, A, self.most), first), key=lambda link: problem.loss(W + link))


def _train(problem: Problem, W: Array, B: Array, A: Array, steps: int) -> Array:
    """``B A`` after some steps on ``L(W + B A)``, whose gradients are ``G A^T`` and ``B^T G``."""
    cut = B.size

    def split(x: Array) -> tuple[Array, Array]:
        return x[:cut].reshape(B.shape), x[cut:].reshape(A.shape)

    def value_and_gradient(x: Array) -> tuple[float, Array]:
        B, A = split(x)
        G = dense(problem.gradient(W + B @ A))
        return problem.loss(W + B @ A), np.concatenate([(G @ A.T).ravel(), (B.T @ G).ravel()])

    found = minimize(
        value_and_gradient, np.concatenate([B.ravel(), A.ravel()]), jac=True, method="L-BFGS-B",
        options={"maxiter": steps, "ftol": 0.0, "gtol": 0.0},
    )  # fmt: skip
    B, A = split(found.x)
    return B @ A
