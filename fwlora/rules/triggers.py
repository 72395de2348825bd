"""When to tie a knot, told by data: once the link has done its work, judged against the link's own history.

What is read is averaged over consecutive windows, counted from the link's first record. A trigger decides where a window has
just filled and asks nothing of the steps between.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from fwlora.errors import ArgumentError
from fwlora.rules.knots import KnotSchedule
from fwlora.rules.progress import Progress


class _Trigger(KnotSchedule):
    """A schedule that judges the live link by the window means of the one quantity it reads."""

    window: int
    patience: int
    min_steps: int
    max_steps: int | None

    def __post_init__(self) -> None:
        name = type(self).__name__
        for argument in ("window", "patience", "min_steps"):
            value = getattr(self, argument)
            if not _is_whole(value) or value < 1:
                raise ArgumentError(f"`{name}({argument}=...)` takes a whole number of at least 1 and got {value!r}.")
        if self.max_steps is not None and (not _is_whole(self.max_steps) or self.max_steps < self.min_steps):
            raise ArgumentError(
                f"`{name}(max_steps=...)` takes None or a whole number of at least `min_steps={self.min_steps}` and got "
                f"{self.max_steps!r}."
            )

    def due(self, progress: Progress) -> bool:
        """Whether the window that has just filled says that the link is done, within the limits on its length."""
        if progress.link_step < self.min_steps:
            return False
        # total_steps - step >= min_steps: the next link, too, must have the steps that it takes to grow.
        if progress.total_steps is not None and progress.total_steps - progress.step < self.min_steps:
            return False
        # A multiple, not a bound: a knot that is refused here waits as long again instead of being refused at every step.
        if self.max_steps is not None and progress.link_step % self.max_steps == 0:
            return True
        (quantity,) = self.reads
        values = progress.history.get(quantity, ())
        if not values or len(values) % self.window:
            return False
        means = [sum(values[end - self.window : end]) / self.window for end in range(self.window, len(values) + 1, self.window)]
        # A loss that was once inf or nan says nothing of the link.
        return math.isfinite(means[-1]) and self._is_done([mean for mean in means if math.isfinite(mean)])

    @abstractmethod
    def _is_done(self, means: Sequence[float]) -> bool:
        """What the window means of the live link say, oldest first."""


@dataclass(frozen=True)
class GapBelow(_Trigger):
    r"""A knot when the link has little left to gain along itself.

    With X the live link's update ``s B A`` and G the loss's gradient at the weights, ``D = -<grad_B, B> = -<G, X>`` is what the
    loss falls, to first order, as X is stretched, and ``|D|`` the Frank-Wolfe gap of X in the segment from 0 to 2 X. D is 0
    where B is, rises as the link grows, and returns to 0 where the loss is stationary along X. It is negative while the link is
    longer than that, as it is for long under an optimizer of large or noisy steps, and so its magnitude is what counts: with
    m_i the mean of D over the i-th window, the knot is due where::

        |m_i| <= fraction * max_{j <= i} |m_j|

    in `patience` windows in a row. D is read off the gradients that `step()` is given, after any clipping.

    It says that a link is spent, not that the next one pays (``python -m experiments knot-schedules``: 12 seeds,
    ``min_steps=100``). Where rank is missing in a regression it beats one LoRA (relative error .189 against .702) and loses to
    a knot every 100 steps (.091); on rotated digits it ties 0.9 knots a run, with no clear gain; where rank is enough it ties
    1.7 all the same, and loses.

    Args:
        fraction: of the link's largest window mean, between 0 and 1.
        window: recorded steps in a mean.
        patience: windows in a row.
        min_steps: least steps of a link, and of the one after it where the run's length is known
            (`optimizer.total_steps`): a run of fewer than twice that is plain LoRA.
        max_steps: a link this long is ended in any case; None for no such limit.

    Example:
        >>> rule = GapBelow(fraction=0.5, window=2, patience=1, min_steps=4)
        >>> D = (0.0, 1.0, 4.0, 4.0, 0.0, -2.0)  # window means 0.5, 4 and |-1| <= 0.5 * 4
        >>> [n for n in range(7) if rule.due(Progress(step=n, link_step=n, history={"descent": D[:n]}))]
        [6]
    """

    reads: ClassVar[frozenset[str]] = frozenset({"descent"})

    fraction: float = 0.25
    window: int = 25
    patience: int = 2
    min_steps: int = 300
    max_steps: int | None = None

    def __post_init__(self) -> None:
        if not (_is_number(self.fraction) and 0 < self.fraction < 1):
            raise ArgumentError(f"`GapBelow(fraction=...)` takes a number between 0 and 1 and got {self.fraction!r}.")
        super().__post_init__()

    def _is_done(self, means: Sequence[float]) -> bool:
        # fraction < 1, so a window within it is no maximum: the largest of all was the largest before it, too.
        sizes = [abs(m) for m in means]
        largest = max(sizes)
        return largest > 0 and all(size <= self.fraction * largest for size in sizes[-self.patience :])


@dataclass(frozen=True)
class Plateau(_Trigger):
    """A knot when the training loss has stopped falling within the link.

    With m_i the mean loss over the i-th window and b the least mean but for the last `patience` windows, the knot is due
    where::

        m_i >= b - threshold * |b|

    in each of those last windows: the test of torch's `ReduceLROnPlateau`, which is relative and holds for losses of any sign.
    The loss must be told, by `optimizer.observe(loss)` before `optimizer.step()` or by giving `step()` a closure.

    It says that a link is spent, not that the next one pays (``python -m experiments knot-schedules``: 12 seeds,
    ``min_steps=100``). Where rank is missing in a regression it beats one LoRA (relative error .245 against .702) and loses to
    a knot every 100 steps (.091); on rotated digits it gains 2.9 points over one LoRA where a knot every 100 steps gains 5.2;
    where rank is enough it ties 3.9 knots a run all the same, and loses.

    Args:
        threshold: what counts as an improvement, relative to the best mean; at least 0 and below 1.
        window: recorded steps in a mean.
        patience: windows in a row without an improvement.
        min_steps: least steps of a link, and of the one after it where the run's length is known
            (`optimizer.total_steps`): a run of fewer than twice that is plain LoRA.
        max_steps: a link this long is ended in any case; None for no such limit.

    Example:
        >>> rule = Plateau(threshold=0.1, window=2, patience=1, min_steps=4)
        >>> losses = (4.0, 2.0, 3.0, 1.0, 2.0, 1.8)  # window means 3, 2 and 1.9 >= 2 - 0.1 * 2
        >>> [n for n in range(7) if rule.due(Progress(step=n, link_step=n, history={"loss": losses[:n]}))]
        [6]
    """

    reads: ClassVar[frozenset[str]] = frozenset({"loss"})

    threshold: float = 0.01
    window: int = 25
    patience: int = 2
    min_steps: int = 300
    max_steps: int | None = None

    def __post_init__(self) -> None:
        if not (_is_number(self.threshold) and 0 <= self.threshold < 1):
            raise ArgumentError(
                f"`Plateau(threshold=...)` takes a number of at least 0 and below 1 and got {self.threshold!r}."
            )
        super().__post_init__()

    def _is_done(self, means: Sequence[float]) -> bool:
        earlier, latest = means[: -self.patience], means[-self.patience :]
        if not earlier:
            return False
        best = min(earlier)
        return all(m >= best - self.threshold * abs(best) for m in latest)


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
