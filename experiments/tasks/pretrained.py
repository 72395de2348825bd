"""What the language problems have in common: a pretrained model, a sample of a task, and the paper's budget."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from experiments.compare import Extent
from experiments.language import loading
from experiments.language.bases import Base
from experiments.tasks.jsonl import digest
from experiments.tasks.language import source
from experiments.tasks.language.source import Sampling
from experiments.tasks.metric import Metric
from experiments.tasks.order import Order
from experiments.train import Task

COMMONEST = "test accuracy of the commonest answer (%)"


@dataclass(frozen=True)
class Pretrained(ABC):
    """Fine-tune a pretrained model on a task: names, paths and sizes alone, from which everything is read when it is needed.

    Attributes:
        name: of the task.
        base: the model's folder, or its name on the hub.
        data_dir: folder of the tasks' folders; None for the hub.
        sampling: how many examples.
        draw: seed of the sample.
        epochs: passes over the training examples.
        limit: optimizer steps instead of `epochs`.
        batch_size: examples a step.
        max_length: tokens of the longest row.
        dtype: of the base: "fp32", "bf16" or "fp16".
        device: where to compute; "auto" is CUDA where there is one.
        targets: the layers to adapt, by the end of their names.
        max_grad_norm: where the gradient's norm is clipped.
        places: the fields that say where files lie, for which `identity` stands.
    """

    places: ClassVar[tuple[str, ...]] = ("base", "data_dir")

    name: str
    base: str
    data_dir: str | None
    sampling: Sampling
    draw: int
    epochs: int = 5
    limit: int | None = None
    batch_size: int = 8
    max_length: int = 2048
    dtype: str = "fp32"
    device: str = "auto"
    targets: tuple[str, ...] = ("q_proj", "v_proj")
    max_grad_norm: float | None = 1.0

    @property
    @abstractmethod
    def metric(self) -> Metric:
        """What `evaluate` and `validate` return."""

    @property
    def start(self) -> Base:
        """The pretrained model."""
        return Base(self.base)

    @property
    def steps(self) -> int:
        """Optimizer steps of a run."""
        return self.limit or self.epochs * self.order(0).steps_per_epoch

    @property
    def watched(self) -> str:
        """The last layer that goes by the last of the targets' names."""
        return self.start.watched(self.targets)

    @property
    def trained(self) -> tuple[str, ...]:
        """Modules trained in full beside any adapter."""
        return self.start.trained

    def check(self) -> None:
        """Looks at what can be known without the weights.

        Raises:
            UsageError: the model does not suit the task.
        """
        loading.check_length(self.max_length, self.start.longest)
        _ = self.watched

    def model(self) -> nn.Module:
        """A fresh copy of the pretrained model."""
        return self.start.copy(self.dtype, self.device)

    def examples(self, split: str) -> Sequence[Any]:
        """The sample's examples of "train", "dev" or "test"."""
        return getattr(source.draw(self.name, self.data_dir, self.sampling, self.draw), split)

    def order(self, seed: int) -> Order:
        """Which training examples a step takes."""
        return Order(len(self.examples("train")), self.batch_size, seed)

    @abstractmethod
    def shapes(self, seed: int) -> Iterable[tuple[int, int]]:
        """Rows and padded length of every forward pass of training in the order of `seed`."""

    @abstractmethod
    def task(self, seed: int) -> Task:
        """The training examples in the order of `seed`."""

    @abstractmethod
    def evaluate(self, model: nn.Module) -> float:
        """The metric's value on the test examples."""

    @abstractmethod
    def validate(self, model: nn.Module) -> float:
        """The metric's value on the dev examples."""

    @abstractmethod
    def details(self, model: nn.Module) -> dict[str, float]:
        """Further measures by their names; what the other two have just measured is not measured again."""

    @abstractmethod
    def outputs(self, model: nn.Module) -> Tensor:
        """The model's logits on a few test examples."""

    def commonest(self) -> float:
        """How often the test's most frequent answer is right, in percent: what a model must beat to have learned anything."""
        answers = Counter(question.answer for question in self.examples("test"))
        return 100 * max(answers.values()) / answers.total()

    def extent(self, seed: int) -> Extent:
        """What training in the order of `seed` reads."""
        found = list(self.shapes(seed))
        return Extent(
            sum(rows for rows, _ in found),
            sum(rows * length for rows, length in found),
            sum(rows * length**2 for rows, length in found),
        )

    def identity(self) -> dict[str, str]:
        """Digests of all that a result depends on and that has no place in the fields.

        Returns:
            Of the data's files where they are local, of the drawn examples, and of the model's files or the hub's revision.
        """
        drawn = source.draw(self.name, self.data_dir, self.sampling, self.draw)
        files = [] if self.data_dir is None else source.files(self.name, self.data_dir)
        return {
            **{f"data {path.name}": digest(path) for path in files},
            "examples": hashlib.sha256(repr(drawn).encode()).hexdigest(),
            **{f"model {name}": value for name, value in self.start.identity().items()},
        }
