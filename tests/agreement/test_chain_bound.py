"""`merge=Add()` is Algorithm 1: its runs satisfy Theorem F, on every testbed and on a small network."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Self

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional

from fwlora import Add, ChainLoRAOptimizer, Flat, Never, SupportBall
from tests.agreement.torch_problems import Testbed, live, train
from theory.bounds import ChainBound
from theory.links import LinkSolver, TruncatedStep
from theory.points import Array, dense
from theory.problems import Completion, Problem, Sensing
from theory.sets import NuclearBall
from theory.sets.support_ball import truncated_norm
from theory.trajectory import Iteration, Trajectory

MARGIN = 1.5
"""On an estimated beta: between the points where the curvature was looked at it may be larger."""


@dataclass(frozen=True)
class Trained(LinkSolver):
    """Stands for fwlora's links in theory's record; nothing is promised of them."""

    never_worse = False

    def link(self, problem: Problem, W: Array, G: Array, rng: np.random.Generator) -> Array:
        raise NotImplementedError


@dataclass(frozen=True)
class ClaimedExact(Trained):
    """The same with a claim: every link is as good as the truncated gradient step, eps = 0."""

    never_worse = True


def walk(model: nn.Module, optimizer: ChainLoRAOptimizer, problem: Problem, knots: int, steps: int) -> list[Array]:
    """W_1, ..., W_{T+1} of a chain trained on the full loss; what the chain says of itself is held against theory's figures.

    Args:
        model: calls to it are the loss.
        optimizer: of one site.
        problem: the same loss of ``W``, the weight less its original.
        knots: T.
        steps: in each link.

    Returns:
        The points.
    """
    (site,) = optimizer.sites.values()
    original = site.weight.detach().clone()
    points = [np.zeros(problem.constraint.shape)]
    for _ in range(knots):
        W = points[-1]
        norm = truncated_norm(dense(problem.gradient(W)), site.rank)
        train(model, optimizer, steps)
        report = optimizer.measure_gap([None], model, SupportBall(1.0, site.rank), passes=8)
        assert report.total.truncated_norm.point == pytest.approx(norm, rel=1e-6)
        Delta = live(site)
        trained = model(None).item()
        record = optimizer.tie_knot()

        points.append((site.weight.detach() - original).numpy())
        np.testing.assert_allclose(points[-1], W + Delta, atol=1e-13 * (1 + np.abs(Delta).max()))
        assert model(None).item() == pytest.approx(trained, rel=1e-10)
        assert problem.loss(points[-1]) == pytest.approx(trained, rel=1e-10)
        assert record.link_norms[site.name] == pytest.approx(np.linalg.norm(Delta), rel=1e-9)
    return points


def recorded(problem: Problem, points: list[Array], links: LinkSolver) -> Trajectory:
    """A walk as `theory.chain` records it."""
    run = Trajectory("chain", problem, links, problem.constants(points[0]))
    losses = [problem.loss(W) for W in points]
    for t, W in enumerate(points[:-1], 1):
        norm = truncated_norm(dense(problem.gradient(W)), links.rank)
        # eps_t = [ |G_t|_{F,r}^2/(2 beta) - (L(W_t) - L(W_{t+1})) ]^+
        eps = max(0.0, norm**2 / (2 * problem.beta) - (losses[t - 1] - losses[t]))
        length, atoms = float(np.linalg.norm(points[t] - W)), int(np.linalg.matrix_rank(W, tol=1e-9))
        run.iterations.append(Iteration(t, losses[t - 1], float("nan"), eps, 1.0, length, 0.0, 1, atoms, gradient_norm=norm))
    run.final, run.final_loss = points[-1], losses[-1]
    return run


def on_testbed(problem: Problem, rank: int, knots: int, steps: int, lr: float = 0.02) -> list[Array]:
    model = Testbed(problem)
    return walk(model, model.chain(merge=Add(), rank=rank, lr=lr), problem, knots, steps)


@pytest.mark.parametrize("rank", [1, 2])
@pytest.mark.parametrize("kind", ChainBound().testbeds(), ids=lambda kind: kind.__name__)
def test_the_chain_satisfies_theorem_f(kind: type[Problem], rank: int):
    problem = kind.draw(0, (9, 8))
    run = recorded(problem, on_testbed(problem, rank, knots=4, steps=20), Trained(rank))
    assert ChainBound().check(run).holds
    assert run.final_loss < run.iterations[0].loss
    assert (run.column("rank") <= rank * np.arange(4)).all()
    assert np.linalg.matrix_rank(run.final, tol=1e-9) <= 4 * rank


@pytest.mark.parametrize("rank", [1, 2])
@pytest.mark.parametrize("kind", [Completion, Sensing], ids=lambda kind: kind.__name__)
def test_on_a_convex_quadratic_long_links_need_no_eps(kind: type[Problem], rank: int):
    """Each lowers the loss by ``|G|_{F,r}^2/(2 beta)`` or more: the claim eps = 0 stands, link by link."""
    problem = kind.draw(0, (9, 8))
    points = on_testbed(problem, rank, knots=2 if rank == 1 else 1, steps=150, lr=0.05)
    assert not recorded(problem, points, Trained(rank)).column("eps").any()
    assert ChainBound().check(recorded(problem, points, ClaimedExact(rank))).holds


@pytest.mark.parametrize("kind", ChainBound().testbeds(), ids=lambda kind: kind.__name__)
def test_short_links_that_claim_to_be_exact_are_found_out(kind: type[Problem]):
    problem = kind.draw(0, (9, 8))
    points = on_testbed(problem, 1, knots=3, steps=1, lr=1e-3)
    assert (recorded(problem, points, Trained(1)).column("eps") > 0).all()
    assert ChainBound().check(recorded(problem, points, Trained(1))).holds
    assert not ChainBound().check(recorded(problem, points, ClaimedExact(1))).holds


class Network(nn.Module):
    """64-12-10 with a tanh on some digits, in float64; calls are the cross-entropy over all of them."""

    def __init__(self) -> None:
        super().__init__()
        images, labels = load_digits(return_X_y=True)
        self.x, self.y = torch.from_numpy(np.asarray(images)[:150] / 16), torch.from_numpy(np.asarray(labels)[:150]).long()
        self.hidden = nn.Linear(64, 12, dtype=torch.float64)
        self.last = nn.Linear(12, 10, dtype=torch.float64)

    def forward(self, batch: None = None) -> Tensor:
        return functional.cross_entropy(self.last(torch.tanh(self.hidden(self.x))), self.y)


class NetworkWithEstimatedBeta(Problem):
    """The network's loss in its hidden weight, less the original.

    L >= 0 holds; beta is an ESTIMATE, `MARGIN` times the largest curvature that was seen at the points of a run. No certified
    constant is known for it, and what is checked with it is checked with an estimate.
    """

    everywhere = True
    lowest = 0.0

    def __init__(self, network: Network) -> None:
        W, b = (p.detach().clone() for p in network.hidden.parameters())
        self.constraint = NuclearBall((W.shape[0], W.shape[1]))  # for its shape: a chain has no set
        self._loss = lambda X: functional.cross_entropy(
            network.last(torch.tanh(functional.linear(network.x, W + X, b))), network.y
        )

    def loss(self, W: Array) -> float:
        return self._loss(torch.from_numpy(W)).item()

    def gradient(self, W: Array) -> Array:
        X = torch.from_numpy(W).requires_grad_()
        return torch.autograd.grad(self._loss(X), X)[0].numpy()

    def estimate_beta(self, points: list[Array], searches: int = 30) -> float:
        """`MARGIN` times the largest Rayleigh quotient of the Hessian that power iteration finds at some points."""
        best, rng = 0.0, np.random.default_rng(0)
        for W in points:
            direction = torch.from_numpy(rng.standard_normal(W.shape))
            X = torch.from_numpy(W).requires_grad_()
            (G,) = torch.autograd.grad(self._loss(X), X, create_graph=True)
            for _ in range(searches):
                direction = direction / direction.norm()
                (bent,) = torch.autograd.grad(G, X, direction, retain_graph=True)
                best = max(best, torch.sum(direction * bent).item())
                direction = bent + best * direction  # towards the top of the spectrum, not the bottom
        return MARGIN * best

    @classmethod
    def draw(cls, seed: int = 0, shape: tuple[int, int] | None = None) -> Self:
        return cls(Network())


@pytest.mark.parametrize("rank", [1, 2])
def test_on_a_network_the_chain_satisfies_theorem_f_with_an_estimated_beta(rank: int):
    network = Network()
    problem = NetworkWithEstimatedBeta(network)
    optimizer = ChainLoRAOptimizer(
        network, 0.05, rank=rank, knots=Never(), link_lr=Flat(warmup=0), target_modules=["hidden"], merge=Add()
    )
    points = walk(network, optimizer, problem, knots=3, steps=40)
    middles = [(W + X) / 2 for W, X in pairwise(points)]
    problem.beta = problem.estimate_beta([*points, *middles])

    assert not any(refutes(problem, W, rank, problem.beta) for W in points)
    assert refutes(problem, points[0], rank, problem.beta / 10)  # the test can fail

    run = recorded(problem, points, Trained(rank))
    assert ChainBound().check(run).holds
    assert ChainBound().check(recorded(problem, points, ClaimedExact(rank))).holds
    assert run.final_loss < 0.7 * run.iterations[0].loss


def refutes(problem: Problem, W: Array, rank: int, beta: float) -> bool:
    """Whether an estimate fails where the theorem uses it: ``L(W - [G]_r/beta) <= L(W) - |G|_{F,r}^2/(2 beta)``."""
    G = problem.gradient(W)
    B, A = TruncatedStep(rank).factors(G)
    return problem.loss(W - B @ A / beta) > problem.loss(W) - truncated_norm(G, rank) ** 2 / (2 * beta)
