"""Completions written by a decoder: generation and summarisation, measured by ROUGE-L."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from torch import Tensor, nn

from experiments.errors import UsageError
from experiments.language import generating
from experiments.language.bases import Base
from experiments.language.lengths import evaluating
from experiments.language.measured import keep, kept
from experiments.tasks.jsonl import Example, JsonlTask, collate, evaluate, tokenize
from experiments.tasks.language import source
from experiments.tasks.language.source import Sampling
from experiments.tasks.metric import Metric
from experiments.tasks.order import Order
from experiments.tasks.pretrained import Pretrained

ROUGE_L = Metric("test ROUGE-L (%)", "points", higher_is_better=True, digits=2)
CHOSEN = generating.MEASURES["rougeL"]


@dataclass(frozen=True)
class Writing(Pretrained):
    """Fine-tune a decoder on completions alone, and have it write them.

    Attributes:
        max_new_tokens: that are written, at most.
    """

    max_new_tokens: int = 64

    @property
    def metric(self) -> Metric:
        """ROUGE-L."""
        return ROUGE_L

    def check(self) -> None:
        """Looks at the room for a prompt too.

        Raises:
            UsageError: the model does not suit the task, or no prompt fits.
        """
        generating.check_room(self.max_new_tokens, self.max_length)
        super().check()

    def rows(self, split: str) -> tuple[Example, ...]:
        """The rows of "train", "dev" or "test", in tokens."""
        return _rows(self.name, self.base, self.data_dir, self.sampling, self.draw, self.max_length, split)

    def order(self, seed: int) -> Order:
        """Rows that leave nothing to predict are not among them."""
        return Order(len(self.rows("train")), self.batch_size, seed)

    def task(self, seed: int) -> JsonlTask:
        """The training rows in the order of `seed`."""
        return JsonlTask(self.rows("train"), self.order(seed), self.batch_size)

    def shapes(self, seed: int) -> Iterator[tuple[int, int]]:
        """A batch has a row for each completion."""
        rows, order = self.rows("train"), self.order(seed)
        for step in range(self.steps):
            lengths = [len(rows[index].ids) for index in order.rows_of(step)]
            yield len(lengths), max(lengths)

    def evaluate(self, model: nn.Module) -> float:
        """ROUGE-L of what is written after the test prompts, in percent."""
        return self._measures(model, "test")[CHOSEN]

    def validate(self, model: nn.Module) -> float:
        """ROUGE-L of what is written after the dev prompts, in percent."""
        return self._measures(model, "dev")[CHOSEN]

    def details(self, model: nn.Module) -> dict[str, float]:
        """The loss in nats a token of the dev completions, and all measures of what is written after the test prompts."""
        rows = sorted(self.rows("dev"), key=lambda row: len(row.ids))
        written = kept(model, (self, "test"), lambda: self._measures(model, "test"))
        return {
            "validation loss": evaluate(model, rows, self.batch_size),
            **{f"test {name}": value for name, value in written.items()},
        }

    def outputs(self, model: nn.Module) -> Tensor:
        """Logits at every token of a few test rows."""
        batch = collate(self.rows("test")[:4])
        device = next(model.parameters()).device
        with evaluating(model):
            mask = batch.attention_mask.to(device)
            return model(input_ids=batch.input_ids.to(device), attention_mask=mask).logits[mask.bool()]

    def write(self, model: nn.Module, split: str) -> list[str]:
        """What the model writes after the prompts of "dev" or "test"."""
        prompts = [example.prompt for example in self.examples(split)]
        return generating.write(
            model, self.start.tokenizer(), prompts, max_new_tokens=self.max_new_tokens, max_length=self.max_length
        )

    def _measures(self, model: nn.Module, split: str) -> dict[str, float]:
        wanted: Sequence[str] = [example.completion for example in self.examples(split)]
        return keep(model, (self, split), generating.measures(self.write(model, split), wanted))


@lru_cache(maxsize=12)
def _rows(
    name: str, base: str, data_dir: str | None, sampling: Sampling, draw: int, max_length: int, split: str
) -> tuple[Example, ...]:
    examples = getattr(source.draw(name, data_dir, sampling, draw), split)
    pairs = [{"prompt": example.prompt, "completion": example.completion} for example in examples]
    rows = tuple(tokenize(pairs, Base(base).tokenizer(), max_length))
    if not rows:
        raise UsageError(f"--tasks {name}: no {split} row has a token to predict; give longer prompts or completions.")
    return rows
