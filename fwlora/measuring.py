"""A chain that can measure its Frank-Wolfe gap, on demand and at every knot."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from fwlora.errors import ArgumentError
from fwlora.gap import GapReport, check, measure
from fwlora.layers.probes import Probes
from fwlora.outlets import ExportingChain
from fwlora.rules import Ball, MergeRule

Batches = Sequence[Any] | Callable[[], Sequence[Any]]


class MeasuredChain(ExportingChain):
    """An exporting chain with a gap."""

    merge: MergeRule
    _at_knots: Callable[[], GapReport] | None = None

    def measure_gap(
        self, batches: Sequence[Any], loss_fn: Callable[[Any], Tensor], set: Ball, *, confidence: float = 0.95, passes: int = 4
    ) -> GapReport:
        r"""The Frank-Wolfe gap ``max_V <G, W - V>`` over a ball around the original weights, and how the live link meets it.

        W are the weights after the last knot, the live link set aside, and G is the loss's gradient there; so before a knot
        this is the gap that the link was to close, with the link's own shortfall eps and its alignment with the gradient.
        Half of the batches find the best vertex through low-rank products, the other half measures it, so that minibatches'
        noise inflates nothing: `fwlora.gap` says how. No gradient of a weight's shape is kept, and model, gradients, moments
        and counters stay as they are. The model runs in eval() mode.

        The upper ends hold by bounds of random projections, at the confidence given, and by Student's t for the minibatches'
        noise, whose spread along the best vertex is taken to be that along the one found.

        Args:
            batches: at least 4, each a fresh sample of equal weight that is like the others (where a few rare rows carry the
                gradient, larger ones); or one, which then is the whole of the data. Under data-parallel training each rank
                gives its own, the same number.
            loss_fn: ``loss_fn(batch)``, the mean loss of a batch as your loop computes it, under autocast or not.
            set: `NuclearBall(radius)` or `SupportBall(radius, rank)` at each site.
            confidence: with which each interval holds what it is about.
            passes: forward and backward passes over the first half; each brings the vertex nearer to the best one, and most
                where singular values decay.

        Returns:
            Intervals at each site and in total; print it.

        Raises:
            ArgumentError: an argument breaks a rule.
        """
        self._check_unfinished()
        self._check_loaded()
        self._refuse_sharded("`measure_gap(...)`", "measure it in one process, or under DDP")
        self.complete_knot()
        probes = Probes(self._attachment.model, self._sites, loss_fn)
        report = measure(probes, self._sites, self._chain, batches, set, confidence=confidence, passes=passes, seed=self.seed)
        self._course.note_gap(report.total.gap.point)
        return report

    def measure_at_knots(
        self,
        batches: Batches,
        loss_fn: Callable[[Any], Tensor],
        set: Ball | None = None,
        *,
        confidence: float = 0.95,
        passes: int = 4,
    ) -> None:
        """Begin every knot with a measurement, which its record carries in `gap`; `FrankWolfe`'s `ShortStep` needs this.

        Neither pickle nor state keeps it: ask again after loading.

        Args:
            batches: as in `measure_gap`, or a function that gives them afresh.
            loss_fn: as in `measure_gap`.
            set: as in `measure_gap`; None takes the merge rule's own.
            confidence: as in `measure_gap`.
            passes: as in `measure_gap`.

        Raises:
            ArgumentError: an argument breaks a rule; no set is given and the merge rule has none, or it has another one.
        """
        ball = self.merge.ball if set is None else set
        if ball is None:
            raise ArgumentError(f"`measure_at_knots(set=None)` takes the merge rule's set, and `merge={self.merge}` has none.")
        check([None] if callable(batches) else batches, ball, confidence, passes)
        if self.merge.ball not in (None, ball):
            raise ArgumentError(f"`measure_at_knots(set={ball})` contradicts `merge={self.merge}`; leave `set` out.")
        self._at_knots = lambda: self.measure_gap(
            batches() if callable(batches) else batches, loss_fn, ball, confidence=confidence, passes=passes
        )

    def _check_measured(self) -> None:
        if self.merge.needs_gap and self._at_knots is None:
            raise ArgumentError(
                f"`merge={self.merge}` takes its step size from the Frank-Wolfe gap, and nobody has said on what to measure "
                "it: call `optimizer.measure_at_knots(batches, loss_fn)` before the first step."
            )
