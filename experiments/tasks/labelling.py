"""Questions answered by an encoder with a classification head: the number of the answer is the label of the prompt."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor, nn

from experiments.errors import UsageError
from experiments.language import heads
from experiments.language.bases import Base
from experiments.language.heads import Labelled, LabelledBatch
from experiments.language.lengths import evaluating
from experiments.language.loading import load_config
from experiments.language.measured import keep, kept
from experiments.tasks.language import source
from experiments.tasks.language.source import Sampling
from experiments.tasks.metric import ACCURACY, Metric
from experiments.tasks.order import Order
from experiments.tasks.pretrained import COMMONEST, Pretrained


@dataclass(frozen=True)
class Labelling(Pretrained):
    """Fine-tune an encoder to label prompts; its new head is trained in full, and drawn from the sample's seed."""

    @property
    def metric(self) -> Metric:
        """Accuracy."""
        return ACCURACY

    @property
    def start(self) -> Base:
        """The encoder with a head for the task's candidates."""
        drawn = source.draw(self.name, self.data_dir, self.sampling, self.draw)
        labels = heads.candidates([*drawn.train, *drawn.dev, *drawn.test], self.name)  # pyright: ignore[reportArgumentType]
        return Base(self.base, labels, self.draw)

    @property
    def padding(self) -> int:
        """The token that rows are padded with."""
        return getattr(load_config(self.base), "pad_token_id", None) or 0

    def check(self) -> None:
        """Looks at the precision too.

        Raises:
            UsageError: the model does not suit the task, or the head is in half precision.
        """
        if self.dtype != "fp32":
            raise UsageError(f"--dtype {self.dtype}: an encoder's new head is trained in full, as it is; give fp32.")
        super().check()

    def rows(self, split: str) -> tuple[Labelled, ...]:
        """The prompts of "train", "dev" or "test", in tokens."""
        return _rows(self.name, self.start, self.data_dir, self.sampling, self.draw, self.max_length, split)

    def task(self, seed: int) -> LabellingTask:
        """The training prompts in the order of `seed`."""
        return LabellingTask(self.rows("train"), self.order(seed), self.padding)

    def shapes(self, seed: int) -> Iterator[tuple[int, int]]:
        """A batch has a row for each prompt."""
        rows, order = self.rows("train"), self.order(seed)
        for step in range(self.steps):
            lengths = [len(rows[index].ids) for index in order.rows_of(step)]
            yield len(lengths), max(lengths)

    def evaluate(self, model: nn.Module) -> float:
        """Accuracy on the test prompts in percent."""
        return self._accuracy(model, "test")

    def validate(self, model: nn.Module) -> float:
        """Accuracy on the dev prompts in percent."""
        return self._accuracy(model, "dev")

    def details(self, model: nn.Module) -> dict[str, float]:
        """The loss of training, on the dev prompts, and the accuracy of always giving the commonest label."""
        found = kept(model, (self, "dev"), lambda: self._logits(model, "dev"))
        losses = [-part.log_softmax(0)[row.label] for part, row in zip(found, self.rows("dev"), strict=True)]
        return {"validation loss": float(torch.stack(losses).mean()), COMMONEST: self.commonest()}

    def outputs(self, model: nn.Module) -> Tensor:
        """The head's logits on a few test prompts."""
        with evaluating(model):
            return heads.logits(model, heads.collate(self.rows("test")[:4], self.padding))

    def _accuracy(self, model: nn.Module, split: str) -> float:
        pairs = list(zip(self._logits(model, split), self.rows(split), strict=True))
        # A model that came to nothing answers nothing.
        return 100 * sum(not part.isnan().any() and int(part.argmax()) == row.label for part, row in pairs) / len(pairs)

    def _logits(self, model: nn.Module, split: str) -> Sequence[Tensor]:
        return keep(model, (self, split), heads.logits_of_all(model, self.rows(split), self.padding))


@dataclass(frozen=True)
class LabellingTask:
    """Batches of prompts and the cross-entropy over their labels.

    Attributes:
        rows: in tokens.
        order: which of them a step takes.
        padding: the token that they are padded with.
    """

    rows: Sequence[Labelled]
    order: Order
    padding: int

    def batches(self, step: int) -> list[LabelledBatch]:
        """One batch a step."""
        return [heads.collate([self.rows[index] for index in self.order.rows_of(step)], self.padding)]

    def loss(self, model: nn.Module, batch: LabelledBatch) -> Tensor:
        """Mean cross-entropy."""
        return heads.loss(model, batch)

    def targets(self, batch: LabelledBatch) -> int:
        """Number of prompts."""
        return len(batch.labels)


@lru_cache(maxsize=12)
def _rows(
    name: str, base: Base, data_dir: str | None, sampling: Sampling, draw: int, max_length: int, split: str
) -> tuple[Labelled, ...]:
    examples = getattr(source.draw(name, data_dir, sampling, draw), split)
    return heads.label_all(examples, base.tokenizer(), max_length)
