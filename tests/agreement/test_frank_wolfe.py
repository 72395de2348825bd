"""`merge=FrankWolfe(...)` is Algorithm 2: exactly where the links are solved exactly, and with a measured eps where trained."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from fwlora import Centred, ChainLoRAOptimizer, FrankWolfe, NuclearBall, OpenLoop, ShortStep, SupportBall
from tests.agreement.torch_problems import Testbed, join, live, set_link, split, train
from theory import sets, step_sizes
from theory.bounds import Bound, CircumradiusBound, FixedStepBound, ShortStepBound
from theory.errors import AssumptionError
from theory.frank_wolfe import frank_wolfe
from theory.oracles import Ask, Exact, Oracle
from theory.points import Array, dense, inner
from theory.problems import Completion, Problem, TanhNetwork
from theory.step_sizes import best_fixed
from theory.trajectory import Iteration, Trajectory

KNOTS = 8


def on_support_ball() -> Problem:
    Y = np.random.default_rng(3).standard_normal((12, 10))
    return Completion(Y, constraint=sets.SupportBall(Y.shape, radius=2.5, rank=2))


def on_two_sites() -> Problem:
    """A target for each site, both outside their balls."""
    shapes, rng = [(12, 10), (8, 10)], np.random.default_rng(4)
    K = sets.Product([sets.NuclearBall(shape, radius=3.0) for shape in shapes])
    return Completion(rng.standard_normal(K.shape), rng.uniform(0.2, 2.0, K.shape), constraint=K)


PROBLEMS: dict[str, Callable[[], Problem]] = {
    "completion": lambda: Completion.draw(0, (12, 10)),
    "tanh": lambda: TanhNetwork.draw(1, (8, 10)),
    "support": on_support_ball,
    "two sites": on_two_sites,
}
# fwlora's rule, given beta, M and T; theory's, which reads them off the problem.
RULES: dict[str, tuple[Callable[..., Any], step_sizes.StepSize]] = {
    "open loop": (lambda beta, M, T: OpenLoop(), step_sizes.OpenLoop()),
    "fixed": (lambda beta, M, T: 0.3, step_sizes.Fixed(0.3)),
    "centred": (lambda beta, M, T: Centred(beta, M, T), step_sizes.Centred()),
    "short": (lambda beta, M, T: ShortStep(beta), step_sizes.ShortStep()),
}


def balls(K: sets.ConvexSet) -> Sequence[Any]:
    """The balls of theory, one a site."""
    return K.sets if isinstance(K, sets.Product) else [K]


def ball_of(problem: Problem) -> NuclearBall | SupportBall:
    """The ball of fwlora, the same at each site."""
    first = balls(problem.constraint)[0]
    return SupportBall(first.radius, first.atom_rank) if isinstance(first, sets.SupportBall) else NuclearBall(first.radius)


def chain_on(problem: Problem, rule: Any, **options: Any) -> tuple[Testbed, ChainLoRAOptimizer]:
    """A testbed, and a chain whose knots are measured on the whole of its data where the rule asks for it."""
    model, ball = Testbed(problem), ball_of(problem)
    optimizer = model.chain(merge=FrankWolfe(ball, rule), **{"rank": ball.atom_rank, **options})
    if optimizer.merge.needs_gap:
        optimizer.measure_at_knots([None], model)
    return model, optimizer


class Watched(Oracle):
    """The exact oracle, which remembers where it was asked."""

    def __init__(self) -> None:
        self.seen: list[Array] = []

    def open(self, K: sets.ConvexSet, rng: np.random.Generator) -> Ask:
        ask = Exact().open(K, rng)

        def watched(G: Any, W: Array):
            self.seen.append(W.copy())
            return ask(G, W)

        return watched


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("kind", PROBLEMS)
def test_with_exact_links_the_chain_is_algorithm_2(kind: str, rule: str):
    problem = PROBLEMS[kind]()
    mine, theirs = RULES[rule]
    oracle = Watched()
    run = frank_wolfe(problem, theirs, KNOTS, oracle=oracle)
    model, optimizer = chain_on(problem, mine(problem.beta, run.constants.initial_gap, KNOTS))
    K, ball, size = problem.constraint, ball_of(problem), problem.constraint.radius

    for i, W in zip(run, oracle.seen, strict=True):
        assert np.abs(model.merged(optimizer) - W).max() <= 1e-10 * size
        assert np.abs(model.summed(optimizer) - W).max() <= 1e-10 * size
        assert model(None).item() == pytest.approx(i.loss, rel=1e-10)
        vertices = split(K, dense(K.lmo(problem.gradient(W))))
        for n, (name, V) in enumerate(zip(model.names, vertices, strict=True)):
            # Any length: a link tells a direction and no more.
            set_link(optimizer.sites[name], V, size=10.0 ** (n - i.t % 3))
        record = optimizer.tie_knot()
        assert record.eta == pytest.approx(i.eta, rel=1e-10)
        assert all(norm <= ball.radius * (1 + 1e-12) for norm in record.norms.values())

    assert np.abs(model.merged(optimizer) - run.final).max() <= 1e-10 * size
    assert model(None).item() == pytest.approx(run.final_loss, rel=1e-10)
    for name, S, X in zip(model.names, balls(K), split(K, run.final), strict=True):
        assert optimizer.ledger[-1].norms[name] == pytest.approx(S.norm(X), rel=1e-10)


def trained_run(
    problem: Problem,
    rule: Any,
    theirs: step_sizes.StepSize,
    *,
    knots: int,
    steps: int,
    rank: int | None = None,
    idle: Sequence[str] = (),
) -> Trajectory:
    """Algorithm 2 by AdamW, measured densely by theory, and by the chain itself before each knot.

    Args:
        problem: the testbed.
        rule: fwlora's step size.
        theirs: theory's name for it.
        knots: T.
        steps: of AdamW in each link.
        rank: of the links; None takes the rank of the set's vertices.
        idle: sites whose links are left at zero.

    Returns:
        The run, its eps being what the links fall short of the oracle.
    """
    ball, K = ball_of(problem), problem.constraint
    model, optimizer = chain_on(problem, rule, rank=rank or ball.atom_rank)
    for name in idle:
        optimizer.sites[name].B.requires_grad_(False)
    run = Trajectory("Frank-Wolfe", problem, theirs, problem.constants())
    loss = problem.loss(problem.start)
    for t in range(1, knots + 1):
        W = model.merged(optimizer)
        G = problem.gradient(W)
        train(model, optimizer, steps)
        V = vertex_of(model, optimizer, W)
        gap, eps = inner(G, W) + K.support(-G), inner(G, V) + K.support(-G)

        report = optimizer.measure_gap([None], model, ball, passes=12)
        assert report.total.gap.point == pytest.approx(gap, rel=1e-6)
        assert report.total.eps.point == pytest.approx(eps, rel=1e-6, abs=1e-9 * gap)
        assert report.ghat == pytest.approx(inner(G, W) - inner(G, V), rel=1e-9, abs=1e-12 * gap)

        record = optimizer.tie_knot()
        assert record.eta is not None
        if record.gap is not None:
            lower, _, upper = record.gap["total"]["gap"]
            assert lower <= gap * (1 + 1e-12) <= upper * (1 + 2e-12)
        length = float(np.linalg.norm(V - W))
        run.iterations.append(Iteration(t, loss, gap, eps, record.eta, length, 0.0, 1, problem.rank(W)))
        loss = model(None).item()
    run.final, run.final_loss = model.merged(optimizer), loss
    assert K.contains(run.final)
    return run


def vertex_of(model: Testbed, optimizer: ChainLoRAOptimizer, W: Array) -> Array:
    """Where the live links point to: ``radius s B A/|s B A|`` at each site, and W itself where the link is zero."""
    K = model.problem.constraint
    blocks = [
        S.radius * link / S.norm(link) if (link := live(optimizer.sites[name])).any() else X
        for name, S, X in zip(model.names, balls(K), split(K, W), strict=True)
    ]
    return join(K, blocks)


def bound_and_rules(theorem: str, problem: Problem, knots: int) -> tuple[Bound, Any, step_sizes.StepSize]:
    """A theorem and the step size that it is about, fwlora's and theory's."""
    c = problem.constants()
    if theorem == "A":
        return FixedStepBound(), 0.3, step_sizes.Fixed(0.3)
    if theorem == "A, best eta":
        return FixedStepBound(), best_fixed(c.initial_gap, c.curvature, knots), step_sizes.Fixed()
    if theorem == "C":
        return CircumradiusBound(), Centred(problem.beta, c.initial_gap, knots), step_sizes.Centred()
    return ShortStepBound(), ShortStep(problem.beta), step_sizes.ShortStep()


@pytest.mark.parametrize("theorem", ["A", "A, best eta", "C", "D"])
@pytest.mark.parametrize("kind", PROBLEMS)
def test_trained_by_adamw_a_run_satisfies_its_theorem_with_its_eps_measured(kind: str, theorem: str):
    problem = PROBLEMS[kind]()
    bound, mine, theirs = bound_and_rules(theorem, problem, 6)
    run = trained_run(problem, mine, theirs, knots=6, steps=30, rank=2)
    assert (run.column("eps") >= -1e-12 * run.column("gap")).all()
    assert run.column("eps").max() > 0.01 * run.column("gap").max()
    assert bound.check(run).holds
    if theorem == "D":  # a true descent step, whatever the link
        assert (np.diff([*run.column("loss"), run.final_loss]) <= 1e-12).all()


@pytest.mark.parametrize("theorem", ["A", "C"])
@pytest.mark.parametrize("kind", ["completion", "support", "two sites"])
def test_poor_links_break_the_theorem_if_their_eps_is_not_counted(kind: str, theorem: str):
    """One step a link, short knots: the gap stays, the loss hardly falls, and only eps accounts for it."""
    problem = PROBLEMS[kind]()
    bound = FixedStepBound() if theorem == "A" else CircumradiusBound()
    run = trained_run(problem, 0.01, step_sizes.Fixed(0.01), knots=5, steps=1)
    assert bound.check(run).holds
    exact = replace(run, iterations=[replace(i, eps=0.0) for i in run])
    assert not bound.check(exact).holds
    assert not bound.check(run.altered(3, loss=run.iterations[2].loss * 1.5)).holds


def test_a_short_step_that_claims_an_exact_link_is_found_out():
    """The step follows <G, W - V> of the link's own vertex, not the gap."""
    problem = PROBLEMS["completion"]()
    run = trained_run(problem, ShortStep(problem.beta), step_sizes.ShortStep(), knots=4, steps=5)
    assert ShortStepBound().check(run).holds
    with pytest.raises(AssumptionError, match="its step size at t = 1"):
        ShortStepBound().check(replace(run, iterations=[replace(i, eps=0.0) for i in run]))


@pytest.mark.parametrize("theorem", ["A", "D"])
def test_a_site_without_a_link_stands_still_and_its_gap_is_eps(theorem: str):
    problem = PROBLEMS["two sites"]()
    bound, mine, theirs = bound_and_rules(theorem, problem, 6)
    run = trained_run(problem, mine, theirs, knots=6, steps=20, idle=("maps.1",))
    assert not split(problem.constraint, run.final)[1].any()
    assert (run.column("eps") > 0.1 * run.column("gap")).all()
    assert bound.check(run).holds
