"""Two gloo ranks under DistributedDataParallel: they tie together or not at all, and stay equal."""

from __future__ import annotations

import pytest
import torch

from tests.distributed.launching import Ranks, launch
from tests.distributed.ranks import STEPS

SITES = [f"model.layers.{i}.self_attn.{module}" for i in (0, 1) for module in ("q_proj", "v_proj")]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> Ranks:
    """Both ranks, once for all tests."""
    return launch("ranks.py", tmp_path_factory.mktemp("ranks"))


def _assert_equal(one: dict, other: dict) -> None:
    assert one.keys() == other.keys()
    differing = [name for name in one if not torch.equal(one[name], other[name])]
    assert not differing, differing


def _largest_difference(one: dict, other: dict) -> float:
    assert one.keys() == other.keys()
    return max(float((one[name].double() - other[name].double()).abs().max()) for name in one)


@pytest.mark.parametrize("scenario", ["injected", "adopted_before_wrapping", "bf16_base"])
def test_ranks_tie_together_and_stay_equal(ranks, scenario):
    """After 3 knots on different data and with different global seeds, every tensor is the same on both ranks."""
    first, second = ranks(scenario)
    assert first["knots"] == second["knots"] == [3, 6, 9]
    assert first["progress"] == second["progress"] == (10, 3, 1)
    assert sum(name.startswith("link") for name in first["tensors"]) == 3 * 2 * len(SITES)
    _assert_equal(first["tensors"], second["tensors"])


def test_ranks_really_train_and_merge(ranks):
    """The comparison across ranks is of weights that have moved."""
    moved = ranks("injected")[0]["tensors"]
    still = ranks("wrapped_without_adapters")
    assert all(outcome["same"] for outcome in still)
    for name in SITES:
        assert any(moved[f"link{i}.{name}.B"].abs().max() > 1e-3 for i in range(3))


def test_two_ranks_equal_one_process_on_the_joint_batch(ranks):
    """Mean of the ranks' gradients = gradient of the joint mean: to 1e-6 after 10 steps and 3 knots."""
    for outcome in ranks("joint"):
        together, alone = outcome["together"], outcome["alone"]
        assert together["knots"] == alone["knots"] == [3, 6, 9]
        assert 0 < _largest_difference(together["tensors"], alone["tensors"]) <= 1e-6


def test_nonfinite_factor_on_one_rank_refuses_the_knot_on_both(ranks):
    """tie_knot() raises on both ranks, names the site where it is known, and changes nothing."""
    healthy, poisoned = ranks("nonfinite_by_hand")
    assert healthy["error"].startswith("NonFiniteFactorsError: A factor on another rank")
    assert poisoned["error"].startswith("NonFiniteFactorsError: A factor at 'model.layers.1.self_attn.q_proj'")
    for outcome in (healthy, poisoned):
        before, after = outcome["before"], outcome["after"]
        assert after["progress"] == before["progress"] == (2, 0, 2)
        assert after["knots"] == []
        assert all(torch.equal(after["tensors"][n].nan_to_num(), t.nan_to_num()) for n, t in before["tensors"].items())


def test_scheduled_knot_refused_on_one_rank_waits_on_both(ranks):
    """Both warn and record the refusal, and both tie at the next due step."""
    outcomes = ranks("nonfinite_scheduled")
    for outcome in outcomes:
        assert len(outcome["warned"]) == 1
        assert outcome["refused"]["progress"] == (3, 0, 3)
        assert [bool(reason) for reason in outcome["refused"]["refused"]] == [True]
        assert outcome["later"]["knots"] == [6]
        assert [bool(reason) for reason in outcome["later"]["refused"]] == [True, False]
        assert outcome["later"]["progress"] == (7, 1, 1)
    assert "another rank" in outcomes[0]["warned"][0]
    assert "model.layers.0.self_attn.v_proj" in outcomes[1]["warned"][0]
    _assert_equal(outcomes[0]["later"]["tensors"], outcomes[1]["later"]["tensors"])


def test_knot_cut_off_on_one_rank_raises_on_all_and_is_completed(ranks):
    """No rank records it alone; completed, it is bit for bit the knot of a run that nothing cut off."""
    outcomes = ranks("cut_off")
    assert outcomes[0]["by_call"]["error"].startswith("KnotError: The knot was cut off on another rank")
    assert outcomes[1]["by_call"]["error"] == "OutOfMemoryError: injected"
    whole = ranks("injected")[0]["tensors"]
    for outcome in outcomes:
        assert [way["recorded"] for way in outcome.values()] == [0, 0]
        assert outcome["by_call"]["facts"]["knots"] == [3, 6, 9]
        _assert_equal(outcome["by_call"]["facts"]["tensors"], whole)
        # The step that completes it counts as one.
        assert outcome["by_step"]["facts"]["progress"] == (STEPS + 1, 3, 2)
    _assert_equal(outcomes[0]["by_step"]["facts"]["tensors"], outcomes[1]["by_step"]["facts"]["tensors"])


def test_rank_that_resets_differently_is_an_error_on_both(ranks):
    """seed=rank: the knot's fresh factors differ, and no rank trains on from there."""
    for outcome in ranks("other_seed"):
        assert outcome["first"].startswith("RankDisagreementError")
        assert "seed=" in outcome["first"]
        assert outcome["again"].startswith("RankDisagreementError")
        assert outcome["progress"] == (3, 1, 0)


def test_wrapped_model_without_adapters_is_refused(ranks):
    """Factors injected after wrapping would never be reduced; the model is left plain."""
    for outcome in ranks("wrapped_without_adapters"):
        assert outcome["error"].startswith("UnsupportedModelError")
        assert "Make the optimizer first, then wrap the model" in outcome["error"]
        assert outcome["same"]


@pytest.mark.parametrize("scenario", ["injected", "adopted_before_wrapping"])
def test_site_names_are_clean_of_wrappers(ranks, scenario):
    """No `module.` of DDP and no `base_model.model.` of PEFT: draws and files depend on the names."""
    assert [outcome["sites"] for outcome in ranks(scenario)] == [SITES, SITES]


def test_state_is_made_by_one_rank_and_loaded_by_all(ranks):
    """state_dict() never communicates, save() writes once, and the resumed ranks are the uninterrupted ones."""
    for outcome in ranks("state_of_one_rank"):
        _assert_equal(outcome["resumed"]["tensors"], outcome["whole"]["tensors"])
        assert outcome["resumed"]["progress"] == outcome["whole"]["progress"] == (10, 3, 1)
        assert outcome["files"] == ["chain.pt"]


def test_accumulated_gradients_count_one_step(ranks):
    """Under no_sync two micro-batches make one step on every rank."""
    first, second = ranks("accumulated")
    assert first["progress"] == second["progress"] == (4, 1, 2)
    _assert_equal(first["tensors"], second["tensors"])


def test_links_are_aligned_alike_on_two_ranks_and_as_in_one_process(ranks):
    outcomes = ranks("aligned")
    for outcome in outcomes:
        together, alone = outcome["together"], outcome["alone"]
        assert together["knots"] == alone["knots"] == [4, 8]
        assert 0 < _largest_difference(together["tensors"], alone["tensors"]) <= 1e-5
    _assert_equal(outcomes[0]["together"]["tensors"], outcomes[1]["together"]["tensors"])


def test_alignment_of_a_frozen_A_is_refused_in_data_parallel_training(ranks):
    for outcome in ranks("aligned_frozen"):
        assert outcome["error"].startswith("ArgumentError: `reset=GradientAligned(steps=2)`")
        assert "`freeze_A=False`" in outcome["error"]


def test_gap_of_two_ranks_is_that_of_all_their_batches(ranks):
    first, second = ranks("measured")
    assert first["report"] == second["report"]
    assert first["report"]["batches"] == [4, 4]
    # On one process each batch stands twice, once a rank, which means do not feel.
    for name in ("gap", "truncated_norm", "eps", "alignment"):
        assert first["report"]["total"][name][1] == pytest.approx(first["whole"]["total"][name][1], rel=1e-4)


def test_measuring_leaves_wrapped_training_as_it_was(ranks):
    for outcome in ranks("measured"):
        assert outcome["same"]
        _assert_equal(outcome["later"]["tensors"], outcome["unmeasured"]["tensors"])


def test_ranks_make_the_same_step_of_algorithm_2(ranks):
    first, second = ranks("algorithm_2")
    assert first["knots"] == second["knots"] == [3, 6, 9]
    _assert_equal(first["tensors"], second["tensors"])


@pytest.mark.parametrize("schedule", ["plateau", "gap"])
def test_schedules_that_decide_by_data_tie_on_both_ranks_together(ranks, schedule):
    first, second = (outcome[schedule] for outcome in ranks("triggered"))
    assert first["knots"] == second["knots"]
    assert first["knots"], "no knot: nothing was compared"
    _assert_equal(first["tensors"], second["tensors"])


def test_trainer_on_two_ranks_resumes_exactly(ranks):
    """Trainer wraps the PeftModel itself: equal ranks, an exact resume on pristine bases, an adapter that reproduces it."""
    outcomes = ranks("trainer")
    for outcome in outcomes:
        assert outcome["whole"]["wrapped"] == "DistributedDataParallel"
        assert outcome["whole"]["progress"] == outcome["resumed"]["progress"] == (8, 2, 2)
        _assert_equal(outcome["resumed"]["tensors"], outcome["whole"]["tensors"])
        assert outcome["difference"] <= 1e-6
    _assert_equal(outcomes[0]["whole"]["tensors"], outcomes[1]["whole"]["tensors"])
