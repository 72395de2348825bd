"""The chain, Algorithm 1: what a link is, and what it is measured against."""

from __future__ import annotations

import numpy as np
import pytest

from theory.bounds import ChainBound
from theory.chain import chain
from theory.errors import ArgumentError
from theory.links import BestLink, TrainedLink, TruncatedStep
from theory.problems import Completion, Concave, DriftingCompletion, Indefinite, Logistic, PhaseRetrieval, Welsch
from theory.sets import L1Ball, NuclearBall

LINKS = [TruncatedStep(2), TrainedLink(2, inner_steps=3), TrainedLink(2, inner_steps=30), BestLink(2)]
SMALL = (7, 6)


@pytest.mark.parametrize("link", LINKS, ids=repr)
@pytest.mark.parametrize("kind", [Completion, Welsch, Logistic], ids=lambda k: k.__name__)
def test_links_have_the_rank_and_lower_the_loss(kind, link):
    problem, rng = kind.draw(0, SMALL), np.random.default_rng(0)
    W = problem.start
    for _ in range(3):
        Delta = link.link(problem, W, problem.gradient(W), rng)
        assert np.linalg.matrix_rank(Delta, tol=1e-9) <= 2
        assert problem.loss(W + Delta) <= problem.loss(W)
        W = W + Delta
    assert problem.loss(W) < 0.9 * problem.loss(problem.start)


def test_the_truncated_step_is_eckart_young():
    """On a squared distance each link takes away the r largest singular values of what is left."""
    problem = Completion(np.random.default_rng(0).standard_normal(SMALL))
    s = np.linalg.svd(problem.targets, compute_uv=False)
    run = chain(problem, TruncatedStep(2), 3)
    assert np.allclose(run.column("gradient_norm") ** 2, np.square(s).reshape(3, 2).sum(axis=1))
    assert run.final_loss == pytest.approx(0.0, abs=1e-20)
    assert run.column("rank").tolist() == [0, 2, 4]


@pytest.mark.parametrize("kind", [Completion, Welsch, Logistic], ids=lambda k: k.__name__)
def test_solvers_that_promise_it_are_never_worse_than_the_truncated_step(kind):
    problem = kind.draw(0, SMALL)
    for link in (TruncatedStep(2), BestLink(2)):
        assert link.never_worse
        assert np.all(chain(problem, link, 5).column("eps") <= 1e-12)
    assert chain(problem, BestLink(2), 3).final_loss <= chain(problem, TruncatedStep(2), 3).final_loss


def test_a_poorly_trained_link_falls_short_by_what_is_recorded():
    problem = Completion.draw(0, SMALL)
    run = chain(problem, TrainedLink(2, inner_steps=1), 4)
    falls = run.column("loss") - run.losses_after()
    assert np.allclose(run.column("eps"), np.maximum(0, run.column("gradient_norm") ** 2 / 2 - falls))
    assert run.column("eps").max() > 0
    assert ChainBound().check(run).holds


def test_the_rank_of_a_chain_grows_by_r_a_link_at_most():
    run = chain(Welsch.draw(0, SMALL), BestLink(1), 6)
    assert np.all(run.column("rank") <= np.arange(6))
    assert np.linalg.matrix_rank(run.final, tol=1e-8) <= 6


def test_a_chain_can_be_continued_beyond_its_set():
    """It has no set: two runs of 2 links are one of 4."""
    problem = Completion(np.random.default_rng(0).standard_normal(SMALL), constraint=NuclearBall(SMALL, 0.5))
    first = chain(problem, TruncatedStep(1), 2)
    second = chain(problem, TruncatedStep(1), 2, start=first.final)
    assert np.allclose(second.final, chain(problem, TruncatedStep(1), 4).final)


def test_the_caller_hears_each_link():
    heard: list = []
    run = chain(Completion.draw(0, SMALL), TruncatedStep(1), 3, on_iteration=heard.append)
    assert heard == run.iterations


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: chain(PhaseRetrieval.draw(0, SMALL), TruncatedStep(1), 2), "whose constants hold on the whole space"),
        (lambda: chain(Indefinite.draw(0, SMALL), TruncatedStep(1), 2), "whose constants hold on the whole space"),
        (lambda: chain(DriftingCompletion.draw(0, SMALL), TruncatedStep(1), 2), "stands still"),
        (lambda: chain(Completion(np.ones(3), constraint=L1Ball(3)), TruncatedStep(1), 2), "a loss on matrices"),
        (lambda: chain(Completion.draw(0, SMALL), TruncatedStep(1), 0), "`steps` must be"),
        (lambda: TruncatedStep(0), r"`TruncatedStep\(rank=...\)` must be"),
        (lambda: BestLink(2, most=0), r"`BestLink\(most=...\)` must be"),
        (lambda: chain(Completion.draw(0, SMALL), TruncatedStep(1), 2, start=np.ones(3)), "`start` for .* must have shape"),
        (lambda: TrainedLink(2, inner_steps=0), r"`TrainedLink\(inner_steps=...\)` must be"),
        (
            lambda: TruncatedStep(1).link(Concave.draw(0, SMALL), np.zeros(SMALL), np.ones(SMALL), np.random.default_rng(0)),
            "divides by beta, which is 0",
        ),
    ],
)
def test_bad_calls_are_refused_by_name(call, words: str):
    with pytest.raises(ArgumentError, match=words):
        call()
