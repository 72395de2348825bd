"""Two gloo ranks on a quantised base: links are kept alike on both, and nothing of a packed weight is sharded."""

from __future__ import annotations

import pytest
import torch

from tests.distributed.launching import Ranks, launch


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> Ranks:
    """Both ranks, once for all tests."""
    return launch("quantised_ranks.py", tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_ranks_stay_equal_and_are_one_process_on_the_joint_batch(ranks, kind):
    """Bit for bit across ranks, and to 1e-5 after 3 knots and a compression."""
    first, second = (outcome[kind] for outcome in ranks("joint"))
    assert first["knots"] == second["knots"] == 3
    for name, value in first["together"].items():
        assert torch.equal(value, second["together"][name]), name
        assert torch.allclose(value.double(), first["alone"][name].double(), atol=1e-5, rtol=0), name


def test_sharded_packed_weight_is_refused(ranks):
    for outcome in ranks("sharded"):
        assert "'0', a Linear4bit, is sharded" in outcome["error"]
