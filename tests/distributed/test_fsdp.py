"""Two gloo ranks and a model that FSDP2 has cut into their rows: the same chain, and no weight is ever whole."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import PeftModel

from fwlora.layers.rounding import restore
from tests.distributed.launching import Ranks, assert_same, differences, launch
from tests.distributed.ranks import STEPS, llama, tokens
from tests.distributed.shards import adapted, chain_of, facts, train

SITE = "model.layers.0.self_attn.q_proj"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Where the two ranks write."""
    return tmp_path_factory.mktemp("shards")


@pytest.fixture(scope="module")
def ranks(folder) -> Ranks:
    """Both ranks, once for all tests."""
    return launch("fsdp_ranks.py", folder)


def _assert_close(outcome: dict) -> None:
    assert len(outcome["together"]["ranks"]) >= 1
    assert 0 < max(differences(outcome["together"], outcome["alone"]).values()) <= 1e-6


def test_shards_equal_one_process_on_the_joint_batch(ranks):
    """To 1e-6 after 10 clipped steps and 3 knots, weights, factors, moments and links; and both ranks say the same."""
    first, second = ranks("trained")
    assert first["together"]["progress"] == (STEPS, 3, 1)
    assert first["local"] == second["local"] == (first["sizes"][0] ** 0.5 / 2, first["sizes"][0] ** 0.5)
    _assert_close(first)
    assert_same(first["together"], second["together"])


def test_knot_gathers_factors_and_no_weight(ranks):
    """What a knot makes whole is A and B of each site."""
    for outcome in ranks("trained"):
        assert len(outcome["gathered"]) >= 2 * len(outcome["sizes"])
        assert 0 < max(outcome["gathered"]) < min(outcome["sizes"]) / 2


@pytest.mark.parametrize("name", ["one", "down"])
def test_rank_may_hold_no_row_of_a_factor(ranks, name):
    """A link of one row on two ranks, and links that step down to it, train as in one process."""
    for outcome in ranks("uneven"):
        _assert_close(outcome[name])
    widths = [set(record.values()) for record in ranks("uneven")[0]["down"]["together"]["ranks"]]
    assert widths == [{3}, {2}, {1}]


@pytest.mark.parametrize("way", ["freeze_A", "algorithm_2", "momentum", "trained_module", "by_data"])
def test_every_way_to_train_equals_one_process(ranks, way):
    """Frozen A, shrinking links, another inner optimizer, a module trained in full, knots by data."""
    for outcome in ranks("ways_to_train"):
        _assert_close(outcome[way])


def test_error_feedback_is_sharded_and_saved_whole(ranks):
    """Each rank keeps the int8 of its rows on the host; one process that replays the links has the same weights and errors."""
    for outcome in ranks("half_precision"):
        assert outcome["device"] == "cpu"
        saved, residuals = outcome["saved"], outcome["residuals"]
        rows, columns = saved[f"{SITE}.weight"].shape
        assert outcome["local"] == (rows / 2, columns)
        assert saved.keys() == residuals.keys()
        assert all(torch.equal(saved[name], residuals[name]) for name in saved)
        assert any(bool(value.any()) for value in saved.values())
        weights = [name for name in outcome["facts"]["tensors"] if name.endswith("base_layer.weight")]
        assert all(torch.equal(outcome["facts"]["tensors"][n], outcome["replayed"]["tensors"][n]) for n in weights)


def test_shards_of_a_half_precision_weight_hold_the_whole_update(ranks):
    """Weight and error together are the original and the links' sum, to 1/256 of a last place a knot."""
    outcome = ranks("half_precision")[0]
    key = f"{SITE}.weight"
    kept = restore(outcome["facts"]["tensors"][f"{SITE}.base_layer.weight"], outcome["saved"][key])
    original = llama().to(torch.bfloat16).get_parameter(key).detach().float()
    assert abs(float(torch.linalg.vector_norm(kept - original)) / outcome["norm"] - 1) < 2e-3


def test_mixed_precision_policy_trains_float32_factors(ranks):
    """Computed in bf16, kept in float32, the same on both ranks."""
    first, second = ranks("mixed_precision")
    assert first["dtype"] == "torch.float32"
    assert first["norm"] > 0.1
    assert_same(first["facts"], second["facts"])


@pytest.mark.parametrize("way", ["dcp", "alone"])
def test_resumed_shards_are_bitwise_the_uninterrupted_ones(ranks, way):
    """From torch's distributed checkpoint with `save()` beside it, and from `save()` alone on the original base."""
    for outcome in ranks("checkpointed"):
        resumed = outcome[way]
        assert not _differing(resumed["loaded"], outcome["saved"])
        assert resumed["rest"] == outcome["rest"]
        assert not _differing(resumed["end"], outcome["end"])
        assert outcome["awaits"].startswith("StateError: This state counts knots and a distributed checkpoint has dropped")


def _differing(one: dict, other: dict) -> list[str]:
    return [name for name, difference in differences(one, other).items() if difference != 0]


@pytest.mark.parametrize("way", ["pristine", "dcp"])
def test_state_of_two_ranks_resumes_on_three(ranks, folder, elsewhere, way):
    """Bit for bit in the state, to 1e-6 in losses and weights; rows are cut into 11, 11 and 10."""
    saved, end = (ranks("checkpointed")[0][name] for name in ("saved", "end"))
    for outcome in elsewhere("elsewhere"):
        assert not _differing(outcome[way]["loaded"], saved)
        assert max(differences(outcome[way]["end"], end).values()) <= 1e-6
        # The same rows on every rank: their mean is that of the two ranks' losses.
        losses = torch.tensor([rank["rest"] for rank in ranks("checkpointed")]).mean(0)
        torch.testing.assert_close(torch.tensor(outcome[way]["rest"]), losses, rtol=0, atol=1e-6)


@pytest.fixture(scope="module")
def elsewhere(ranks, folder, tmp_path_factory) -> Ranks:
    """Three ranks that load what two have saved."""
    return launch("fsdp_ranks.py", tmp_path_factory.mktemp("three"), str(folder), world_size=3)


def test_state_of_two_ranks_resumes_in_one_process(ranks, folder):
    """The file that the ranks have written together is that of one process."""
    chain = chain_of(adapted())
    chain.load(folder / "whole")
    saved, end = (ranks("checkpointed")[0][name] for name in ("saved", "end"))
    assert not _differing(facts(chain), saved)
    train(chain._attachment.model, chain, None, range(4, STEPS))
    assert max(differences(facts(chain), end).values()) <= 1e-6


def test_state_of_one_process_resumes_on_shards(ranks):
    """A plain `state_dict()` holds all rows, and every rank takes its own."""
    for outcome in ranks("from_one_process"):
        assert not _differing(outcome["loaded"], outcome["saved"])


def test_state_dict_of_a_rank_holds_its_shards(ranks):
    """It asks no other rank, resumes bit for bit on its own, and is refused anywhere else."""
    for rank, outcome in enumerate(ranks("states_of_ranks")):
        assert not _differing(outcome["resumed"], outcome["end"])
        assert f"shards of rank {1 - rank} of 2, and this is rank {rank} of 2" in outcome["of_the_other"]
        assert f"shards of rank {rank} of 2, and this is one process" in outcome["of_a_shard"]


def test_rank_0_exports_the_adapter_of_all_rows(ranks, folder):
    """The adapter on the original base computes what the shards compute; rank 1 writes nothing and knows as much."""
    first, second = ranks("ways_out")
    assert first["report"] == second["report"].replace("adapter-of-rank-1", "adapter-of-rank-0")
    assert not (folder / "adapter-of-rank-1").exists()
    model = PeftModel.from_pretrained(llama(), str(folder / "adapter-of-rank-0")).eval()
    with torch.no_grad():
        logits = model(input_ids=tokens(99, 0)).logits
    torch.testing.assert_close(logits, first["logits"], rtol=0, atol=1e-6)


def test_knot_after_a_forward_pass_alone_merges_into_the_shards(ranks):
    """What such a pass has left whole is given up first, so that the function stays."""
    for outcome in ranks("ways_out"):
        torch.testing.assert_close(outcome["after_knot"], outcome["logits"], rtol=0, atol=1e-6)


def test_rollback_and_the_plain_model_stay_sharded_and_right(ranks):
    """Back to the first knot from the originals; then on, and every link folded in."""
    trained = ranks("trained")[0]["together"]["tensors"]
    for outcome in ranks("ways_out"):
        assert outcome["rolled"]["progress"] == (3, 1, 0)
        assert all(torch.equal(outcome["rolled"]["tensors"][n], trained[n]) for n in trained if n.startswith("link0"))
        torch.testing.assert_close(outcome["after"], outcome["before"], rtol=0, atol=1e-6)
        assert outcome["plain"] == []


def test_rank_that_draws_otherwise_is_an_error_on_all(ranks):
    """Rows of different draws would make a factor that no seed gives."""
    for outcome in ranks("other_seed"):
        assert outcome["error"].startswith("RankDisagreementError")


def test_nonfinite_rows_of_one_rank_refuse_the_knot_on_all(ranks):
    """Nothing changes on either."""
    healthy, poisoned = ranks("nonfinite")
    assert healthy["error"].startswith("NonFiniteFactorsError: A factor on another rank")
    assert poisoned["error"].startswith("NonFiniteFactorsError: A factor at 'model.layers.1.self_attn.q_proj'")
    for outcome in (healthy, poisoned):
        before, after = outcome["before"]["tensors"], outcome["after"]["tensors"]
        assert all(torch.equal(after[name].nan_to_num(), before[name].nan_to_num()) for name in before)


def test_knot_cut_off_on_one_rank_raises_on_all_and_is_completed(ranks):
    """No rank records it before every rank has tied every site; meanwhile a state would be half a knot, and is refused."""
    waiting, failed = ranks("cut_off")
    assert failed["error"] == "injected"
    assert waiting["error"].startswith("The knot was cut off on another rank")
    for outcome in (waiting, failed):
        assert outcome["recorded"] == 0
        assert outcome["state"].startswith("KnotError: A knot was cut off")
        _assert_close(outcome)


def test_wrong_orders_raise_at_once_or_at_the_first_step(ranks):
    """The optimizer's parameters are the model's no more, or the factors would belong to no shard."""
    for outcome in ranks("wrong_orders"):
        assert outcome["first"].startswith("DisconnectedParametersError")
        assert outcome["without"].startswith("UnsupportedModelError")
        assert "then `fully_shard`, then make the optimizer" in outcome["without"]
        assert outcome["untouched"]


def test_shards_put_in_the_groups_are_adopted(ranks):
    """As accelerate's `prepare` does with an optimizer that was made before."""
    for outcome in ranks("swapped"):
        _assert_close(outcome)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("gap", "`measure_gap(...)` does not serve a model that FSDP2 has sharded"),
        ("compact", "`compact()` does not serve a model that FSDP2 has sharded"),
        ("aligned", "FSDP2 has sharded"),
        ("blocks", "data-parallel training waits for every gradient"),
        ("hybrid", "neither tensor parallelism nor hybrid sharding"),
        ("partly", "holds whole parameters while the optimizer has shards"),
    ],
)
def test_what_shards_do_not_allow_says_so(ranks, what, message):
    """Each refusal names the way out."""
    for outcome in ranks("refused"):
        assert message in outcome[what]
