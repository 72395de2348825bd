"""Nothing is lost: a resumed run is bit for bit the uninterrupted one."""

from __future__ import annotations

import copy
import io

import pytest
import torch

from fwlora import At, Decay, Every, StepDown
from fwlora.errors import ArgumentError, ChainFileError, CloseReplayWarning, StateError
from fwlora.layers.rounding import RowMerge
from fwlora.rules import KnotSchedule
from tests.conftest import assert_same, make_chain, train
from tests.sealing import resealed
from tests.tables import CASES, INNERS, loss_of


def through_disk(document):
    """torch.save, then the strict loader that transformers uses."""
    buffer = io.BytesIO()
    torch.save(document, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


@pytest.mark.parametrize("phase", [2, 3, 4, 6], ids="steps={}".format)
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("linear", {}),
        ("linear", {"rank": StepDown([3, 2, 1])}),
        ("linear", {"freeze_A": True}),
        ("linear", {"knots": At([3, 6]), "link_lr": Decay(warmup=1)}),
        ("conv2d", {}),
        ("embedding", {}),
        ("gpt2", {}),
        ("opt", {}),
        ("llama", {"train_modules": ["norm"], "lr_ratio": 4.0}),
    ],
    ids=lambda value: value if isinstance(value, str) else ",".join(value) or "defaults",
)
@pytest.mark.parametrize("weights", ["pristine base", "full checkpoint"])
def test_resumed_run_is_bitwise_the_uninterrupted_run(kind, options, phase, weights):
    """Around the knot at step 3: from `torch.save(optimizer.state_dict())` alone, and with the model's own checkpoint."""
    case = CASES[kind]
    batch = case.batch()
    total = {"total_steps": 9} if "link_lr" in options else {}

    def start():
        model = case.model()
        optimizer = make_chain(case, model, **options)
        for name, value in total.items():
            setattr(optimizer, name, value)
        return model, optimizer

    model, optimizer = start()
    train(optimizer, model, batch, phase)
    saved = through_disk({"optimizer": optimizer.state_dict(), "model": model.state_dict()})
    losses = train(optimizer, model, batch, 5)

    other_model, other = start()
    if weights == "full checkpoint":
        other_model.load_state_dict(saved["model"])
    other.load_state_dict(saved["optimizer"])
    assert all(record.replay == ("exact" if weights == "pristine base" else None) for record in other.ledger)
    assert train(other, other_model, batch, 5) == losses
    assert_same(model, optimizer, other_model, other)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("residual_in_state", [True, False])
def test_resumed_half_precision_run_is_bitwise_the_uninterrupted_run(dtype, residual_in_state):
    case = CASES["llama"]
    model = case.model(dtype)
    optimizer = make_chain(case, model, residual_in_state=residual_in_state)
    train(optimizer, model, case.batch(), 7)
    saved = through_disk(optimizer.state_dict())
    losses = train(optimizer, model, case.batch(), 4)

    other_model = case.model(dtype)
    other = make_chain(case, other_model, residual_in_state=residual_in_state)
    other.load_state_dict(saved)
    assert train(other, other_model, case.batch(), 4) == losses
    assert_same(model, optimizer, other_model, other)


def test_merged_half_precision_weights_without_residuals_need_the_originals():
    case = CASES["llama"]
    model = case.model(torch.bfloat16)
    optimizer = make_chain(case, model, residual_in_state=False)
    train(optimizer, model, case.batch(), 4)
    saved = through_disk({"optimizer": optimizer.state_dict(), "model": model.state_dict()})
    losses = train(optimizer, model, case.batch(), 3)

    merged = case.model(torch.bfloat16)
    bare = make_chain(case, merged)
    merged.load_state_dict(saved["model"])
    with pytest.raises(StateError, match="residual_in_state=False"):
        bare.load_state_dict(saved["optimizer"])

    other_model = case.model(torch.bfloat16)
    original = copy.deepcopy(other_model.state_dict())
    other = make_chain(case, other_model, original=original)
    other_model.load_state_dict(saved["model"])
    other.load_state_dict(saved["optimizer"])
    assert train(other, other_model, case.batch(), 3) == losses


@pytest.mark.parametrize(("inner", "options"), INNERS, ids=lambda value: getattr(value, "__name__", None))
def test_every_inner_optimizer_resumes_bitwise(inner, options):
    case = CASES["linear"]
    model = case.model()
    optimizer = make_chain(case, model, inner=inner, **options)
    train(optimizer, model, case.batch(), 4)
    saved = through_disk(optimizer.state_dict())
    losses = train(optimizer, model, case.batch(), 4)
    other_model = case.model()
    other = make_chain(case, other_model, inner=inner, **options)
    other.load_state_dict(saved)
    assert train(other, other_model, case.batch(), 4) == losses
    assert_same(model, optimizer, other_model, other)


def test_double_load_merges_nothing_twice(chained):
    model, optimizer, _ = chained(steps=7)
    before = [p.detach().clone() for p in model.parameters()]
    for _ in range(2):
        optimizer.load_state_dict(optimizer.state_dict())
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))
    assert [record.replay for record in optimizer.ledger] == [None, None]


def test_load_on_other_weights_raises_with_nothing_changed(chained):
    _, optimizer, _ = chained(steps=4)
    saved = through_disk(optimizer.state_dict())
    model, other, _ = chained(steps=1)
    with torch.no_grad():
        other.sites["layers.2"].weight.add_(0.1)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(StateError, match=r"layers\.2.*neither the original"):
        other.load_state_dict(saved)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert other.progress.step == 1


def test_load_on_weights_of_a_later_knot_replays_from_original():
    """load_best_model_at_end: the base has absorbed later knots; `original=` brings it back."""
    case = CASES["linear"]
    model = case.model()
    original = copy.deepcopy(model.state_dict())
    optimizer = make_chain(case, model, original=original)
    train(optimizer, model, case.batch(), 4)
    best = through_disk(optimizer.state_dict())
    then = [p.detach().clone() for p in model.parameters()]
    train(optimizer, model, case.batch(), 6)
    optimizer.load_state_dict(best)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), then, strict=True))
    assert len(optimizer.chain) == 1


def test_replay_that_differs_by_rounding_warns_or_raises(chained, monkeypatch):
    """Another device sums in another order: half a last place here."""
    _, optimizer, _ = chained(steps=4)
    saved = through_disk(optimizer.state_dict())
    add = RowMerge._add

    def elsewhere(self, W, left):
        add(self, W, left)
        W.mul_(1 + 2**-23)

    monkeypatch.setattr(RowMerge, "_add", elsewhere)
    _, strict, _ = chained(exact_replay=True)
    with pytest.raises(StateError, match="exact_replay=True"):
        strict.load_state_dict(saved)
    assert len(strict.chain) == 0
    _, other, _ = chained()
    with pytest.warns(CloseReplayWarning) as caught:
        other.load_state_dict(saved)
    assert caught[0].filename == __file__, "it points at the caller's line"
    assert other.ledger[0].replay == "close"


def test_damaged_link_is_refused_with_nothing_changed(chained):
    _, optimizer, _ = chained(steps=4)
    saved = through_disk(optimizer.state_dict())
    saved["fwlora"]["links"][0]["sites"]["layers.0"]["B"][0] += 1
    saved = resealed(saved)
    model, other, _ = chained()
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(StateError, match="Replaying 1 link"):
        other.load_state_dict(saved)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": 1}, "seed=0"),
        ({"rank": 3}, "same `rank=`"),
        ({"target_modules": ["layers.0"]}, r"layers\.2\.weight, and this model's are layers\.0\.weight;"),
        ({"inner": torch.optim.SGD, "freeze_A": True}, "param_groups"),
        ({"inner": torch.optim.SGD}, "have no 'momentum', 'dampening', options of this SGD"),
        ({"inner": torch.optim.RMSprop}, "have no 'alpha', options of this RMSprop"),
    ],
    ids=["seed", "rank", "sites", "groups", "SGD", "RMSprop"],
)
def test_state_of_another_chain_is_refused_with_nothing_changed(chained, options, message):
    _, optimizer, _ = chained(steps=4)
    saved = through_disk(optimizer.state_dict())
    model, other, _ = chained(**options)
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises((StateError, ValueError), match=message):
        other.load_state_dict(saved)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))
    assert len(other.chain) == 0


@pytest.mark.parametrize("change", ["version", "field"])
def test_unknown_state_document_is_refused(chained, change):
    _, optimizer, _ = chained(steps=1)
    saved = through_disk(optimizer.state_dict())
    if change == "version":
        saved["fwlora"]["version"] = 99
    else:
        del saved["fwlora"]["ranks"]
    with pytest.raises(StateError, match=r"version 99|lacks 'ranks'"):
        optimizer.load_state_dict(saved)


def test_links_on_disk_resume_as_links_in_memory(chained, tmp_path):
    model, optimizer, batch = chained(steps=7, chain_dir=tmp_path / "run")
    in_memory_model, in_memory, _ = chained(steps=7)
    assert [path.name[:11] for path in sorted((tmp_path / "run").iterdir())] == ["link-00000-", "link-00001-"]
    saved = through_disk(optimizer.state_dict())
    assert "sites" not in saved["fwlora"]["links"][0]
    train(optimizer, model, batch, 3)  # a later link file, to be ignored

    other_model, other, _ = chained(chain_dir=tmp_path / "run")
    other.load_state_dict(saved)
    assert_same(in_memory_model, in_memory, other_model, other)
    train(other, other_model, batch, 3)
    assert_same(model, optimizer, other_model, other)


def test_links_on_disk_are_checked(chained, tmp_path):
    _, optimizer, _ = chained(steps=4, chain_dir=tmp_path)
    saved = through_disk(optimizer.state_dict())
    _, other, _ = chained(chain_dir=tmp_path)
    (file,) = tmp_path.iterdir()
    good = file.read_bytes()
    file.write_bytes(good[:-1] + b"x")
    with pytest.raises(ChainFileError, match="not the file"):
        other.load_state_dict(saved)
    file.unlink()
    with pytest.raises(ChainFileError, match="lacks link-00000"):
        other.load_state_dict(saved)
    _, bare, _ = chained()
    with pytest.raises(ArgumentError, match="chain_dir"):
        bare.load_state_dict(saved)


def test_save_and_load_through_a_folder(chained, tmp_path):
    model, optimizer, batch = chained(steps=4)
    path = optimizer.save(tmp_path / "state")
    losses = train(optimizer, model, batch, 3)
    other_model, other, _ = chained()
    with pytest.raises(ArgumentError, match=r"chain\.pt"):
        other.load(tmp_path)
    other.load(path.parent)
    assert train(other, other_model, batch, 3) == losses
    assert [file.name for file in path.parent.iterdir()] == ["chain.pt"]


class WhenFlat(KnotSchedule):
    """Ties when the loss has not fallen for two steps; for tests of what schedules may read."""

    reads = frozenset({"loss", "descent"})

    def due(self, progress):
        losses = progress.history["loss"]
        assert progress.descent is not None
        return len(losses) >= 2 and losses[-1] > losses[-2]


def test_history_that_a_schedule_reads_survives_a_resume(chained):
    case = CASES["linear"]

    def run(optimizer, model, steps):
        for _ in range(steps):
            optimizer.zero_grad()
            optimizer.step(lambda: train_loss(model, optimizer))
        return optimizer.progress

    def train_loss(model, optimizer):
        loss = loss_of(model, {"x": case.batch()["x"] * (1 + optimizer.progress.step % 3)})
        loss.backward()
        return loss

    model, optimizer, _ = chained(knots=WhenFlat())
    run(optimizer, model, 5)
    saved = through_disk(optimizer.state_dict())
    expected = run(optimizer, model, 6)
    other_model, other, _ = chained(knots=WhenFlat())
    other.load_state_dict(saved)
    assert run(other, other_model, 6) == expected
    assert len(optimizer.chain) > 0


def test_schedule_that_reads_the_loss_must_be_told(chained):
    model, optimizer, batch = chained(knots=WhenFlat())
    with pytest.raises(ArgumentError, match="observe"):
        train(optimizer, model, batch, 1)
    optimizer.observe(1.0)
    train(optimizer, model, batch, 1)
    assert optimizer.progress.loss == 1.0
    assert optimizer.progress.step == 1


def test_fresh_factors_depend_on_seed_knot_and_site_alone(chained):
    _, one, _ = chained(steps=3)
    torch.manual_seed(99)
    _, two, _ = chained(steps=3, lr=0.5)
    _, three, _ = chained(steps=3, seed=1)
    first, again, other = (optimizer.sites["layers.0"].A for optimizer in (one, two, three))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(first, one.chain[0].factors["layers.0"].A)


def test_unbound_every_needs_no_length_and_binds_one(chained):
    _, optimizer, _ = chained(knots=Every(3))
    assert optimizer.total_steps is None
    optimizer.total_steps = 10
    assert optimizer.progress.total_steps == 10


def test_state_of_other_trained_modules_is_refused(chained):
    _, optimizer, _ = chained("llama", steps=1, train_modules=["norm"])
    saved = through_disk(optimizer.state_dict())
    _, other, _ = chained("llama")
    with pytest.raises(StateError, match="train_modules"):
        other.load_state_dict(saved)
    saved["fwlora"]["trained"]["model.norm.weight"] = torch.zeros(3)
    saved = resealed(saved)
    with pytest.raises(StateError, match=r"model\.norm\.weight"):
        optimizer.load_state_dict(saved)
