"""Who meets in the study of resets: problems, and on each LoRA, chains from every kind of start, and two upper bounds.

A method's learning rate here is the middle of the grid from which its own is chosen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from experiments.compare import Run
from experiments.methods import ChainOfLoRA, FullFineTuning, LoRA, chain_with_decay
from experiments.tasks.digits import Digits
from experiments.tasks.new_labels import NewLabels
from experiments.tasks.pydoc_text import Source
from fwlora import Evenly, Gaussian, GradientAligned, Kaiming, Never, Orthogonal, ResetRule

KAIMING, ALIGNED, LONGER, B_ONLY = "Kaiming", "aligned in 2 steps", "aligned in 8 steps", "B only"
ALIGNED_LORA, FULL = f"LoRA, {ALIGNED}", "full fine-tuning"
WIDER = 10  # times the rank
RESETS: dict[str, ResetRule] = {
    KAIMING: Kaiming(),
    "Gaussian": Gaussian(std=0.02),
    "Orthogonal": Orthogonal(),
    ALIGNED: GradientAligned(steps=2),
    LONGER: GradientAligned(steps=8),
}


@dataclass(frozen=True)
class Contest:
    """A problem and the methods that meet on it.

    Attributes:
        problem: what to adapt to, measured on its test data.
        methods: LoRA first; their labels tell them apart.
        seeds: paired seeds of the test.
    """

    problem: Digits | Source
    methods: Sequence[LoRA | ChainOfLoRA | FullFineTuning]
    seeds: int

    def run(self, method: str, lr: float, seed: int, split: str) -> Run:
        """One run at a learning rate, measured on "validation" or "test"."""
        (contender,) = [contender for contender in self.methods if contender.label == method]
        return Run(replace(self.problem, split=split), replace(contender, lr=lr), seed)


def chain(links: int, start: str, rank: int, lr: float) -> ChainOfLoRA:
    """A chain of equal links whose rate decays within each, after 5 steps of warm-up."""
    method = chain_with_decay(f"chain of {links}, {start}", lr, rank, Evenly(links), warmup=5)
    return replace(method, freeze_A=True) if start == B_ONLY else replace(method, reset=RESETS[start])


def twin(method: str) -> str | None:
    """The same chain with Kaiming's draw; for LoRA with an aligned start, and for Kaiming's chains, None.

    Example:
        >>> twin("chain of 5, aligned in 2 steps"), twin("chain of 5, Kaiming")
        ('chain of 5, Kaiming', None)
    """
    chain_, comma, start = method.partition(", ")
    return f"{chain_}, {KAIMING}" if comma and chain_.startswith("chain") and start != KAIMING else None


def on_digits(rank: int) -> list[LoRA | ChainOfLoRA | FullFineTuning]:
    """The methods on a classifier of digits."""
    return [
        LoRA(f"LoRA r={rank}", 1e-2, rank),
        ChainOfLoRA(ALIGNED_LORA, 1e-2, rank, Never(), reset=RESETS[ALIGNED]),
        *(chain(5, start, rank, 2e-2 if start == "Gaussian" else 1e-2) for start in RESETS),
        chain(5, B_ONLY, rank, 4e-2),
        *(chain(links, KAIMING, rank, 1e-2) for links in (2, 3, 10)),
        chain(10, ALIGNED, rank, 1e-2),
        LoRA(f"LoRA r={WIDER * rank}", 1e-2, WIDER * rank),
        FullFineTuning(FULL, 5e-3),
    ]


def on_source(rank: int, links: int) -> list[LoRA | ChainOfLoRA | FullFineTuning]:
    """The methods on the tiny Llama."""
    return [
        LoRA(f"LoRA r={rank}", 2e-2, rank),
        *(chain(links, start, rank, 2e-2) for start in RESETS),
        LoRA(f"LoRA r={WIDER * rank}", 1e-2, WIDER * rank),
        FullFineTuning(FULL, 3e-3),
    ]


def contests(
    base: str, *, epochs: int, seeds: int, adaptation_steps: int, attention_steps: int, language_seeds: int
) -> dict[str, Contest]:
    """Every contest, by its problem's name, the slowest first so that no worker is left alone with one at the end.

    Args:
        base: the file of the pretrained tiny Llama.
        epochs: passes over the digits.
        seeds: of the digits.
        adaptation_steps: of the Llama with all its linear layers adapted.
        attention_steps: of the Llama with two layers of each block adapted.
        language_seeds: of the Llama.

    Returns:
        The contests.
    """
    source = Source(base, steps=adaptation_steps, batch_size=8)
    attention = replace(source, steps=attention_steps, name="attention", targets=("q_proj", "v_proj"),
                        watched="model.layers.1.self_attn.v_proj")  # fmt: skip
    made = [Contest(attention, on_source(1, links=5), language_seeds), Contest(source, on_source(2, links=3), language_seeds)]
    made += [Contest(Digits(epochs=epochs, name=f"rotated-{rank}"), on_digits(rank), seeds) for rank in (1, 2)]
    made.append(Contest(NewLabels(epochs=epochs), on_digits(4), seeds))
    return {contest.problem.name: contest for contest in made}
