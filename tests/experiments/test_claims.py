"""The statistical claim of the demo and its twin: a chain pays where rank is missing, and costs where it is not."""

from __future__ import annotations

from experiments.compare import Run, execute
from experiments.methods import ChainOfLoRA, LoRA
from experiments.statistics import Comparison, compare
from experiments.tasks.digits import Digits
from experiments.tasks.regression import Regression
from fwlora import Evenly

SEEDS = range(8)


def chain_against_lora(problem, lr: float, rank: int) -> Comparison:
    lora, chain = LoRA("LoRA", lr, rank), ChainOfLoRA("chain", lr, rank, Evenly(3))
    values = [[execute(Run(problem, method, seed))["value"] for seed in SEEDS] for method in (chain, lora)]
    return compare(*values, higher_is_better=problem.metric.higher_is_better)


def test_three_links_beat_lora_on_rotated_digits():
    against = chain_against_lora(Digits(), lr=2e-2, rank=1)
    assert against.difference.mean > 2
    assert against.wins >= 6
    assert against.verdict == "better"


def test_three_links_lose_to_lora_where_rank_is_enough():
    against = chain_against_lora(Regression(true_rank=2), lr=1e-2, rank=2)
    assert against.difference.mean > 0
    assert against.wins <= 2
    assert against.verdict == "worse"


def test_three_links_beat_lora_where_rank_is_missing():
    against = chain_against_lora(Regression(true_rank=16), lr=1e-2, rank=2)
    assert against.difference.mean < -0.2
    assert against.wins == len(SEEDS)
