"""A chain that trains block by block is kept, resumed, turned back and handed on like any other."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from peft import PeftModel
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict, set_optimizer_state_dict

from fwlora import AllSites, Blocks, Every, GradientAligned, Never, StepDown
from fwlora.errors import StateError
from fwlora.knot import Knot
from tests.conftest import assert_same, make_chain, step, train
from tests.sealing import resealed
from tests.tables import CASES, loss_of, output

BLOCKS = {"blocks": Blocks(2)}


def through_disk(document):
    """torch.save, then the strict loader that transformers uses."""
    buffer = io.BytesIO()
    torch.save(document, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def rests_of(optimizer) -> list[bool]:
    return [site.rests for site in optimizer.sites.values()]


@pytest.mark.parametrize("phase", [2, 3, 4, 6, 8], ids="steps={}".format)
@pytest.mark.parametrize("weights", ["pristine base", "full checkpoint"])
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("linear", {}),
        ("embedding", {}),
        ("opt", {}),
        ("llama", {"train_modules": ["norm"]}),
        ("llama", {"fast_layers": False, "rank": StepDown([3, 2])}),
        ("llama", {"reset": GradientAligned(), "freeze_A": True, "knots": Every(4)}),
        ("linear", {"inner": torch.optim.NAdam}),
    ],
    ids=lambda value: value if isinstance(value, str) else ",".join(value) or "defaults",
)
def test_resumed_run_is_bitwise_the_uninterrupted_run(kind, options, phase, weights):
    case = CASES[kind]
    model = case.model()
    optimizer = make_chain(case, model, **BLOCKS, **options)
    train(optimizer, model, case.batch(), phase)
    saved = through_disk({"optimizer": optimizer.state_dict(), "model": model.state_dict()})
    losses = train(optimizer, model, case.batch(), 5)

    other_model = case.model()
    other = make_chain(case, other_model, **BLOCKS, **options)
    if weights == "full checkpoint":
        other_model.load_state_dict(saved["model"])
    other.load_state_dict(saved["optimizer"])
    assert train(other, other_model, case.batch(), 5) == losses
    assert_same(model, optimizer, other_model, other)
    assert rests_of(other) == rests_of(optimizer)


def test_links_on_disk_hold_their_block(chained, tmp_path):
    model, optimizer, _ = chained("llama", steps=7, chain_dir=tmp_path, **BLOCKS)
    saved = through_disk(optimizer.state_dict())
    other_model, other, _ = chained("llama", chain_dir=tmp_path, **BLOCKS)
    other.load_state_dict(saved)
    assert_same(model, optimizer, other_model, other)
    assert [list(link.factors) for link in other.chain] == [other.blocks.active(k, list(other.sites)) for k in range(2)]


@pytest.mark.parametrize("kind", ["linear", "embedding"])
def test_state_with_a_live_link_where_a_site_would_rest_is_refused_with_nothing_changed(chained, kind):
    _, optimizer, _ = chained(kind, steps=5, blocks=AllSites())
    model, other, _ = chained(kind, **BLOCKS)
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(StateError, match=r"`blocks=Blocks\(n=2\)` lets 'layers\.0' rest after 1 knot"):
        other.load_state_dict(optimizer.state_dict())
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))
    assert rests_of(other) == [False, True]


def test_own_state_of_a_model_that_was_loaded_first_is_no_refusal(chained):
    """As accelerate does at `prepare`: the model holds the checkpoint's factors, the optimizer not yet its counters."""
    model, optimizer, batch = chained("llama", steps=5, **BLOCKS)
    saved = through_disk({"optimizer": optimizer.state_dict(), "model": model.state_dict()})
    other_model, other, _ = chained("llama", **BLOCKS)
    other_model.load_state_dict(saved["model"])
    other.load_state_dict(other.state_dict())
    other.load_state_dict(saved["optimizer"])
    assert train(other, other_model, batch, 4) == train(optimizer, model, batch, 4)
    assert_same(model, optimizer, other_model, other)


def test_state_of_other_blocks_goes_on_where_no_live_link_is_lost(chained):
    """Right after a knot nothing is live, and a chain may learn at all sites from there, and back again."""
    _, optimizer, _ = chained("llama", steps=3, **BLOCKS)
    model, other, batch = chained("llama", blocks=AllSites())
    other.load_state_dict(through_disk(optimizer.state_dict()))
    assert not any(rests_of(other))
    train(other, model, batch, 3)
    assert len(other.chain[1].factors) == 4
    _, back, _ = chained("llama", **BLOCKS)
    back.load_state_dict(through_disk(other.state_dict()))
    assert rests_of(back) == [False, False, True, True]


@pytest.mark.parametrize("steps", [4, 5])
def test_aligned_phase_of_other_sites_is_refused(chained, steps):
    _, optimizer, _ = chained("llama", steps=steps, reset=GradientAligned(), knots=Every(4), **BLOCKS)
    _, other, _ = chained("llama", reset=GradientAligned(), knots=Every(4))
    with pytest.raises(StateError, match="same `blocks=`"):
        other.load_state_dict(optimizer.state_dict())


def test_aligned_phase_that_names_no_sites_is_of_all(chained):
    """States of older versions."""
    _, optimizer, _ = chained("llama", steps=5, reset=GradientAligned(), knots=Every(4))
    saved = through_disk(optimizer.state_dict())
    del saved["fwlora"]["alignment"]["sites"]
    saved = resealed(saved)
    _, other, _ = chained("llama", reset=GradientAligned(), knots=Every(4))
    other.load_state_dict(saved)
    _, partial, _ = chained("llama", reset=GradientAligned(), knots=Every(4), **BLOCKS)
    with pytest.raises(StateError, match="blocks="):
        partial.load_state_dict(saved)


class InterruptedError_(Exception):
    """What an interrupted test raises."""


@pytest.mark.parametrize("way", ["step", "state_dict", "tie_knot", "delta"])
@pytest.mark.parametrize("knots", [0, 1])
@pytest.mark.parametrize("at", range(4))
def test_knot_cut_off_at_any_site_is_completed(chained, monkeypatch, at, knots, way):
    """Whether the site was active or rested."""
    steps = 3 * knots + 1
    whole, expected, batch = chained("llama", steps=steps, **BLOCKS)
    expected.tie_knot()
    model, optimizer, _ = chained("llama", steps=steps, **BLOCKS)
    before, rests = output(model, batch), rests_of(optimizer)
    tie, calls = Knot.tie, []

    def fails_at_site(self, *args):
        calls.append(1)
        if len(calls) == at + 1:
            raise InterruptedError_
        tie(self, *args)

    monkeypatch.setattr(Knot, "tie", fails_at_site)
    with pytest.raises(InterruptedError_):
        optimizer.tie_knot()
    assert rests_of(optimizer) == rests
    torch.testing.assert_close(output(model, batch), before)
    if way == "step":
        loss_of(model, batch).backward()
        optimizer.step()  # its gradients are those of the cut-off moment and are dropped
    elif way == "tie_knot":
        optimizer.tie_knot()
        expected.tie_knot()
    else:
        {"state_dict": optimizer.state_dict, "delta": lambda: optimizer.delta(next(iter(optimizer.sites)))}[way]()
    assert optimizer.ledger == expected.ledger
    assert rests_of(optimizer) == rests_of(expected)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), whole.parameters(), strict=True))


@pytest.mark.parametrize("knot", [0, 1, 2])
def test_rollback_wakes_the_block_of_that_link(chained, knot):
    original = CASES["llama"].model().state_dict()
    model, optimizer, batch = chained("llama", steps=8, **BLOCKS)
    optimizer.rollback(knot, original=original)
    twin_model, twin, _ = chained("llama", steps=3 * knot, **BLOCKS)
    assert_same(model, optimizer, twin_model, twin)
    assert rests_of(optimizer) == rests_of(twin)
    assert train(optimizer, model, batch, 4) == train(twin, twin_model, batch, 4)


@pytest.mark.parametrize("steps", [0, 2, 3, 4, 9], ids="steps={}".format)
@pytest.mark.parametrize("kind", ["linear", "conv2d", "embedding", "opt", "gpt2"])
def test_export_and_unloaded_model_compute_what_the_chain_does(chained, tmp_path, kind, steps):
    """Before a site was ever active too, and right after a knot; a rank is the sum over the links that held the site."""
    model, optimizer, batch = chained(kind, steps=steps, **BLOCKS)
    expected = output(model, batch)
    report = optimizer.export_adapter(tmp_path)
    held = {name: sum(2 for link in optimizer.chain if name in link.factors) for name in optimizer.sites}
    for name, site in optimizer.sites.items():
        live = 2 if not site.rests and (steps == 0 or not site.is_idle) else 0
        assert report.ranks[name] == max(1, held[name] + live)
        assert (not held[name] and not site.zeroed.any()) == (not optimizer.delta(name).any())
    reloaded = PeftModel.from_pretrained(CASES[kind].model(), str(tmp_path))
    torch.testing.assert_close(output(reloaded, batch), expected, rtol=1e-5, atol=1e-5)
    plain = optimizer.merge_and_unload()
    torch.testing.assert_close(output(plain, batch), expected, rtol=1e-5, atol=1e-5)
    change = plain.get_parameter(f"{name}.weight") - CASES[kind].model().get_parameter(f"{name}.weight")
    torch.testing.assert_close(optimizer.delta(name), change.detach(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("way", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))], ids=["deepcopy", "pickle"])
@pytest.mark.parametrize("steps", [2, 4])
def test_copy_goes_on_as_the_original(chained, way, steps):
    model, optimizer, batch = chained("llama", steps=steps, **BLOCKS)
    twin_model, twin = way((model, optimizer))
    assert rests_of(twin) == rests_of(optimizer)
    assert train(twin, twin_model, batch, 5) == train(optimizer, model, batch, 5)
    assert_same(model, optimizer, twin_model, twin)


def test_skipped_step_of_a_grad_scaler_changes_nothing(chained):
    """Only the block's gradients are unscaled and looked at where the layer skips."""
    model, optimizer, batch = chained("llama", knots=Never(), **BLOCKS)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    twin_model, twin, _ = chained("llama", knots=Never(), **BLOCKS)
    for _ in range(3):
        optimizer.zero_grad()
        loss = output(model, batch).float().square().mean()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        twin.zero_grad()
        output(twin_model, batch).float().square().mean().backward()
        twin.step()
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), twin_model.parameters(), strict=True))


@pytest.mark.parametrize("inner", [torch.optim.AdamW, torch.optim.Adafactor, torch.optim.SGD], ids=lambda inner: inner.__name__)
@pytest.mark.parametrize("options", [{}, {"flatten_optimizer_state_dict": True}, {"full_state_dict": True}], ids=str)
@pytest.mark.parametrize("steps", [2, 3, 5])
def test_distributed_checkpoint_is_loaded_whole(chained, tmp_path, steps, options, inner):
    """It wants a state for every parameter, and gets zeros where a site rests."""
    layout = StateDictOptions(**options)
    rates = {"momentum": 0.9} if inner is torch.optim.SGD else {}
    model, optimizer, batch = chained("llama", steps=steps, inner=inner, **BLOCKS, **rates)
    stripped = copy.deepcopy(get_optimizer_state_dict(model, optimizer, options=layout))
    weights = copy.deepcopy(model.state_dict())
    optimizer.save(tmp_path)
    fresh_model, fresh, _ = chained("llama", inner=inner, **BLOCKS, **rates)
    fresh_model.load_state_dict(weights)
    set_optimizer_state_dict(fresh_model, fresh, stripped, options=layout)
    if steps >= 3:
        with pytest.raises(StateError, match=r"optimizer\.load\(dir\)"):
            step(fresh_model, fresh, batch)
        fresh.load(tmp_path)
        fresh.zero_grad()
    assert train(fresh, fresh_model, batch, 5) == train(optimizer, model, batch, 5)
    assert rests_of(fresh) == rests_of(optimizer)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), fresh_model.parameters(), strict=True))
