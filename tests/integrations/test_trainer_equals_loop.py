"""One fine-tuning three ways: the plain loop, transformers' Trainer, TRL's SFTTrainer. Losses, knots and links agree."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional
from torch.optim.lr_scheduler import LambdaLR

from experiments.train import Setup, train
from fwlora import Decay, Evenly
from tests.integrations.trainers import STEPS, PlainLoss, RecordedSFTTrainer, RecordedTrainer, adapted, begin

KINDS = ["plain", "peft"]
# Small enough to clip at every step, so that clipping is compared too.
CLIP = 0.05
# Adam divides by the root of its second moment plus this: with a tiny one it magnifies rounding where a gradient is tiny.
EPS = 1e-4
OPTIONS = {"train_sampling_strategy": "sequential", "save_strategy": "no", "max_grad_norm": CLIP}

pytestmark = [
    pytest.mark.filterwarnings("ignore::fwlora.errors.SaveModelWarning"),
    # TRL takes its default from an option that transformers 5.23 renamed.
    pytest.mark.filterwarnings("ignore:`gradient_checkpointing` is deprecated:FutureWarning"),
]


class Rows:
    """The loop's task: rows in their order, over and over, as a sequential sampler gives them."""

    def __init__(self, rows, accumulation=1, batch_size=2):
        self.rows, self.accumulation, self.batch_size = rows, accumulation, batch_size

    def batches(self, step):
        """As many micro-batches as are accumulated, padded as Trainer's are."""
        first = step * self.accumulation
        return [self._batch(number) for number in range(first, first + self.accumulation)]

    def loss(self, model, batch):
        """The model's own."""
        return model(**batch).loss

    def targets(self, batch):
        """Tokens that a causal model predicts: not the first."""
        return int((batch["labels"][:, 1:] != -100).sum())

    def _batch(self, number):
        first = number * self.batch_size % len(self.rows)
        return pad(self.rows[first : first + self.batch_size])


def pad(rows):
    """Rows of unequal length as one batch; it holds no mask where none is needed."""
    ids = torch.nn.utils.rnn.pad_sequence([row["input_ids"] for row in rows], batch_first=True, padding_value=2)
    length = max(len(row["labels"]) for row in rows)
    labels = [functional.pad(row["labels"], (0, length - len(row["labels"])), value=-100) for row in rows]
    return {"input_ids": ids, "labels": torch.stack(labels)}


def linear(optimizer):
    """The same scheduler in all three."""
    return LambdaLR(optimizer, lambda step: 1 - step / STEPS)


def by_loop(bench, kind, rows, *, accumulation=1, chain_options=None):
    """The plain loop on the rows."""
    torch.manual_seed(0)
    model, chain = adapted(bench, kind, chain_options=chain_options)
    chain.total_steps = STEPS
    # Trainer clips over the parameters in the model's order, and a norm depends on the order in its last place.
    setup = Setup(model, chain, list(model.parameters()), linear(chain))
    losses = train(setup, Rows(rows, accumulation), steps=STEPS, max_grad_norm=CLIP)
    return losses, chain


def by_trainer(bench, kind, rows, folder, trainer, *, accumulation=1, collator=None, chain_options=None):
    """A Trainer on the rows."""
    torch.manual_seed(0)
    options = {**OPTIONS, "gradient_accumulation_steps": accumulation}
    made, chain = begin(
        bench,
        kind,
        folder,
        rows=rows,
        options=options,
        chain_options=chain_options,
        scheduler=linear,
        trainer=trainer,
        collator=collator,
    )
    made.train()
    return made.losses, chain


def of_equal_length(bench):
    """Sixteen rows that need no padding."""
    return [{"input_ids": row, "labels": row} for row in bench.tokens(0, rows=16)]


@pytest.mark.parametrize("trainer", [RecordedTrainer, PlainLoss])
@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_trainer_is_the_loop_bit_for_bit(bench, tmp_path, kind, accumulation, trainer):
    """Losses of all steps, weights, links, moments, rates, ledger; clipped, scheduled, warmed up after each knot."""
    rows = of_equal_length(bench)
    losses, chain = by_loop(bench, kind, rows, accumulation=accumulation)
    made, other = by_trainer(bench, kind, rows, tmp_path, trainer, accumulation=accumulation)
    assert len(losses) == STEPS
    assert made == losses
    assert other.ledger == chain.ledger
    assert chain.ledger.column("step") == [3, 6]
    bench.assert_same(bench.facts(other), bench.facts(chain))


@pytest.mark.parametrize("trainer", [RecordedTrainer, PlainLoss])
def test_even_links_whose_rate_decays_are_tied_at_the_same_steps(bench, tmp_path, trainer):
    """Evenly(3) of 8 steps, left open for the callback: knots after 3 and 6, and the factors of Decay."""
    rows = of_equal_length(bench)
    options = {"knots": Evenly(3), "link_lr": Decay(warmup=1)}
    losses, chain = by_loop(bench, "plain", rows, chain_options=options)
    made, other = by_trainer(bench, "plain", rows, tmp_path, trainer, chain_options=options)
    assert made == losses
    assert other.ledger.column("step") == chain.ledger.column("step") == [3, 6]
    bench.assert_same(bench.facts(other), bench.facts(chain))


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_sft_trainer_with_its_fused_loss_is_the_loop_to_rounding(bench, tmp_path, kind, accumulation):
    """TRL adds log-probabilities in chunks, so the last place differs."""
    rows, options = of_equal_length(bench), {"eps": EPS}
    losses, chain = by_loop(bench, kind, rows, accumulation=accumulation, chain_options=options)
    made, other = by_trainer(bench, kind, rows, tmp_path, RecordedSFTTrainer, accumulation=accumulation, chain_options=options)
    assert made == pytest.approx(losses, rel=1e-6)
    assert other.ledger.column("step") == chain.ledger.column("step") == [3, 6]
    _assert_close_links(other, chain)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_tokens_weigh_the_same_in_rows_of_unequal_length(bench, tmp_path, accumulation):
    """Both take the mean over all tokens of a step: sum_i n_i loss_i / n, by the loop; sum of sums / n, by Trainer."""
    lengths = [3, 8, 5, 7, 2, 8, 6, 4]
    rows = [{"input_ids": ids, "labels": ids} for ids in (bench.tokens(k, rows=1, length=n)[0] for k, n in enumerate(lengths))]
    options = {"eps": EPS}
    losses, chain = by_loop(bench, "plain", rows, accumulation=accumulation, chain_options=options)
    made, other = by_trainer(
        bench, "plain", rows, tmp_path, RecordedTrainer, accumulation=accumulation, collator=pad, chain_options=options
    )
    assert made == pytest.approx(losses, rel=1e-6)
    assert other.ledger.column("step") == chain.ledger.column("step") == [3, 6]
    _assert_close_links(other, chain)


def test_three_ways_differ_where_the_data_do(bench, tmp_path):
    """The comparison has something to find: rows in another order give other losses from the first step on."""
    rows = of_equal_length(bench)
    losses, _chain = by_loop(bench, "plain", rows)
    made, _other = by_trainer(bench, "plain", rows[::-1], tmp_path, RecordedTrainer)
    assert min(abs(one - other) for one, other in zip(made, losses, strict=True)) > 1e-4


def _assert_close_links(one, other):
    assert len(one.chain) == len(other.chain) == 2
    for name in other.sites:
        assert torch.allclose(one.delta(name), other.delta(name), rtol=1e-4, atol=1e-6), name
        for mine, theirs in zip(one.chain, other.chain, strict=True):
            for letter in ("A", "B"):
                ours, others = (getattr(link.factors[name], letter) for link in (mine, theirs))
                assert torch.allclose(ours, others, rtol=1e-4, atol=1e-6), (name, letter)
