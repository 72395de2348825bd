"""What a rule may know."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Progress:
    """Where a run stands, in optimizer steps; the only thing that a rule ever sees of it.

    Attributes:
        step: optimizer steps taken, those that a gradient scaler skipped not counted.
        knot: knots tied, which is also the index of the live link.
        link_step: steps taken in the live link.
        total_steps: length of the run, None where nobody has told it.
        link_end: the step at which the live link ends, None where it cannot be known beforehand.
        descent: ``-<grad_B, B>`` summed over the sites, None unless the knot schedule reads it.
        loss: the last loss given to `step(closure)` or `observe(loss)`, None unless the knot schedule reads it.
        gap: the last Frank-Wolfe gap, None where none was measured.
        history: for each quantity that the knot schedule reads, its values in the live link, one a step that trains it; under
            ``"gap"`` what was measured, from the last of an earlier link on.
    """

    step: int = 0
    knot: int = 0
    link_step: int = 0
    total_steps: int | None = None
    link_end: int | None = None
    descent: float | None = None
    loss: float | None = None
    gap: float | None = None
    history: Mapping[str, tuple[float, ...]] = field(default_factory=dict)

    @property
    def link_start(self) -> int:
        """The step after which the live link began."""
        return self.step - self.link_step
