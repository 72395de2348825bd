"""Who meets in the study of knot schedules: problems, schedules that count steps and schedules that read the run."""

from __future__ import annotations

from dataclasses import dataclass, replace

from experiments.compare import Problem, Run
from experiments.methods import ChainOfLoRA
from experiments.tasks.digits import Digits
from experiments.tasks.pydoc_text import Source
from experiments.tasks.regression import Regression
from fwlora import Evenly, Every, GapBelow, Never, Plateau
from fwlora.rules.knots import KnotSchedule

NEVER = "never (LoRA)"
TRIGGERS = ("Plateau", "GapBelow")


@dataclass(frozen=True)
class Ground:
    """A problem that the schedules meet on.

    Attributes:
        problem: measured on its test data.
        validation: the same, measured on other data where there are any.
        rank: of a link.
        centre: of every schedule's first grid of learning rates.
        seeds: paired seeds of the test.
        tuning_seeds: seeds on which learning rates are chosen.
    """

    problem: Problem
    validation: Problem
    rank: int
    centre: float
    seeds: int
    tuning_seeds: int

    def tuning(self, label: str, knots: KnotSchedule, lr: float) -> list[Run]:
        """A schedule at a learning rate on every tuning seed, measured on validation data."""
        method = ChainOfLoRA(label, lr, self.rank, knots)
        return [Run(self.validation, method, seed) for seed in range(self.tuning_seeds)]

    def test(self, label: str, knots: KnotSchedule, lr: float, number: int) -> Run:
        """A schedule at its learning rate on the test seed of this number, which no rate was chosen on."""
        return Run(self.problem, ChainOfLoRA(label, lr, self.rank, knots), self.tuning_seeds + number)


def schedules(min_steps: int) -> dict[str, KnotSchedule]:
    """The schedules by their names in tables, the reference first.

    Args:
        min_steps: the triggers' shortest link; the last counted schedule ties as often as they ever may.

    Returns:
        The schedules.
    """
    return {
        NEVER: Never(),
        "3 even links": Evenly(3),
        "5 even links": Evenly(5),
        f"every {min_steps} steps": Every(min_steps),
        TRIGGERS[0]: Plateau(min_steps=min_steps),
        TRIGGERS[1]: GapBelow(min_steps=min_steps),
    }


def grounds(
    base: str,
    *,
    epochs: int,
    matrix_steps: int,
    adaptation_steps: int,
    seeds: int,
    language_seeds: int,
    tuning_seeds: int,
    language_tuning_seeds: int,
) -> dict[str, Ground]:
    """Every problem by its name, the slowest first so that no worker is left alone with one at the end.

    Args:
        base: the file of the pretrained tiny Llama.
        epochs: passes over the digits.
        matrix_steps: optimizer steps of the regressions.
        adaptation_steps: optimizer steps of the Llama.
        seeds: paired seeds of the digits and the regressions.
        language_seeds: paired seeds of the Llama.
        tuning_seeds: seeds for rates on the digits and the regressions.
        language_tuning_seeds: seeds for rates on the Llama.

    Returns:
        The problems.
    """
    source, digits = Source(base, steps=adaptation_steps, batch_size=8), Digits(epochs=epochs)
    made = [
        Ground(source, replace(source, split="validation"), 2, 2e-2, language_seeds, language_tuning_seeds),
        Ground(digits, replace(digits, split="validation"), 1, 2e-2, seeds, tuning_seeds),
    ]
    # A regression is measured by its population error, and its data are drawn from the seed: other seeds are other data.
    for true_rank, centre in ((16, 2e-2), (2, 5e-3)):
        regression = Regression(true_rank, steps=matrix_steps)
        made.append(Ground(regression, regression, 2, centre, seeds, tuning_seeds))
    return {ground.problem.name: ground for ground in made}
