"""What a knot promises."""

from __future__ import annotations

import signal

import pytest
import torch
from torch import nn

from fwlora import At, Every, Kaiming, Never, StepDown
from fwlora.errors import KnotError, NonFiniteFactorsError, RefusedKnotWarning
from fwlora.layers.rounding import RowMerge
from fwlora.layers.sites import Site
from tests.conftest import make_chain, train
from tests.tables import CASES, INNERS, RESETS, TOLERANCE, loss_of, output


def relative_change(now: torch.Tensor, before: torch.Tensor) -> float:
    return ((now.double() - before.double()).norm() / before.double().norm()).item()


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("kind", CASES)
def test_knot_leaves_forward_unchanged(chained, kind, dtype):
    """f(W + s B A) before = f(W') after, for every layer kind and dtype."""
    model, optimizer, batch = chained(kind, steps=2, dtype=dtype, knots=Never(), lr=0.05)
    with torch.no_grad():
        before = output(model, batch)
        started = output(CASES[kind].model(dtype), batch)
        optimizer.tie_knot()
        after = output(model, batch)
    assert relative_change(before, started) > 3 * TOLERANCE[dtype], "the link must have learned something to compare"
    assert relative_change(after, before) <= TOLERANCE[dtype]


@pytest.mark.parametrize("kind", CASES)
def test_chain_sums_to_weight_change(chained, kind):
    """sum_i s_i B_i A_i = W' - W, in the weight's own orientation."""
    original = {name: p.detach().clone() for name, p in CASES[kind].model().named_parameters()}
    _, optimizer, _ = chained(kind, steps=7)
    assert len(optimizer.chain) == 2
    for name, site in optimizer.sites.items():
        live = site.live()
        A, B = live.matrices()
        merged = optimizer.delta(name) - site.orient(live.scale * B @ A)
        change = site.weight.detach() - original[f"{name}.weight"]
        assert merged.abs().max() > 1e-4
        torch.testing.assert_close(merged, change, rtol=0, atol=1e-6)


def test_manual_knot_equals_scheduled_knot(chained):
    model, by_hand, batch = chained(steps=3, knots=Never())
    by_hand.tie_knot()
    train(by_hand, model, batch, 2)
    other, scheduled, _ = chained(steps=5, knots=At([3]))
    assert by_hand.ledger == scheduled.ledger
    for mine, theirs in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize(("inner", "options"), INNERS, ids=lambda value: getattr(value, "__name__", None))
def test_knot_forgets_the_factors_as_if_never_stepped(chained, inner, options):
    """The first update after a knot is the first update of a fresh optimizer on the same model, bit for bit."""
    _, optimizer, batch = model_optimizer_batch = chained(steps=4, knots=Never(), inner=inner, **options)
    model = model_optimizer_batch[0]
    optimizer.tie_knot()
    fresh = inner([dict(group, params=list(group["params"])) for group in optimizer.param_groups])
    loss_of(model, batch).backward()
    before = [p.detach().clone() for p in optimizer.parameters()]
    fresh.step()
    expected = [p.detach().clone() for p in optimizer.parameters()]
    with torch.no_grad():
        for p, value in zip(optimizer.parameters(), before, strict=True):
            p.copy_(value)
    optimizer.step()
    for p, value in zip(optimizer.parameters(), expected, strict=True):
        assert torch.equal(p, value)
    assert not all(torch.equal(p, value) for p, value in zip(optimizer.parameters(), before, strict=True))


def test_first_update_after_a_knot_has_the_size_of_a_first_update(chained):
    """Adam's first step moves every entry with a gradient by lr; a kept second moment or step count would not."""
    model, optimizer, batch = chained("llama", steps=20, knots=Never(), lr=1e-3)
    optimizer.tie_knot()
    site = next(iter(optimizer.sites.values()))
    optimizer.zero_grad()
    loss_of(model, batch).backward()
    moved = site.B.grad.abs() > 1e-6
    optimizer.step()
    torch.testing.assert_close(site.B.detach().abs()[moved], torch.full_like(site.B[moved], 1e-3), rtol=0.02, atol=0)


def test_knot_forgets_only_factor_moments():
    model = CASES["llama"].model()
    optimizer = make_chain(CASES["llama"], model, train_modules=["norm"], knots=Never())
    train(optimizer, model, CASES["llama"].batch(), 3)
    head = model.model.norm.weight
    kept = optimizer.state[head]["exp_avg"].clone()
    optimizer.tie_knot()
    assert torch.equal(optimizer.state[head]["exp_avg"], kept)
    assert kept.any()
    assert optimizer.state[head]["step"] == 3


@pytest.mark.parametrize("reset", RESETS, ids=repr)
@pytest.mark.parametrize("kind", ["linear", "conv2d", "embedding", "gpt2"])
def test_exactly_one_factor_is_zero_after_a_knot(chained, kind, reset):
    model, optimizer, batch = chained(kind, steps=3, reset=reset, knots=At([3]))
    for site in optimizer.sites.values():
        assert not site.zeroed.any()
        assert site.drawn.any()
        assert all(p.grad is None for p in site.parameters())
    train(optimizer, model, batch, reset.probes + 2)
    assert all(site.zeroed.any() for site in optimizer.sites.values()), "the fresh link must learn"


def test_knot_before_any_step_and_at_lr_zero_is_legal(chained):
    model, optimizer, batch = chained(lr=0.0)
    before = output(model, batch)
    assert optimizer.tie_knot().link_norms == {"layers.0": 0.0, "layers.2": 0.0}
    train(optimizer, model, batch, 3)
    assert torch.equal(output(model, batch), before)
    assert len(optimizer.chain) == 2


def test_zero_lr_changes_nothing(chained):
    model, optimizer, batch = chained(lr=0.0)
    before = [p.detach().clone() for p in model.parameters()]
    train(optimizer, model, batch, 2)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))


def test_record_states_what_happened(chained):
    _, optimizer, _ = chained(steps=2, knots=Never())
    site = optimizer.sites["layers.0"]
    update = site.orient(site.scaling * site.B.detach() @ site.A.detach())
    seen = []
    handle = optimizer.on_knot(seen.append)
    record = optimizer.tie_knot()
    assert (record.knot, record.step, record.link_steps, record.ranks["layers.0"]) == (0, 2, 2, 2)
    assert record.link_norms["layers.0"] == pytest.approx(update.norm().item(), rel=1e-5)
    assert record.relative_updates["layers.0"] == pytest.approx((update.norm() / site.weight.norm()).item(), rel=1e-5)
    assert seen == [record] == list(optimizer.ledger)
    handle.remove()
    optimizer.tie_knot()
    assert len(seen) == 1


class InterruptedError_(Exception):
    """What an interrupted test raises."""


class Failing(Kaiming):
    """A reset rule that fails at one draw, once."""

    def __init__(self, at: int) -> None:
        object.__setattr__(self, "countdown", at)

    def draw(self, shape, generator):
        object.__setattr__(self, "countdown", self.countdown - 1)
        if self.countdown == -1:
            raise InterruptedError_
        return super().draw(shape, generator)


@pytest.mark.parametrize("at", range(4))
def test_reset_rule_is_asked_once_a_site_and_before_anything_is_changed(chained, at):
    """Where it fails there is no knot to go on with, and the next one is a knot as any other."""
    whole, expected, _ = chained("llama", steps=4, knots=Never())
    model, optimizer, _ = chained("llama", steps=4, knots=Never(), reset=Failing(at + 4))  # 4 draws start the first link
    with pytest.raises(InterruptedError_):
        optimizer.tie_knot()
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), whole.parameters(), strict=True))
    optimizer.reset = asked = Failing(4)
    assert optimizer.tie_knot() == expected.tie_knot()
    assert asked.countdown == 0  # type: ignore[attr-defined]
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), whole.parameters(), strict=True))


@pytest.mark.parametrize("way", ["step", "state_dict", "export", "tie_knot", "delta"])
@pytest.mark.parametrize("at", range(4))
def test_knot_interrupted_at_each_site_is_completed_not_doubled(chained, monkeypatch, tmp_path, at, way):
    """Cut off at site `at`, before it is changed; whatever is called next goes on with the same knot."""
    whole, expected, batch = chained("llama", steps=4, knots=Never())
    expected.tie_knot()
    model, optimizer, _ = chained("llama", steps=4, knots=Never())
    before = output(model, batch)
    merges, calls = Site.merges, []

    def fails_at_site(self, *args):
        calls.append(1)
        if len(calls) == at + 1:
            raise torch.OutOfMemoryError
        return merges(self, *args)

    monkeypatch.setattr(Site, "merges", fails_at_site)
    with pytest.raises(torch.OutOfMemoryError):
        optimizer.tie_knot()
    assert len(optimizer.chain) == 0
    assert relative_change(output(model, batch), before) < 1e-6, "between two sites the function is right"
    if way == "step":
        # Without zero_grad(), which would complete it before the backward pass: gradients of the cut-off moment belong to two
        # links and are dropped, and the factors stand still for this step.
        loss_of(model, batch).backward()
        optimizer.step()
    elif way == "tie_knot":
        optimizer.tie_knot()
        expected.tie_knot()
    else:
        {"state_dict": optimizer.state_dict, "export": lambda: optimizer.export_adapter(tmp_path),
         "delta": lambda: optimizer.delta(next(iter(optimizer.sites)))}[way]()  # fmt: skip
    assert optimizer.ledger == expected.ledger
    for mine, theirs in zip(model.parameters(), whole.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_merge_cut_off_between_rows_goes_on_at_the_same_row(chained, monkeypatch):
    """An out-of-memory inside the merge: no row is merged twice, none is left out."""
    monkeypatch.setattr("fwlora.layers.rounding.CHUNK", 64)
    whole, expected, _ = chained("llama", steps=4, knots=Never(), dtype=torch.bfloat16)
    expected.tie_knot()
    model, optimizer, _ = chained("llama", steps=4, knots=Never(), dtype=torch.bfloat16)
    feedback, calls = RowMerge._add_with_feedback, []

    def fails_at_seventh(self, *args):
        calls.append(1)
        if len(calls) == 7:
            raise torch.OutOfMemoryError
        feedback(self, *args)

    monkeypatch.setattr(RowMerge, "_add_with_feedback", fails_at_seventh)
    with pytest.raises(torch.OutOfMemoryError):
        optimizer.tie_knot()
    optimizer.state_dict()
    assert optimizer.ledger == expected.ledger
    for mine, theirs in zip(model.parameters(), whole.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_norm_that_fails_after_a_merge_does_not_double_it(chained, monkeypatch):
    model, optimizer, batch = chained("llama", steps=2, knots=Never())
    before = output(model, batch)
    norm = torch.linalg.vector_norm

    def out_of_memory(*args, **options):
        if "out" not in options:
            return norm(*args, **options)
        monkeypatch.undo()
        raise torch.OutOfMemoryError

    monkeypatch.setattr(torch.linalg, "vector_norm", out_of_memory)
    with pytest.raises(torch.OutOfMemoryError):
        optimizer.tie_knot()
    optimizer.state_dict()
    assert len(optimizer.chain) == 1
    assert relative_change(output(model, batch), before) < 1e-6


@pytest.fixture
def interruptible():
    """A process that was started in the background ignores Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_waits_for_the_end_of_the_site(chained, monkeypatch):
    model, optimizer, batch = chained("llama", steps=2, knots=Never())
    before = output(model, batch)
    merges = Site.merges

    def interrupted(self, *args):
        monkeypatch.undo()
        signal.raise_signal(signal.SIGINT)
        return merges(self, *args)

    monkeypatch.setattr(Site, "merges", interrupted)
    with pytest.raises(KeyboardInterrupt):
        optimizer.tie_knot()
    assert not next(iter(optimizer.sites.values())).zeroed.any(), "the first site was finished"
    assert relative_change(output(model, batch), before) < 1e-6
    optimizer.state_dict()
    assert len(optimizer.chain) == 1


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_nonfinite_factor_refuses_the_knot_with_nothing_changed(chained, value):
    model, optimizer, _ = chained(steps=2, knots=Never())
    with torch.no_grad():
        optimizer.sites["layers.2"].B[0, 0] = value
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(NonFiniteFactorsError, match=r"layers\.2"):
        optimizer.tie_knot()
    assert len(optimizer.chain) == len(optimizer.ledger) == 0
    for now, then in zip(model.parameters(), before, strict=True):
        assert torch.equal(now.nan_to_num(), then.nan_to_num())


def test_scheduled_knot_refused_for_nonfinite_factors_waits_for_the_next_due_step(chained):
    model, optimizer, batch = chained(steps=2, knots=Every(3))
    with torch.no_grad():
        optimizer.sites["layers.0"].A[0, 0] = float("inf")
    loss_of(model, batch).backward()
    with pytest.warns(RefusedKnotWarning, match=r"layers\.0"):
        optimizer.step()
    assert len(optimizer.chain) == 0
    assert optimizer.ledger[0].refused is not None
    optimizer.start_link(0)
    optimizer.forget(optimizer.parameters())
    train(optimizer, model, batch, 2)
    assert len(optimizer.chain) == 0
    train(optimizer, model, batch, 1)
    assert len(optimizer.chain) == 1


def test_reset_rule_that_draws_zeros_is_refused_before_the_knot_begins(chained, tmp_path):
    class Dead(Kaiming):
        def draw(self, shape, generator):
            return torch.zeros(shape)

    model, optimizer, batch = chained(knots=Never(), steps=3)
    optimizer.reset = Dead()
    before = output(model, batch)
    with pytest.raises(KnotError, match="draws zeros"):
        optimizer.tie_knot()
    assert torch.equal(output(model, batch), before)
    optimizer.export_adapter(tmp_path)  # what was trained can still be had
    assert len(optimizer.chain) == 0


@pytest.mark.parametrize("inner", [row[0] for row in INNERS], ids=lambda row: row.__name__)
def test_stepped_down_factors_stay_masked(chained, inner):
    """Zero rows of A and columns of B have zero gradients: the masked model is the narrower model."""
    model, optimizer, batch = chained(rank=StepDown([4, 2, 1]), steps=3, inner=inner, alpha=8)
    ids = [id(p) for p in optimizer.parameters()]
    train(optimizer, model, batch, 5)
    for site in optimizer.sites.values():
        assert site.rank == 1
        assert site.scaling == 2.0
        assert not site.A[1:].any()
        assert not site.B[:, 1:].any()
        assert site.B[:, :1].any()
    assert [id(p) for p in optimizer.parameters()] == ids
    assert [record.ranks["layers.0"] for record in optimizer.ledger] == [4, 2]
    assert [link.factors["layers.0"].rank for link in optimizer.chain] == [4, 2]


def test_masked_link_trains_as_a_link_of_that_rank(chained):
    """Step down 4 -> 2 at a knot, or go on with a fresh rank-2 chain on the merged model: the same losses."""
    model, optimizer, batch = chained(rank=StepDown([4, 2]), steps=3, alpha=8)
    narrow = nn.Module()
    narrow = CASES["linear"].model()
    narrow.load_state_dict({k.replace(".base_layer", ""): v for k, v in model.state_dict().items() if "lora" not in k})
    other = make_chain(CASES["linear"], narrow, rank=2, alpha=4, knots=Never())
    with torch.no_grad():
        for name, site in other.sites.items():
            site.A.copy_(optimizer.sites[name].A[:2])
    for _ in range(2):
        for m, o in ((model, optimizer), (narrow, other)):
            o.zero_grad()
            loss_of(m, batch).backward()
            o.step()
    torch.testing.assert_close(output(model, batch), output(narrow, batch), rtol=1e-6, atol=1e-7)


def test_knot_between_forward_and_backward_raises(chained):
    """The weights of the forward pass are gone; gradients of other weights would be wrong in silence."""
    model, optimizer, batch = chained("llama", steps=1, knots=Never())
    loss = loss_of(model, batch)
    optimizer.tie_knot()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
