"""Which rows train, which choose the rate, and which test."""

from __future__ import annotations

from dataclasses import dataclass

from experiments.errors import UsageError

OPTIONS = {"CB": "--examples-cb", "WSC": "--examples-wsc"}  # tasks too small for the common --examples


@dataclass(frozen=True)
class Sampling:
    """How many examples each part of a sample has.

    Attributes:
        train: examples to train on, from the train split.
        dev: examples to choose a learning rate by, from the train split where it has enough.
        test: examples to test on, from the validation split, whose labels are public; at most what is there.
    """

    train: int = 1000
    dev: int = 500
    test: int = 1000


@dataclass(frozen=True)
class Allotment:
    """Numbers of the drawn examples within their splits.

    Attributes:
        train: of the train split.
        dev: of the split `dev_from`.
        test: of the validation split.
        dev_from: "train" or "validation".
    """

    train: list[int]
    dev: list[int]
    test: list[int]
    dev_from: str


def allot(task: str, sampling: Sampling, *, train: int, validation: int, seed: int) -> Allotment:
    """Draws a sample's examples.

    Either split is permuted once by the seed. Training takes the first examples of the train split's permutation, dev the last,
    and test the first of the validation split's: no example is in two parts, and as long as the train split has enough for
    both, only the train part depends on how much is trained on. Where the train split cannot give dev, the validation split
    does, from the end of its permutation, and the test keeps what is left: a train split of BoolQ that was cut to 1,061 still
    gives 1,000 / 500 / 1,000.

    Args:
        task: its name, for messages.
        sampling: the sizes.
        train: examples in the train split.
        validation: examples in the validation split.
        seed: of the permutations.

    Returns:
        Which examples.

    Raises:
        UsageError: there are not enough.

    Example:
        >>> allot("CB", Sampling(2, 1, 9), train=3, validation=4, seed=0)
        Allotment(train=[2, 1], dev=[0], test=[2, 3, 1, 0], dev_from='train')
    """
    import numpy as np

    option = OPTIONS.get(task, "--examples")
    asked = f"{option} {sampling.train} {sampling.dev} {sampling.test}"
    if min(sampling.train, sampling.dev, sampling.test) < 1:
        raise UsageError(f"{asked}: each part of the sample needs an example; give numbers of at least 1.")
    dev_from = "train" if train >= sampling.train + sampling.dev else "validation"
    if train < sampling.train or (dev_from == "validation" and validation <= sampling.dev):
        raise UsageError(
            f"{asked}: {task} has {train} training examples and {validation} for validation; give {option} TRAIN DEV TEST "
            f"with TRAIN + DEV of at most {train}, or with TRAIN of at most {train} and DEV below {validation}."
        )
    # RandomState, for numpy keeps its stream the same for ever; that of default_rng may change with a release.
    learnt = np.random.RandomState(seed).permutation(train).tolist()
    tested = np.random.RandomState(seed).permutation(validation).tolist()
    source = learnt if dev_from == "train" else tested
    dev = source[len(source) - sampling.dev :]
    free = tested if dev_from == "train" else tested[: validation - sampling.dev]
    return Allotment(learnt[: sampling.train], dev, free[: sampling.test], dev_from)
