"""The phase in which a link looks for its direction: every way into it, through it and out of it."""

from __future__ import annotations

import copy
import gc
import pickle

import pytest
import torch
from peft import LoraConfig
from torch import nn

from fwlora import At, ChainLoRAOptimizer, Every, GradientAligned, Kaiming, Never, StepDown
from fwlora.errors import RefusedKnotWarning, StateError
from tests.conftest import assert_same, make_chain, step, train
from tests.tables import CASES, loss_of, output

ALIGNED = GradientAligned()


def with_dropout(**options) -> tuple[nn.Module, ChainLoRAOptimizer, list[nn.Dropout]]:
    model = CASES["linear"].model()
    config = LoraConfig(r=2, target_modules=["0", "2"], lora_dropout=0.3)
    optimizer = ChainLoRAOptimizer(model, lora_config=config, reset=ALIGNED, **{"knots": Never(), **options})
    return model, optimizer, [m for m in model.modules() if isinstance(m, nn.Dropout)]


def probabilities(dropouts: list[nn.Dropout]) -> set[float]:
    return {module.p for module in dropouts}


def test_loras_dropout_is_off_while_a_direction_is_looked_for():
    model, optimizer, dropouts = with_dropout()
    batch = CASES["linear"].batch()
    assert len(dropouts) == 2
    seen = [probabilities(dropouts)]
    for _ in range(3):
        step(model, optimizer, batch)
        seen.append(probabilities(dropouts))
    assert seen == [{0.0}, {0.0}, {0.3}, {0.3}]
    optimizer.tie_knot()
    assert probabilities(dropouts) == {0.0}


@pytest.mark.parametrize("probes", [0, 1])
def test_loras_dropout_comes_back_on_every_way_out(probes):
    batch = CASES["linear"].batch()

    def begun():
        found = with_dropout()
        for _ in range(probes):
            step(found[0], found[1], batch)
        return found

    finished = with_dropout()
    for _ in range(3):
        step(finished[0], finished[1], batch)

    _, optimizer, dropouts = begun()
    optimizer.load_state_dict(finished[1].state_dict())
    assert probabilities(dropouts) == {0.3}

    _, optimizer, dropouts = begun()
    optimizer.merge_and_unload()
    assert probabilities(dropouts) == {0.3}

    _, optimizer, dropouts = begun()
    del optimizer
    gc.collect()
    assert probabilities(dropouts) == {0.3}


def test_copy_in_the_middle_has_its_own_phase():
    model, optimizer, dropouts = with_dropout()
    step(model, optimizer, CASES["linear"].batch())
    twin_model, twin = copy.deepcopy((model, optimizer))
    twin_dropouts = [m for m in twin_model.modules() if isinstance(m, nn.Dropout)]
    step(twin_model, twin, CASES["linear"].batch())
    assert probabilities(twin_dropouts) == {0.3}
    assert probabilities(dropouts) == {0.0}


@pytest.mark.parametrize("steps", [0, 1, 2])
def test_copy_of_a_frozen_A_goes_on_as_the_run_does(chained, steps):
    model, optimizer, batch = chained("linear", steps=steps, reset=ALIGNED, knots=Never(), freeze_A=True)
    twin_model, twin = copy.deepcopy((model, optimizer))
    other_model, other = pickle.loads(pickle.dumps((model, optimizer)))
    for a, b in ((model, optimizer), (twin_model, twin), (other_model, other)):
        train(b, a, batch, 4 - steps)
    assert_same(model, optimizer, twin_model, twin)
    assert_same(model, optimizer, other_model, other)
    assert not any(site.A.requires_grad for site in twin.sites.values())


@pytest.mark.parametrize("saved_after", range(8))
@pytest.mark.parametrize("options", [{}, {"freeze_A": True}, {"rank": StepDown([3, 2])}], ids=str)
def test_run_saved_anywhere_resumes_bit_for_bit(saved_after, options):
    case = CASES["llama"]
    options = {"reset": GradientAligned(steps=3), "knots": Every(4), **options}
    model = case.model()
    optimizer = make_chain(case, model, **options)
    train(optimizer, model, case.batch(), saved_after)
    saved = copy.deepcopy(optimizer.state_dict())
    train(optimizer, model, case.batch(), 9 - saved_after)

    other_model = case.model()
    other = make_chain(case, other_model, **options)
    other.load_state_dict(saved)
    train(other, other_model, case.batch(), 9 - saved_after)
    assert_same(model, optimizer, other_model, other)
    requires = [p.requires_grad for p in model.parameters()]
    assert requires == [p.requires_grad for p in other_model.parameters()]


def test_phase_of_another_rule_is_refused(chained):
    _, optimizer, _ = chained("linear", steps=1, reset=GradientAligned(steps=4), knots=Never())
    saved = optimizer.state_dict()
    for reset in (Kaiming(), GradientAligned(steps=2)):
        _, other, _ = chained("linear", reset=reset, knots=Never())
        with pytest.raises(StateError, match=r"4 steps that align"):
            other.load_state_dict(saved)


@pytest.mark.parametrize(("value", "reason"), [(0.0, "zero gradient"), (float("nan"), "gradient not finite")])
@pytest.mark.parametrize("when", [0, 1])
def test_gradient_that_says_nothing_leaves_the_draw_and_the_record_says_so(chained, value, reason, when):
    model, optimizer, batch = chained("linear", reset=ALIGNED, knots=Never())
    _, plain, _ = chained("linear", reset=Kaiming(), knots=Never())
    for k in range(2):
        optimizer.zero_grad()
        loss_of(model, batch).backward()
        if k == when:
            for parameter in optimizer.sites["layers.0"].parameters():
                parameter.grad.fill_(value)
        optimizer.step()
    assert optimizer.fallbacks == {"layers.0": reason}
    assert torch.equal(optimizer.sites["layers.0"].A, plain.sites["layers.0"].A)
    assert not torch.equal(optimizer.sites["layers.2"].A, plain.sites["layers.2"].A)
    step(model, optimizer, batch)
    record = optimizer.tie_knot()
    assert record.fallbacks == {"layers.0": reason}
    assert optimizer.tie_knot().fallbacks == {}


def test_fallback_is_remembered_over_a_resume(chained):
    model, optimizer, batch = chained("linear", reset=ALIGNED, knots=Never())
    for _ in range(2):
        loss_of(model, batch).backward()
        optimizer.sites["layers.0"].B.grad.zero_()
        optimizer.sites["layers.0"].A.grad.zero_()
        optimizer.step()
    _, other, _ = chained("linear", reset=ALIGNED, knots=Never())
    other.load_state_dict(optimizer.state_dict())
    assert other.tie_knot().fallbacks == {"layers.0": "zero gradient"}


def test_knot_and_export_in_the_middle_keep_the_function(chained):
    model, optimizer, batch = chained("llama", steps=1, reset=ALIGNED, knots=Never())
    base = output(model, batch)
    assert not any(optimizer.delta(name).any() for name in optimizer.sites)
    optimizer.tie_knot()
    torch.testing.assert_close(output(model, batch), base, rtol=0, atol=0)
    step(model, optimizer, batch)
    assert all(site.is_idle for site in optimizer.sites.values())


def test_rollback_begins_the_phase_anew(chained):
    original = {k: v.clone() for k, v in CASES["linear"].model().state_dict().items()}
    model, optimizer, batch = chained("linear", steps=5, reset=ALIGNED, knots=Every(4))
    optimizer.rollback(0, original=original)
    before = output(model, batch)
    step(model, optimizer, batch)
    step(model, optimizer, batch)
    torch.testing.assert_close(output(model, batch), before, rtol=0, atol=0)


def test_knots_as_close_as_the_probes_wait_until_there_is_a_link(chained):
    model, optimizer, batch = chained("linear", reset=ALIGNED, knots=Every(2))
    with pytest.warns(RefusedKnotWarning, match=r"`reset=GradientAligned\(steps=2\)`"):
        train(optimizer, model, batch, 8)
    assert optimizer.ledger.column("step") == [4, 8]
    assert all(norm > 0 for record in optimizer.ledger for norm in record.link_norms.values())


def test_probe_that_fails_is_made_again(chained, monkeypatch):
    model, optimizer, batch = chained("linear", reset=ALIGNED, knots=Never())
    twin_model, twin, _ = chained("linear", reset=ALIGNED, knots=Never())
    step(model, optimizer, batch)
    step(twin_model, twin, batch)
    with monkeypatch.context() as patch:
        patch.setattr("fwlora.linalg.top_directions", lambda Z: (_ for _ in ()).throw(MemoryError("no room")))
        with pytest.raises(MemoryError):
            step(model, optimizer, batch)
    for _ in range(2):
        step(model, optimizer, batch)
        step(twin_model, twin, batch)
    assert all(torch.equal(site.A, twin.sites[name].A) for name, site in optimizer.sites.items())
    assert all(site.B.any() for site in optimizer.sites.values())


def test_step_without_any_gradient_is_no_probe(chained):
    model, optimizer, batch = chained("llama", steps=1, reset=ALIGNED, knots=Never(), train_modules=["norm"])
    optimizer.zero_grad()
    optimizer.step()
    step(model, optimizer, batch)
    assert not optimizer.fallbacks
    step(model, optimizer, batch)
    assert all(site.B.any() for site in optimizer.sites.values())


def test_knot_that_is_due_before_the_link_has_trained_is_refused_and_recorded(chained):
    model, optimizer, batch = chained("linear", steps=4, reset=ALIGNED, knots=At([4, 5, 6, 8]))
    with pytest.warns(RefusedKnotWarning, match="nothing to retire"):
        train(optimizer, model, batch, 2)
    assert [record.refused is None for record in optimizer.ledger] == [True, False, False]
    train(optimizer, model, batch, 2)
    assert optimizer.ledger.column("step") == [4, 8]


def test_compact_within_the_phase_leaves_a_frozen_A_frozen(chained):
    model, optimizer, batch = chained("linear", steps=4, reset=ALIGNED, knots=At([4]), freeze_A=True, rank=StepDown([2, 1]))
    step(model, optimizer, batch)
    optimizer.compact()
    assert not any(site.A.requires_grad for site in optimizer.sites.values())
