"""torch.distributed.checkpoint: it probes an empty state by a step, and keeps nothing but groups and moments."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

from fwlora import Evenly, Every
from fwlora.errors import StateError

INNERS = [torch.optim.AdamW, torch.optim.SGD, torch.optim.NAdam, torch.optim.RMSprop]
LAYOUTS = {
    "plain": StateDictOptions(),
    "flattened": StateDictOptions(flatten_optimizer_state_dict=True),
    "full": StateDictOptions(full_state_dict=True, cpu_offload=True),
}


@pytest.fixture(params=LAYOUTS)
def layout(request):
    return LAYOUTS[request.param]


def _stripped(model, optimizer, layout):
    """What a distributed checkpoint keeps; a copy, for it aliases the live moments."""
    document = copy.deepcopy(get_optimizer_state_dict(model, optimizer, options=layout))
    assert "fwlora" not in document
    return document


def _counts(optimizer):
    progress = optimizer.progress
    return progress.step, progress.knot, progress.link_step


@pytest.mark.parametrize("inner", INNERS)
@pytest.mark.parametrize("steps", [0, 3], ids=["before any step", "right after a knot"])
def test_probe_is_not_counted(bench, steps, inner):
    """get_optimizer_state_dict may step with lr 0 and zero gradients: counters, weights and moments stay."""
    model = bench.llama()
    optimizer = bench.chain(model, inner=inner)
    bench.train(model, optimizer, range(steps))
    weights, counts = bench.facts(optimizer), _counts(optimizer)
    get_optimizer_state_dict(model, optimizer)
    assert _counts(optimizer) == counts == (steps, steps // 3, 0)
    after = bench.facts(optimizer)
    bench.assert_same({name: after[name] for name in weights}, weights)
    assert not any(value.any() for name, value in after.items() if name.startswith("moment") and name not in weights)

    bench.train(model, optimizer, range(steps, 7))
    twin_model = bench.llama()
    twin = bench.chain(twin_model, inner=inner)
    bench.train(twin_model, twin, range(7))
    bench.assert_same(bench.facts(optimizer), bench.facts(twin))


def test_probe_ties_no_knot(bench):
    """Where every step ties a knot, the probe ties none."""
    model = bench.llama()
    optimizer = bench.chain(model, knots=Every(1))
    get_optimizer_state_dict(model, optimizer)
    assert len(optimizer.chain) == 0
    bench.train(model, optimizer, range(1))
    get_optimizer_state_dict(model, optimizer)
    assert _counts(optimizer) == (1, 1, 0)


def test_probe_asks_no_schedule(bench):
    """Evenly(links) may still be left open when a checkpoint is first asked for, as at the set-up of a loader."""
    model = bench.llama()
    optimizer = bench.chain(model, knots=Evenly(links=2))
    get_optimizer_state_dict(model, optimizer)
    optimizer.total_steps = 4
    bench.train(model, optimizer, range(4))
    assert _counts(optimizer) == (4, 1, 2)


def test_first_step_at_lr_zero_is_counted(bench):
    """A warm-up from lr 0 is a training step, no probe: gradients are not zero."""
    model = bench.llama()
    optimizer = bench.chain(model, lr=0.0)
    bench.train(model, optimizer, range(1))
    assert _counts(optimizer) == (1, 0, 1)


def test_stripped_state_without_knots_is_accepted(bench, layout):
    """Steps and moments come back, and training goes on bit for bit."""
    model = bench.llama()
    optimizer = bench.chain(model)
    bench.train(model, optimizer, range(2))
    stripped, weights = _stripped(model, optimizer, layout), copy.deepcopy(model.state_dict())

    fresh = bench.llama()
    resumed = bench.chain(fresh)
    fresh.load_state_dict(weights)
    set_optimizer_state_dict(fresh, resumed, stripped, options=layout)
    assert _counts(resumed) == (2, 0, 2)
    bench.train(model, optimizer, range(2, 8))
    bench.train(fresh, resumed, range(2, 8))
    bench.assert_same(bench.facts(resumed), bench.facts(optimizer))
    assert bench.records(resumed) == bench.records(optimizer)


@pytest.mark.parametrize("base", ["merged base", "pristine base"])
@pytest.mark.parametrize("steps", [3, 4])
def test_stripped_state_with_knots_waits_for_the_links(bench, tmp_path, layout, steps, base):
    """step() raises until load(dir) has run; then it is the uninterrupted run."""
    model = bench.llama()
    optimizer = bench.chain(model)
    bench.train(model, optimizer, range(steps))
    stripped, weights = _stripped(model, optimizer, layout), copy.deepcopy(model.state_dict())
    optimizer.save(tmp_path)
    bench.train(model, optimizer, range(steps, 8))

    fresh = bench.llama()
    resumed = bench.chain(fresh)
    if base == "merged base":
        fresh.load_state_dict(weights)
    set_optimizer_state_dict(fresh, resumed, stripped, options=layout)
    ids = bench.tokens(steps)
    fresh(input_ids=ids, labels=ids).loss.backward()
    with pytest.raises(StateError, match=r"optimizer\.load\(dir\)"):
        resumed.step()
    resumed.zero_grad()
    resumed.load(tmp_path)
    assert _counts(resumed) == (steps, 1, steps - 3)
    bench.train(fresh, resumed, range(steps, 8))
    bench.assert_same(bench.facts(resumed), bench.facts(optimizer))
    assert bench.records(resumed) == bench.records(optimizer)


def test_state_of_a_waiting_chain_never_passes_for_a_whole_one(bench, layout):
    """A chain without its links writes no state, or one that waits as it does."""
    model = bench.llama()
    optimizer = bench.chain(model)
    bench.train(model, optimizer, range(4))
    stripped = _stripped(model, optimizer, layout)

    def begin():
        model_ = bench.llama()
        resumed = bench.chain(model_)
        model_.load_state_dict(model.state_dict())
        return model_, resumed

    waiting_model, waiting = begin()
    set_optimizer_state_dict(waiting_model, waiting, stripped, options=layout)
    try:
        document = waiting.state_dict()
    except StateError:
        return
    other_model, other = begin()
    other.load_state_dict(document)
    with pytest.raises(StateError, match=r"optimizer\.load\(dir\)"):
        bench.train(other_model, other, range(4, 5))


@pytest.mark.parametrize("steps", [3, 4, 5])
def test_stripped_state_set_on_a_chain_that_has_links_waits_too(bench, tmp_path, layout, steps):
    """set_optimizer_state_dict of the own state, then load(dir): the uninterrupted run."""
    model = bench.llama()
    optimizer = bench.chain(model)
    bench.train(model, optimizer, range(steps))
    before = bench.facts(optimizer)
    optimizer.save(tmp_path)
    set_optimizer_state_dict(model, optimizer, _stripped(model, optimizer, layout), options=layout)
    ids = bench.tokens(steps)
    model(input_ids=ids, labels=ids).loss.backward()
    with pytest.raises(StateError, match=r"optimizer\.load\(dir\)"):
        optimizer.step()
    optimizer.load(tmp_path)
    optimizer.zero_grad()
    bench.assert_same(bench.facts(optimizer), before)


def test_stripped_state_is_told_by_its_counters(bench, layout):
    """Counts of steps and knots ride in every group, whatever the layout."""
    model = bench.llama()
    optimizer = bench.chain(model)
    bench.train(model, optimizer, range(4))
    document = _stripped(model, optimizer, layout)
    if "param_groups" in document:
        assert [(group["fw_step"], group["fw_knot"]) for group in document["param_groups"]] == [(4, 1)] * 2
    else:
        names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        assert {document[f"param_groups.{name}.fw_step"] for name in names} == {4}
        assert {document[f"param_groups.{name}.fw_knot"] for name in names} == {1}
