"""Who meets in the study of networks that are no transformers: two networks, two tasks, and on each the same methods.

A method's learning rate here is the middle of the grid from which its own is chosen.
"""

from __future__ import annotations

from experiments.methods import ChainOfLoRA, FullFineTuning, LoRA, chain_with_decay
from experiments.reset_contenders import Contest
from experiments.tasks.digit_images import ConvolutionalDigits, ConvolutionalNewLabels
from experiments.tasks.digits import Digits
from experiments.tasks.new_labels import NewLabels
from fwlora import Evenly

LINKS = (2, 3, 5)
FULL = "full fine-tuning"
OVER_RUN = ", one decay"
WARMUP = 5
# Rank 1 is short for turning what a network sees, rank 4 less so for five outputs that were never used.
ROTATED, NEW_LABELS = 1, 4


def over_run(method: str) -> str | None:
    """The same chain with one schedule over the run instead of one in each link; None for what is no such chain.

    Example:
        >>> over_run("chain of 3"), over_run("chain of 3, one decay"), over_run("LoRA r=1")
        ('chain of 3, one decay', None, None)
    """
    return f"{method}{OVER_RUN}" if method.startswith("chain") and not method.endswith(OVER_RUN) else None


def methods(rank: int) -> list[LoRA | ChainOfLoRA | FullFineTuning]:
    """LoRA first; then chains of the same rank, LoRA of the rank that the longest chain adds up to, and full fine-tuning."""
    chains = {links: f"chain of {links}" for links in LINKS}
    wider = max(LINKS) * rank
    return [
        LoRA(f"LoRA r={rank}", 2e-2, rank),
        *(chain_with_decay(label, 2e-2, rank, Evenly(links), WARMUP) for links, label in chains.items()),
        *(ChainOfLoRA(f"{label}{OVER_RUN}", 2e-2, rank, Evenly(links)) for links, label in chains.items()),
        LoRA(f"LoRA r={wider}", 1e-2, wider),
        FullFineTuning(FULL, 5e-3),
    ]


def contests(epochs: int, seeds: int) -> dict[str, Contest]:
    """Every contest by its problem's name, those of the convolutional network first, which takes longer.

    Args:
        epochs: passes over the training images.
        seeds: paired seeds of the test.

    Returns:
        The contests.
    """
    made = [
        Contest(ConvolutionalDigits(epochs=epochs), methods(ROTATED), seeds),
        Contest(ConvolutionalNewLabels(epochs=epochs), methods(NEW_LABELS), seeds),
        Contest(Digits(epochs=epochs, name="mlp-rotated"), methods(ROTATED), seeds),
        Contest(NewLabels(epochs=epochs, name="mlp-new-labels"), methods(NEW_LABELS), seeds),
    ]
    return {contest.problem.name: contest for contest in made}
