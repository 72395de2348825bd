"""Who answers "which vertex?": exactly, roughly on purpose, by a few Lanczos steps, from memory, or for one layer at a time.

An oracle is opened once a run and then asked with each gradient. Its answer says by how much it may fall short.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from math import inf, pi, sqrt
from typing import Any, TypeAlias

import numpy as np

from theory.errors import ArgumentError, at_least_zero, count, positive, unit_interval
from theory.lanczos import top_singular_pair
from theory.points import LowRank, dense, distance, inner
from theory.sets import ConvexSet, NuclearBall, Product


@dataclass(frozen=True)
class Answer:
    """A vertex and its price.

    Attributes:
        vertex: V in K.
        eps: ``<V, G> <= min_K <., G> + eps``.
        calls: minimisations over K that it took.
    """

    vertex: Any
    eps: float
    calls: int = 1


Ask: TypeAlias = Callable[[Any, Any], Answer]
"""``ask(G, W)``: the gradient and the point where it was taken."""


class Oracle(ABC):
    """A linear minimisation oracle, exact or not."""

    @abstractmethod
    def open(self, K: ConvexSet, rng: np.random.Generator) -> Ask:
        """What answers during one run over K."""


@dataclass(frozen=True)
class Exact(Oracle):
    """``lmo(G)``: eps = 0."""

    def open(self, K: ConvexSet, rng: np.random.Generator) -> Ask:
        """The set's own oracle."""
        return lambda G, W: Answer(K.lmo(G), 0.0)


@dataclass(frozen=True)
class Blunted(Oracle):
    """The vertex for a spoilt gradient, spoilt as badly as an answer within `eps` allows.

    Args:
        eps: the most that an answer may fall short.
    """

    eps: float

    def __post_init__(self) -> None:
        at_least_zero("Blunted(eps=...)", self.eps)

    def open(self, K: ConvexSet, rng: np.random.Generator) -> Ask:
        """Answers with the eps that each really has."""

        def ask(G: Any, W: Any) -> Answer:
            noise = rng.standard_normal(K.shape)
            noise *= np.linalg.norm(dense(G)) / np.linalg.norm(noise)
            for share in 2.0 ** np.arange(3, -12, -1):
                V = K.lmo(dense(G) + share * noise)
                eps = shortfall(K, G, V)
                if eps <= self.eps:
                    return Answer(V, eps)
            return Answer(K.lmo(G), 0.0)

        return ask


@dataclass(frozen=True)
class Lanczos(Oracle):
    """The nuclear ball's oracle by a few Golub-Kahan steps, warm-started with the last right Ritz vectors and some fresh noise.

    ``eps = radius (upper - sigma)``. A gradient may turn its top right vector v away from whatever was remembered; the residual
    does not notice, the noise does: ``|<start, v>| < doubt noise sqrt(pi/(2 k))`` has a probability below `doubt`, whatever v
    is. Otherwise eps is a bound.

    Args:
        steps: pairs of products an answer may take.
        tolerance: relative residual at which it takes no more.
        noise: its length, that of the remembered part being 1.
        doubt: probability at most with which an answer's eps may be too small.
    """

    steps: int = 10
    tolerance: float = 0.0
    noise: float = 0.2
    doubt: float = 0.01

    def __post_init__(self) -> None:
        count("Lanczos(steps=...)", self.steps)
        at_least_zero("Lanczos(tolerance=...)", self.tolerance)
        positive("Lanczos(noise=...)", self.noise)
        unit_interval("Lanczos(doubt=...)", self.doubt)

    def open(self, K: ConvexSet, rng: np.random.Generator) -> Ask:
        """Answers in factors.

        Args:
            K: a nuclear ball.
            rng: draws the noise.

        Returns:
            What answers.

        Raises:
            ArgumentError: K is another set.
        """
        if not isinstance(K, NuclearBall):
            raise ArgumentError(f"`Lanczos()` answers for a NuclearBall, not for {K!r}: use `Exact()`.")
        k = K.shape[1]
        remembered = np.zeros(k)

        def ask(G: Any, W: Any) -> Answer:
            nonlocal remembered
            start = remembered + self.noise / sqrt(k) * rng.standard_normal(k)
            pair = top_singular_pair(G, self.steps, start=start, tolerance=self.tolerance)
            remembered = pair.onward
            # P(|c + N(0, noise^2/k)| < h) <= h sqrt(2 k/pi)/noise = doubt
            overlap = self.doubt * self.noise * sqrt(pi / (2 * k)) / float(np.linalg.norm(start))
            eps = K.radius * (pair.upper(overlap) - pair.sigma)
            return Answer(LowRank(-pair.u[:, None], np.array([K.radius]), pair.v[:, None]), eps)

        return ask


@dataclass(frozen=True)
class Lazy(Oracle):
    """Old vertices first: one with ``<G, W - V> >= Phi/factor`` is played again, without a minimisation.

    Only when there is none, the exact oracle is asked; where the gap itself is below ``Phi/factor``, Phi falls to it, or to its
    half if that is less. `eps` is measured against the exact minimum, which the yardstick computes beside the run and does not
    count as a call.

    Args:
        factor: how much less than Phi is good enough, at least 1.
        memory: vertices remembered, the youngest.

    Source: Braun, Pokutta and Zink 2017, Lazifying conditional gradient algorithms.
    """

    factor: float = 2.0
    memory: int = 50

    def __post_init__(self) -> None:
        count("Lazy(memory=...)", self.memory)
        if not 1 <= self.factor < inf:
            raise ArgumentError(f"`Lazy(factor=...)` must be finite and at least 1, and is {self.factor!r}.")

    def open(self, K: ConvexSet, rng: np.random.Generator) -> Ask:
        """Answers that remember."""
        seen: list[Any] = []
        promise = inf

        def ask(G: Any, W: Any) -> Answer:
            nonlocal promise
            here = inner(G, W)
            best = min(seen, key=lambda V: inner(G, V), default=None)
            if best is not None and here - inner(G, best) >= promise / self.factor:
                return Answer(best, shortfall(K, G, best), calls=0)
            V = K.lmo(G)
            if all(distance(V, old) > 1e-7 * K.diameter for old in seen):
                seen[:] = [*seen, V][-self.memory :]
            gap = here - inner(G, V)
            if gap < promise / self.factor:
                promise = min(gap, promise / 2)
            return Answer(V, 0.0)

        return ask


@dataclass(frozen=True)
class OneBlock(Oracle):
    """Block-coordinate Frank-Wolfe on a product: one layer's vertex, the other layers stay where they are.

    As an answer for the whole product it falls short by the other layers' gaps; that is its measured `eps`, with which every
    theorem about inexact oracles speaks of block-coordinate runs too.

    Args:
        shuffled: draw the layer at random instead of taking turns.

    Source: Lacoste-Julien, Jaggi, Schmidt and Pletscher 2013.
    """

    shuffled: bool = False

    def open(self, K: ConvexSet, rng: np.random.Generator) -> Ask:
        """Answers for a layer at a time.

        Args:
            K: a product.
            rng: draws the layers.

        Returns:
            What answers.

        Raises:
            ArgumentError: K is no product.
        """
        if not isinstance(K, Product):
            raise ArgumentError(f"`OneBlock()` moves one layer of a Product at a time, and {K!r} has none: use `Exact()`.")
        turn = -1

        def ask(G: Any, W: Any) -> Answer:
            nonlocal turn
            turn = int(rng.integers(len(K.sets))) if self.shuffled else (turn + 1) % len(K.sets)
            layers: list[Any] = K.split(W)
            layers[turn] = K.sets[turn].lmo(K.split(G)[turn])
            V = K.join(layers)
            return Answer(V, shortfall(K, G, V))

        return ask


def shortfall(K: ConvexSet, G: Any, V: Any) -> float:
    """``eps = <V, G> - min_K <., G>``, measured; at least 0.

    Args:
        K: the set.
        G: the true gradient.
        V: a point of K.

    Returns:
        eps.
    """
    return max(0.0, inner(G, V) + K.support(-G))
