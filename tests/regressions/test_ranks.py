"""Ranks that drifted apart in silence, and merges that shards were too much for.

Each test puts one and the same check to a chain and to what the peer does; the peer must fail it. `ranks.py` is what the two
ranks run.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.distributed.launching import Ranks, launch


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> Ranks:
    """Both ranks, once for all tests."""
    return launch(str(Path(__file__).with_name("ranks.py")), tmp_path_factory.mktemp("ranks"))


def apart(both: list[dict], name: str) -> float:
    """The largest difference between the ranks."""
    return (both[0][name] - both[1][name]).abs().max().item()


def test_06_ranks_start_every_link_from_the_same_factors(ranks):
    """NVIDIA-NeMo/Megatron-Bridge#5396, Nerogar/OneTrainer#803: each rank re-draws A from its own stream, unnoticed."""
    both = ranks("factors_after_a_reset")
    assert [outcome["knots"] for outcome in both] == [3, 3]
    assert apart(both, "chain") == 0
    assert apart(both, "peer") > 0.1


def is_merged(outcome: dict, rank: int, W: Tensor | str) -> bool:
    """Whether a rank's four rows hold the original weight and the whole update."""
    wanted = (outcome["original"] + outcome["asked"])[4 * rank : 4 * rank + 4]
    return isinstance(W, Tensor) and W.shape == wanted.shape and torch.allclose(W, wanted, atol=1e-6)


def assert_every_rank_merges_and_the_peer_does_not(both: list[dict]) -> None:
    merged, peers = (
        [is_merged(outcome, rank, outcome[name]) for rank, outcome in enumerate(both)] for name in ("rows", "peer's rows")
    )
    assert merged == [True, True]
    assert not all(peers)
    assert all(outcome["asked"].abs().max() > 1e-3 and outcome["fresh"].any() for outcome in both)
    assert apart(both, "fresh") == 0


def test_11_knot_on_shards_merges_the_whole_update(ranks):
    """modelscope/ms-swift#7118, Guitaricet/relora: weights that are DTensors are merged wrongly, or FSDP is given up."""
    both = ranks("merge_on_shards")
    assert [outcome["rows of A"] for outcome in both] == [2, 2]
    assert_every_rank_merges_and_the_peer_does_not(both)


def test_12_knot_is_tied_where_a_rank_holds_no_row(ranks):
    """huggingface/peft#297, #1267, #2500: a merge on an empty shard fails, or adds nothing."""
    both = ranks("merge_on_an_empty_shard")
    assert [outcome["rows of A"] for outcome in both] == [1, 0]
    assert_every_rank_merges_and_the_peer_does_not(both)
    assert isinstance(both[1]["peer's rows"], str), "an error, on the one rank"


def test_11_links_hold_every_ranks_rows(ranks):
    """huggingface/accelerate#4206: an FSDP2 checkpoint dropped the adapter of every rank but the first."""
    for scenario in ("merge_on_shards", "merge_on_an_empty_shard"):
        for outcome in ranks(scenario):
            assert torch.equal(outcome["saved"], outcome["trained"])
            assert outcome["peer's saved"].shape != outcome["trained"].shape
