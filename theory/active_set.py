"""Frank-Wolfe over the active set: weight goes not only to the new vertex but also away from a bad old one.

W is kept as a convex combination of atoms, the knots tied so far. Each move is a step towards some point E of K, so that the
step-size rules and the record are those of `frank_wolfe`; eta = 1 on an away or a pairwise move drops an atom.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from time import perf_counter

import numpy as np

from theory.errors import ArgumentError, count
from theory.frank_wolfe import checked_eta
from theory.points import Array, dense, distance, inner
from theory.problems.problem import Problem, Segment
from theory.step_sizes import Step, StepSize
from theory.trajectory import Iteration, Trajectory

FORGOTTEN = 1e-14
"""A weight that rounding alone accounts for: its atom is dropped."""


class ActiveSet:
    """``W = sum alpha_i a_i`` with ``alpha_i > 0`` and ``sum alpha_i = 1``.

    Args:
        atom: the first.
    """

    def __init__(self, atom: Array) -> None:
        self.atoms, self.weights = [atom], np.ones(1)

    def point(self) -> Array:
        """W."""
        return np.tensordot(self.weights, np.stack(self.atoms), axes=1)

    def worst(self, G: Array) -> int:
        """The atom with the largest ``<G, a>``: the one to move away from."""
        return int(np.argmax([np.vdot(G, atom) for atom in self.atoms]))

    def find(self, V: Array) -> int:
        """V's index; V is taken in with weight 0 where it is new."""
        for i, atom in enumerate(self.atoms):
            if np.array_equal(atom, V):
                return i
        self.atoms.append(V)
        self.weights = np.append(self.weights, 0.0)
        return len(self.atoms) - 1

    def replace(self, weights: Array) -> None:
        """Takes other weights and drops the atoms that lost theirs."""
        kept = weights > FORGOTTEN
        self.atoms = [atom for atom, keep in zip(self.atoms, kept, strict=True) if keep]
        self.weights = weights[kept] / weights[kept].sum()


class Move(ABC):
    """Where the weight goes."""

    name: str

    @abstractmethod
    def end(self, active: ActiveSet, W: Array, G: Array, V: int, away: int) -> Array:
        """The weights of the farthest point E of the move; the step goes from the weights of W towards them."""


@dataclass(frozen=True)
class Away(Move):
    """Towards the vertex, or straight away from the worst atom, whichever descends more steeply.

    Source: Guelat and Marcotte 1986; linear rate on polytopes: Lacoste-Julien and Jaggi 2015.
    """

    name = "away-step Frank-Wolfe"

    def end(self, active: ActiveSet, W: Array, G: Array, V: int, away: int) -> Array:
        """The vertex; or, along ``W - a`` until a has no weight left, ``(W - alpha a)/(1 - alpha)``."""
        here = inner(G, W)
        unit, others = np.eye(len(active.atoms)), np.where(np.arange(len(active.atoms)) == away, 0.0, active.weights)
        towards, from_worst = here - inner(G, active.atoms[V]), inner(G, active.atoms[away]) - here
        if towards >= from_worst or not others.any():
            return unit[V]
        return others / others.sum()


@dataclass(frozen=True)
class Pairwise(Move):
    """All weight that leaves the worst atom goes to the vertex.

    Source: Lacoste-Julien and Jaggi 2015.
    """

    name = "pairwise Frank-Wolfe"

    def end(self, active: ActiveSet, W: Array, G: Array, V: int, away: int) -> Array:
        """``W + alpha (V - a)``."""
        unit = np.eye(len(active.atoms))
        return active.weights + active.weights[away] * (unit[V] - unit[away])


def active_set_frank_wolfe(problem: Problem, move: Move, step_size: StepSize, steps: int) -> Trajectory:
    """Frank-Wolfe with away or pairwise steps, from the vertex against the gradient at the centre.

    Args:
        problem: the loss and its set; it must not drift.
        move: `Away()` or `Pairwise()`.
        step_size: `ShortStep()` or `LineSearch()` give the linear rate.
        steps: T.

    Returns:
        The run; `distance` is that of the move's end from W, `rank` the number of atoms.

    Raises:
        ArgumentError: T is not positive, or the problem drifts.

    Example:
        >>> from theory.problems import Completion
        >>> from theory.sets import Simplex
        >>> from theory.step_sizes import LineSearch
        >>> nearest = Completion(np.array([0.5, 0.5, -0.2]), constraint=Simplex(3))
        >>> run = active_set_frank_wolfe(nearest, Away(), LineSearch(), steps=20)
        >>> bool(run.column("gap")[-1] < 1e-12)
        True
    """
    T, K = count("steps", steps), problem.constraint
    if problem.drifts:
        raise ArgumentError(f"`problem` must stand still, and {problem!r} drifts: use `frank_wolfe`.")
    active = ActiveSet(dense(K.lmo(problem.gradient(K.centre))))
    W = active.point()
    run = Trajectory(move.name, problem, step_size, problem.constants(W), start_rank=1)

    for t in range(1, T + 1):
        began = perf_counter()
        loss, G = problem.loss(W), problem.gradient(W)
        vertex = dense(K.lmo(G))
        gap, held = inner(G, W) - inner(G, vertex), len(active.atoms)
        away = active.worst(G)
        V = active.find(vertex)

        weights = move.end(active, W, G, V, away)
        E = np.tensordot(weights, np.stack(active.atoms), axes=1)
        ghat, length = inner(G, W) - inner(G, E), distance(E, W)
        eta = checked_eta(step_size, Step(t, T, ghat, length, run.constants, Segment(problem, W, E)))
        active.replace(active.weights + eta * (weights - active.weights))
        W = active.point()
        run.iterations.append(Iteration(t, loss, gap, 0.0, eta, length, perf_counter() - began, 1, held))

    run.final, run.final_loss = W, problem.loss(W)
    return run
