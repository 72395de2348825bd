"""Away and pairwise steps: the linear rate that plain Frank-Wolfe lacks, and an active set that stays one."""

from __future__ import annotations

import numpy as np
import pytest

from theory.active_set import ActiveSet, Away, Move, Pairwise, active_set_frank_wolfe
from theory.bounds import FixedStepBound
from theory.errors import ArgumentError, AssumptionError
from theory.frank_wolfe import frank_wolfe
from theory.points import dense
from theory.problems import Completion, DriftingCompletion, Indefinite
from theory.sets import ConvexSet, L1Ball, NuclearBall, Simplex
from theory.step_sizes import Fixed, LineSearch, ShortStep, StepSize

MOVES = [Away(), Pairwise()]


def distance(K: ConvexSet, seed: int = 0) -> Completion:
    """Squared distance to a point outside, beyond the middle of a face, weighted so that it bends unevenly."""
    rng = np.random.default_rng(seed)
    atoms = [dense(K.lmo(rng.standard_normal(K.shape))) for _ in range(5)]
    return Completion(2 * np.mean(atoms, axis=0) + 0.01 * rng.random(K.shape), rng.uniform(0.1, 1.0, K.shape), K)


@pytest.mark.parametrize("rule", [ShortStep(), LineSearch()], ids=lambda r: type(r).__name__)
@pytest.mark.parametrize("move", MOVES, ids=lambda m: type(m).__name__)
@pytest.mark.parametrize("K", [Simplex(12), L1Ball(8)], ids=repr)
def test_the_gap_falls_geometrically_on_a_polytope(K: ConvexSet, move: Move, rule: StepSize):
    problem = distance(K)
    run = active_set_frank_wolfe(problem, move, rule, 400)
    plain = frank_wolfe(problem, rule, 400)
    assert run.column("gap")[-1] < 1e-10
    assert plain.column("gap")[-1] > 1e-5


@pytest.mark.parametrize("move", MOVES, ids=lambda m: type(m).__name__)
@pytest.mark.parametrize(
    "problem", [distance(Simplex(6)), distance(NuclearBall((4, 3))), Indefinite.draw(0, (5, 4))], ids=repr
)  # fmt: skip
def test_every_move_descends_and_stays_inside(problem, move: Move):
    run = active_set_frank_wolfe(problem, move, LineSearch(), 40)
    losses = np.append(run.column("loss"), run.final_loss)
    assert np.all(np.diff(losses) <= 1e-12 * (1 + np.abs(losses[:-1])))
    assert problem.constraint.contains(run.final, tolerance=1e-8)
    assert np.all(run.column("gap") >= -1e-12)
    assert np.all((run.column("eta") >= 0) & (run.column("eta") <= 1))


@pytest.mark.parametrize("move", MOVES, ids=lambda m: type(m).__name__)
def test_bad_atoms_are_dropped(move: Move):
    """The minimiser is a vertex: in the end it is the only atom."""
    problem = Completion(np.array([3.0, 0.1, 0.0, 0.2]), np.array([1.0, 0.3, 0.7, 0.5]), Simplex(4))
    run = active_set_frank_wolfe(problem, move, LineSearch(), 60)
    assert np.allclose(run.final, [1, 0, 0, 0], atol=1e-12)
    assert run.column("rank")[-1] == 1


def test_the_active_set_is_a_convex_combination():
    active = ActiveSet(np.array([1.0, 0.0]))
    second = active.find(np.array([0.0, 1.0]))
    assert active.find(np.array([1.0, 0.0])) == 0
    active.replace(np.array([0.25, 0.75]))
    assert second == 1
    assert np.array_equal(active.point(), [0.25, 0.75])
    active.replace(np.array([0.0, 2.0]))
    assert len(active.atoms) == 1
    assert active.weights.sum() == 1.0


def test_a_drifting_loss_is_refused():
    with pytest.raises(ArgumentError, match="must stand still"):
        active_set_frank_wolfe(DriftingCompletion.draw(0, (4, 3)), Away(), ShortStep(), 3)


def test_bounds_about_the_plain_step_say_nothing_about_other_moves():
    run = active_set_frank_wolfe(distance(Simplex(4)), Away(), Fixed(0.1), 5)
    with pytest.raises(AssumptionError, match="made by away-step Frank-Wolfe"):
        FixedStepBound().check(run)
