"""Candidates are scored by the mean log-probability of their tokens, whatever stands beside them in a batch."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from experiments.errors import UsageError
from experiments.language import scoring
from experiments.language.lengths import batches
from experiments.language.scoring import Candidates
from experiments.tasks.jsonl import IGNORED, Batch, collate
from experiments.tasks.language.question import Question
from tests.experiments.decoders import CLASSES, decoder, words

QUESTIONS = [
    Question("the cat sat on the mat is it so", (" yes", " no"), 0),
    Question("a dog ran", (" yes", " no", " maybe so"), 2),
    Question("under a tree the bird flew on the mat under the dog", (" it is so", " no"), 1),
    Question("it", (" sat on the mat", " ran"), 0),
]


def tokens(questions=QUESTIONS, *, begins: bool = True, max_length: int = 32) -> tuple[Candidates, ...]:
    return scoring.tokenize(questions, words(begins=begins), max_length, "mine")


def slow(model: nn.Module, questions: tuple[Candidates, ...]) -> list[Tensor]:
    """Each candidate alone, without padding or mask: log p of its tokens one after the other."""
    found = []
    for question in questions:
        means = []
        for row in question.rows:
            logs = model(input_ids=torch.tensor([row.ids])).logits[0].log_softmax(-1)
            means.append(torch.stack([logs[place - 1, row.ids[place]] for place in range(row.context, len(row.ids))]).mean())
        found.append(torch.stack(means))
    return found


def test_an_answer_is_what_prompt_and_answer_have_more_than_the_prompt():
    (question,) = tokens([Question("the cat ", (" sat on", " ran"), 1)])
    assert [row.ids for row in question.rows] == [(1, 4, 6, 9, 12), (1, 4, 6, 10)]
    assert [row.context for row in question.rows] == [3, 3]
    (question,) = tokens([Question("the cat ", (" sat on", " ran"), 1)], begins=False)
    assert [row.ids for row in question.rows] == [(4, 6, 9, 12), (4, 6, 10)]


def test_a_token_that_ends_every_text_is_not_an_answers():
    (question,) = scoring.tokenize([Question("the cat", (" ran",), 0)], words(begins=True, ends=True), 32, "mine")
    assert question.rows[0].ids == (1, 4, 6, 10)


def test_a_score_is_the_mean_of_the_answers_log_probabilities_by_hand():
    """At place t the model says p(token) = 1/2 for the token t + 1, and 1/2 spread over the 3 others."""

    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bias = nn.Parameter(torch.zeros(()))

        def forward(self, input_ids, **_):
            places = torch.arange(input_ids.shape[1])
            chances = torch.full((*input_ids.shape, 4), 1 / 6)
            chances[:, places, (places + 1) % 4] = 1 / 2
            return SimpleNamespace(logits=chances.log() + self.bias)

    ids = torch.tensor([[0, 1, 2, 3], [0, 1, 3, 0]])
    labels = torch.tensor([[IGNORED, IGNORED, 2, 3], [IGNORED, 1, 3, IGNORED]])
    found = scoring.scores(Counting(), Batch(ids, torch.ones_like(ids), labels))
    assert found.tolist() == pytest.approx([math.log(1 / 2), (math.log(1 / 2) + math.log(1 / 6)) / 2], abs=1e-6)


@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize("begins", [True, False])
def test_scores_are_those_of_each_candidate_alone(kind: str, begins: bool):
    model, questions = decoder(kind, torch.float64), tokens(begins=begins)
    with torch.no_grad():
        expected = slow(model, questions)
    for size in (1, 20, 40, 1000):
        for one, other in zip(scoring.score_all(model, questions, size), expected, strict=True):
            assert torch.allclose(one, other, atol=1e-12, rtol=0)


@pytest.mark.parametrize("kind", CLASSES)
def test_padding_on_the_left_gives_the_same_scores(kind: str):
    """With places counted from the first token, as generation does it."""
    model = decoder(kind, torch.float64)
    batch = collate([row for question in tokens() for row in question.rows])
    width = batch.input_ids.shape[1]
    shift = [width - int(n) for n in batch.attention_mask.sum(1)]

    def left(table: Tensor) -> Tensor:
        return torch.stack([row.roll(by) for row, by in zip(table, shift, strict=True)])

    mask = left(batch.attention_mask)
    places = (mask.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        logs = model(input_ids=left(batch.input_ids), attention_mask=mask, position_ids=places).logits[:, :-1].log_softmax(-1)
        labels = left(batch.labels)[:, 1:]
        chosen = labels != IGNORED
        picked = logs.gather(2, labels.clamp(min=0)[..., None])[..., 0]
        means = (picked * chosen).sum(1) / chosen.sum(1)
        assert torch.allclose(scoring.scores(model, batch), means, atol=1e-12, rtol=0)


@pytest.mark.parametrize("kind", CLASSES)
def test_what_stands_in_the_padding_is_never_read(kind: str):
    model = decoder(kind, torch.float64)
    batch = collate([row for question in tokens() for row in question.rows])
    other = torch.where(batch.attention_mask.bool(), batch.input_ids, 7)
    assert not torch.equal(other, batch.input_ids)
    with torch.no_grad():
        assert torch.equal(
            scoring.scores(model, batch), scoring.scores(model, Batch(other, batch.attention_mask, batch.labels))
        )


@pytest.mark.parametrize("kind", CLASSES)
def test_loss_and_gradient_are_those_of_the_slow_loop(kind: str):
    """Two, two and three candidates: those that a question lacks must leave no trace."""
    model, questions = decoder(kind, torch.float64), tokens()
    fast = scoring.loss(model, scoring.contest(questions))
    expected = torch.stack([-s.log_softmax(0)[q.answer] for s, q in zip(slow(model, questions), questions, strict=True)]).mean()
    assert float(fast.detach()) == pytest.approx(float(expected.detach()), abs=1e-12)
    assert scoring.mean_loss(scoring.score_all(model, questions), questions) == pytest.approx(
        float(expected.detach()), abs=1e-12
    )
    parameters = list(model.parameters())
    for one, other in zip(torch.autograd.grad(fast, parameters), torch.autograd.grad(expected, parameters), strict=True):
        assert torch.allclose(one, other, atol=1e-12, rtol=1e-9)


def test_half_precision_is_widened_before_the_logarithm():
    model, questions = decoder("llama", torch.bfloat16), tokens()
    assert scoring.scores(model, scoring.contest(questions).rows).dtype == torch.float32


def test_evaluation_puts_every_modules_mode_back():
    model = decoder("llama").train()
    frozen = next(iter(model.children())).eval()
    scoring.score_all(model, tokens())
    assert model.training
    assert not frozen.training


def test_accuracy_counts_the_best_and_nan_is_never_right():
    questions = tokens()
    found = [torch.tensor(s) for s in ([0.0, -1.0], [0.0, -1.0, 1.0], [0.0, -1.0], [math.nan, math.nan])]
    assert scoring.accuracy(found, questions) == 50.0


def test_a_long_prompt_loses_its_beginning_but_not_the_first_token_and_no_answer():
    question = Question("the cat sat on the mat", (" yes", " maybe so"), 0)
    (whole,), (cut,) = tokens([question]), tokens([question], max_length=6)
    assert [row.ids for row in whole.rows] == [(1, 4, 6, 9, 12, 4, 14, 16), (1, 4, 6, 9, 12, 4, 14, 18, 21)]
    assert [row.ids for row in cut.rows] == [(1, 12, 4, 14, 16), (1, 12, 4, 14, 18, 21)]
    assert {row.context for row in cut.rows} == {4}
    (bare,) = tokens([question], begins=False, max_length=3)
    assert [row.ids for row in bare.rows] == [(14, 16), (14, 18, 21)]
    (least,) = tokens([question], max_length=3)
    assert [row.ids for row in least.rows] == [(1, 16), (1, 18, 21)]


@pytest.mark.parametrize(
    ("question", "begins", "words"),
    [
        (Question("the cat", (" sat on the", " ran"), 0), True, "' sat on the' takes 3 tokens, and what it follows at least 1, "
         "but --max-length is 3; give at least 4"),
        (Question("the cat", (" ran", ""), 0), True, "--tasks mine, prompt 'the cat': the answer '' adds no token"),
        (Question("", (" ran", " sat"), 0), False, "no token for the answers to follow"),
    ],
)  # fmt: skip
def test_what_cannot_be_scored_is_refused(question: Question, begins: bool, words: str):
    with pytest.raises(UsageError) as error:
        tokens([question], begins=begins, max_length=3)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_batches_hold_each_row_once_and_keep_to_their_size():
    lengths = [int(n) for n in torch.randint(1, 50, (200,))]
    found = batches(lengths, 120)
    assert sorted(row for batch in found for row in batch) == list(range(200))
    assert all(len(batch) * max(lengths[row] for row in batch) <= 120 for batch in found)
    assert batches([5, 500], 10) == [[1], [0]]
    assert batches([]) == []
