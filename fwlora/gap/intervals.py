"""From one number a batch to intervals."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fwlora.confidence import Interval, standard_error, student_quantile
from fwlora.gap.report import SiteGap
from fwlora.gap.sketch import Sketch
from fwlora.rules import Ball


@dataclass(frozen=True)
class Samples:
    """What the second half of the batches says of a site, (batches,) each.

    Attributes:
        sketch: what the first half says.
        dual: ``-<G_b, V>``, V the found unit vertex: its mean is ``|G|*`` at most.
        whole: ``-<G_b, F>``, F the unit direction of the found part: its mean is ``|G|_F`` at most.
        before: ``<G_b, D>``.
        link: ``<G_b, L>``, L the unit live link; None where that is zero.
    """

    sketch: Sketch
    dual: Tensor
    whole: Tensor
    before: Tensor
    link: Tensor | None


@dataclass(frozen=True)
class Reader:
    """Reads samples at a confidence; half of the failures may lie below and half above, split between the inequalities used.

    Args:
        ball: the set at each site.
        failure: share of the intervals that may miss.
        counts: batches of the first and of the second half; None where one batch is the whole of the data, without noise.
    """

    ball: Ball
    failure: float
    counts: tuple[int, int] | None

    def row(self, sites: Sequence[Samples]) -> SiteGap:
        """One site, or several as one matrix on the product of their sets."""
        k, share = self.ball.atom_rank, self.failure / 4 / len(sites)
        ceilings = [site.sketch.ceiling(k, share) for site in sites]
        dual = _sum(site.dual for site in sites)
        eps = _sum(site.before if site.link is None else self.ball.radius * site.link for site in sites)
        whole = self._norm(
            [site.whole for site in sites],
            [site.sketch.norm(site.sketch.side) for site in sites],
            [site.sketch.ceiling(site.sketch.side, share) for site in sites],
        )
        square = max(0.0, sum(site.sketch.square for site in sites))
        return SiteGap(
            gap=self._affine(_sum(site.before for site in sites), dual, sum(ceilings)),
            gradient_norm=whole._replace(point=min(max(square**0.5, whole.lower), whole.upper)),
            truncated_norm=self._norm([site.dual for site in sites], [site.sketch.norm(k) for site in sites], ceilings),
            eps=_not_negative(self._affine(eps, dual, sum(ceilings))),  # V lies in the set
            alignment=self._alignment([
                (s.link, s.dual, c) for s, c in zip(sites, ceilings, strict=True) if s.link is not None
            ]),
        )

    def _affine(self, shift: Tensor, dual: Tensor, ceiling: float) -> Interval:
        """``<G, .> + tau |G|*``, the first part sampled by `shift`."""
        tau, samples = self.ball.radius, shift + self.ball.radius * dual
        point = float(samples.mean())
        above = float(shift.mean()) + self._spread(shift, self.failure / 8)
        above += tau * (ceiling + self._noise(dual, self.failure / 8))
        return Interval(point - self._spread(samples, self.failure / 2), point, max(point, above))

    def _norm(self, samples: Sequence[Tensor], found: Sequence[float], ceilings: Sequence[float]) -> Interval:
        """``(sum_l |G_l|^2)^(1/2)``, measured along the unit direction that the first half has found."""
        length = sum(norm**2 for norm in found) ** 0.5 or 1.0
        along = _sum(sample * (norm / length) for sample, norm in zip(samples, found, strict=True))
        point = float(along.mean())
        lower = max(0.0, point - self._spread(along, self.failure / 2))
        above = sum(ceiling**2 for ceiling in ceilings) ** 0.5 + self._noise(along, self.failure / 4)
        return Interval(lower, max(lower, point), max(lower, point, above))

    def _alignment(self, moving: Sequence[tuple[Tensor, Tensor, float]]) -> Interval | None:
        """``-<G, L>/|G|*`` over the sites whose link is not zero."""
        if not moving:
            return None
        share = self.failure / 8
        link, dual = -_sum(link for link, _, _ in moving), _sum(dual for _, dual, _ in moving)
        gain, norm = float(link.mean()), float(dual.mean())
        if not norm > 0:
            return None
        low = norm - self._spread(dual, share)
        high = max(norm, sum(ceiling for *_, ceiling in moving) + self._noise(dual, share))
        if not low > 0:
            return Interval(-1.0, min(1.0, max(-1.0, gain / norm)), 1.0)
        error = self._spread(link, share)
        return Interval(gain - error, gain, gain + error).over(Interval(low, norm, high)).clip(-1.0, 1.0)

    def _spread(self, samples: Tensor, failure: float) -> float:
        """How far the mean over the second half may lie from the truth, to one side."""
        if self.counts is None:
            return 0.0
        return student_quantile(1 - failure, len(samples) - 1) * standard_error(samples)

    def _noise(self, samples: Tensor, failure: float) -> float:
        """The same for a mean over the first half, by the spread that the second half shows."""
        if self.counts is None:
            return 0.0
        first, second = self.counts
        return self._spread(samples, failure) * (second / first) ** 0.5


def _not_negative(value: Interval) -> Interval:
    """What is known to be 0 at least; a point below is left, for it is unbiased."""
    return value._replace(lower=max(value.lower, min(0.0, value.point)))


def _sum(samples: Iterable[Tensor]) -> Tensor:
    return torch.stack(list(samples)).sum(0)
