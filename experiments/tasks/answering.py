"""Questions answered by a decoder: the candidate with the best score is its answer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from torch import Tensor, nn

from experiments.language import scoring
from experiments.language.bases import Base
from experiments.language.lengths import evaluating
from experiments.language.measured import keep, kept
from experiments.language.scoring import Candidates, Contest
from experiments.tasks.jsonl import collate
from experiments.tasks.language import source
from experiments.tasks.language.source import Sampling
from experiments.tasks.metric import ACCURACY, Metric
from experiments.tasks.order import Order
from experiments.tasks.pretrained import COMMONEST, Pretrained


@dataclass(frozen=True)
class Answering(Pretrained):
    """Fine-tune a decoder to score the right candidate above the others."""

    @property
    def metric(self) -> Metric:
        """Accuracy."""
        return ACCURACY

    def rows(self, split: str) -> tuple[Candidates, ...]:
        """The questions of "train", "dev" or "test", in tokens."""
        return _rows(self.name, self.base, self.data_dir, self.sampling, self.draw, self.max_length, split)

    def task(self, seed: int) -> AnsweringTask:
        """The training questions in the order of `seed`."""
        return AnsweringTask(self.rows("train"), self.order(seed))

    def shapes(self, seed: int) -> Iterator[tuple[int, int]]:
        """A batch has a row for each candidate of its questions."""
        rows, order = self.rows("train"), self.order(seed)
        for step in range(self.steps):
            questions = [rows[index] for index in order.rows_of(step)]
            yield sum(len(q.rows) for q in questions), max(q.length for q in questions)

    def evaluate(self, model: nn.Module) -> float:
        """Accuracy on the test questions in percent."""
        return scoring.accuracy(self._scores(model, "test"), self.rows("test"))

    def validate(self, model: nn.Module) -> float:
        """Accuracy on the dev questions in percent."""
        return scoring.accuracy(self._scores(model, "dev"), self.rows("dev"))

    def details(self, model: nn.Module) -> dict[str, float]:
        """The loss of training, on the dev questions, and the accuracy of always giving the commonest answer."""
        found = kept(model, (self, "dev"), lambda: self._scores(model, "dev"))
        return {"validation loss": scoring.mean_loss(found, self.rows("dev")), COMMONEST: self.commonest()}

    def outputs(self, model: nn.Module) -> Tensor:
        """Logits at every token of a few test questions."""
        batch = collate([row for question in self.rows("test")[:4] for row in question.rows])
        device = next(model.parameters()).device
        with evaluating(model):
            mask = batch.attention_mask.to(device)
            return model(input_ids=batch.input_ids.to(device), attention_mask=mask).logits[mask.bool()]

    def _scores(self, model: nn.Module, split: str) -> Sequence[Tensor]:
        return keep(model, (self, split), scoring.score_all(model, self.rows(split)))


@dataclass(frozen=True)
class AnsweringTask:
    """Batches of questions and the cross-entropy over their candidates.

    Attributes:
        questions: in tokens.
        order: which of them a step takes.
    """

    questions: Sequence[Candidates]
    order: Order

    def batches(self, step: int) -> list[Contest]:
        """One batch a step, each question with all its candidates."""
        return [scoring.contest([self.questions[index] for index in self.order.rows_of(step)])]

    def loss(self, model: nn.Module, batch: Contest) -> Tensor:
        """Mean cross-entropy over candidates."""
        return scoring.loss(model, batch)

    def targets(self, batch: Contest) -> int:
        """Number of questions."""
        return len(batch.counts)


@lru_cache(maxsize=12)
def _rows(
    name: str, base: str, data_dir: str | None, sampling: Sampling, draw: int, max_length: int, split: str
) -> tuple[Candidates, ...]:
    examples = getattr(source.draw(name, data_dir, sampling, draw), split)
    return scoring.tokenize(examples, Base(base).tokenizer(), max_length, name)
