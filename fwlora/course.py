"""The course of a run: what has been counted and observed, told to the rules as `Progress`."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from fwlora import distributed
from fwlora.errors import ArgumentError, ShortLinkWarning, warn
from fwlora.rules import CountedKnots, Decay, KnotSchedule, LinkLR, Progress

SHORT_LINK = 100  # steps below which a link was measured not to pay


class Course:
    """Counters and observations of one run, under the rules that ask for them.

    Args:
        knots: when to tie a knot.
        link_lr: the factor on the learning rate.

    Attributes:
        step: optimizer steps taken.
        link_step: steps taken in the live link.
        knot: knots tied.
        total_steps: length of the run, where known.
        history: what the knot schedule reads, step by step in the live link.
    """

    def __init__(self, knots: KnotSchedule, link_lr: LinkLR) -> None:
        unknown = knots.reads - {"loss", "descent"}
        if unknown:
            raise ArgumentError(f"`knots={knots}` reads {sorted(unknown)}, which this version does not measure.")
        if isinstance(link_lr, Decay) and not isinstance(knots, CountedKnots):
            raise ArgumentError(
                f"`link_lr={link_lr}` must know where a link ends, and `knots={knots}` decides by data; use `Flat()`."
            )
        self.knots, self.link_lr = knots, link_lr
        self.step = 0
        self.link_step = 0
        self.knot = 0
        self.total_steps: int | None = getattr(knots, "total_steps", None)
        self.history: dict[str, list[float]] = {}
        self._loss: float | None = None
        self._warned_of_short_link = False

    @property
    def progress(self) -> Progress:
        """Where the run stands, as the rules see it."""
        latest = {name: values[-1] for name, values in self.history.items() if values}
        return Progress(
            step=self.step,
            knot=self.knot,
            link_step=self.link_step,
            total_steps=self.total_steps,
            link_end=self._link_end(),
            descent=latest.get("descent"),
            loss=latest.get("loss"),
            gap=latest.get("gap"),
            history={name: tuple(values) for name, values in self.history.items()},
        )

    @property
    def factor(self) -> float:
        """The factor on the learning rates at the next step."""
        return self.link_lr.factor(self.progress)

    @property
    def is_due(self) -> bool:
        """Whether a knot is due after the step just counted."""
        return self.knots.due(self.progress)

    def count(self) -> None:
        """One optimizer step was taken."""
        self.step += 1
        self.link_step += 1

    def begin_link(self) -> None:
        """A knot was tied."""
        self.knot += 1
        self.link_step = 0
        self.history = {"gap": self.history["gap"][-1:]} if "gap" in self.history else {}

    def restore(
        self, step: int, link_step: int, knot: int, total_steps: int | None, history: Mapping[str, list[float]]
    ) -> None:
        """Go on from saved counters; a length that the schedule or the user has told stands."""
        self.step, self.link_step, self.knot = step, link_step, knot
        self.total_steps = total_steps if self.total_steps is None else self.total_steps
        self.history = {name: list(values) for name, values in history.items()}
        self._loss = None

    def bind(self, total_steps: int) -> None:
        """Tell the run's length.

        Args:
            total_steps: optimizer steps of the whole run.

        Raises:
            ArgumentError: for a number that is none, or that contradicts the schedule's own.
        """
        if isinstance(total_steps, bool) or not isinstance(total_steps, int) or total_steps < 1:
            raise ArgumentError(
                f"`optimizer.total_steps = {total_steps!r}`: give a whole number of optimizer steps, at least 1."
            )
        if getattr(self.knots, "total_steps", None) not in (None, total_steps):
            raise ArgumentError(
                f"`optimizer.total_steps = {total_steps}` contradicts `knots={self.knots}`; leave one of them out."
            )
        self.total_steps = total_steps

    def hear(self, loss: float | Tensor) -> None:
        """The loss of the coming step, kept only where the schedule reads it: reading waits for the device."""
        if "loss" in self.knots.reads:
            self._loss = float(loss.detach() if isinstance(loss, Tensor) else loss)

    def observe(self, descent: float | None, *, trains: bool = True) -> None:
        """Enter what the schedule reads into the history, averaged over the ranks.

        Args:
            descent: ``-<grad_B, B>``, where the schedule reads it.
            trains: whether the step trains the link; others tell nothing of it and are not entered.

        Raises:
            ArgumentError: where the schedule reads the loss and was told none.
        """
        if "loss" in self.knots.reads:
            if self._loss is None:
                raise ArgumentError(
                    f"`knots={self.knots}` reads the loss and was told none: call `optimizer.observe(loss)` before "
                    "`optimizer.step()`, or give step() a closure."
                )
            if trains:
                self.history.setdefault("loss", []).append(distributed.mean(self._loss))
            self._loss = None
        if descent is not None and trains:
            self.history.setdefault("descent", []).append(distributed.mean(descent))

    def note_gap(self, gap: float) -> None:
        """A Frank-Wolfe gap was measured."""
        self.history.setdefault("gap", []).append(gap)

    def check_link(self) -> None:
        """Ask where the link ends, which raises where nobody can know; say once that a link is shorter than is of use."""
        if not isinstance(self.knots, CountedKnots):
            return
        due = self.knots.next_knot(self.step, self.total_steps)
        if isinstance(self.link_lr, Decay) and self.total_steps is None and self.knots.next_knot(2**62, None) is None:
            raise ArgumentError(
                f"`link_lr={self.link_lr}` must know where the last link ends, and `knots={self.knots}` does not say: set "
                "`optimizer.total_steps = ...` before the first step, or use `Flat()`."
            )
        if due is not None and due - self.step < SHORT_LINK and not (self.link_step or self._warned_of_short_link):
            self._warned_of_short_link = True
            warn(
                f"`knots={self.knots}` makes a link of {due - self.step} steps. Chains were measured to pay where links "
                f"have {SHORT_LINK} steps or more and rank is what the task lacks; in short single-pass training they lose "
                "to one LoRA. Use fewer links, or `Never()`.",
                ShortLinkWarning,
            )

    def _link_end(self) -> int | None:
        if not isinstance(self.knots, CountedKnots):
            return None
        try:
            due = self.knots.next_knot(self.step, self.total_steps)
        except ArgumentError:  # an open schedule: `check_link` raises at the first step, reading does not
            return None
        return min((end for end in (due, self.total_steps) if end is not None), default=None)
