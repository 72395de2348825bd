"""Bad numbers in a run: gradients that are not finite, batches without rows, ranks that no layer has."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from peft import PeftModel
from torch import nn

from fwlora import Every, FrankWolfe, GradientAligned, Kaiming, Never, NuclearBall
from fwlora.errors import NonFiniteFactorsError, RefusedKnotWarning
from tests.conftest import make_chain, train
from tests.tables import CASES, RESETS, loss_of, output

NAN, INF = math.nan, math.inf
CASE = CASES["linear"]


def poisoned_step(model: nn.Module, optimizer: torch.optim.Optimizer, factor: float) -> None:
    """A step on a loss that has become inf or nan."""
    optimizer.zero_grad()
    (loss_of(model, CASE.batch()) * factor).backward()
    optimizer.step()
    optimizer.zero_grad()


# -- gradients that are not finite ------------------------------------------------------------------------------------


@pytest.mark.parametrize("factor", [NAN, INF])
def test_knot_after_a_loss_that_was_not_finite_is_refused_with_nothing_changed(chained, factor):
    model, optimizer, _ = chained(steps=4, knots=Every(3))
    poisoned_step(model, optimizer, factor)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(NonFiniteFactorsError, match=r"layers\.\d.*Lower the lr, or clip gradients"):
        optimizer.tie_knot()
    assert len(optimizer.chain) == len(optimizer.ledger) == 1
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("factor", [NAN, INF])
def test_run_goes_on_from_good_factors_after_refused_knots(factor):
    """The chain warns and waits while the loss is bad, however long; the last good state ends it."""

    def run(poisoned: int) -> tuple[list[float], list[bool]]:
        model = CASE.model()
        optimizer = make_chain(CASE, model, knots=Every(3))
        train(optimizer, model, CASE.batch(), 5)
        good = copy.deepcopy(optimizer.state_dict())
        if poisoned:
            poisoned_step(model, optimizer, factor)  # the sixth step, after which a knot is due
        if poisoned > 1:
            with pytest.warns(RefusedKnotWarning, match="waits for the next due step"):
                train(optimizer, model, CASE.batch(), 3)
            assert len(optimizer.chain) == 1
        optimizer.load_state_dict(good)
        return train(optimizer, model, CASE.batch(), 4), [record.refused is None for record in optimizer.ledger]

    healthy = run(0)
    assert healthy[1] == [True] * 3
    with pytest.warns(RefusedKnotWarning):
        assert run(1) == healthy
    with pytest.warns(RefusedKnotWarning):
        assert run(2) == healthy


def test_refusals_stand_in_the_ledger(chained):
    model, optimizer, batch = chained(steps=2, knots=Every(3))
    with pytest.warns(RefusedKnotWarning):
        poisoned_step(model, optimizer, NAN)
    with pytest.warns(RefusedKnotWarning):
        train(optimizer, model, batch, 3)
    assert [(record.step, record.knot) for record in optimizer.ledger] == [(3, 0), (6, 0)]
    assert all("inf or nan" in record.refused for record in optimizer.ledger)


@pytest.mark.parametrize("factor", [NAN, INF])
def test_aligned_link_that_sees_a_bad_gradient_starts_from_its_draw(factor):
    model = CASE.model()
    optimizer = make_chain(CASE, model, reset=GradientAligned(), knots=Every(6))
    poisoned_step(model, optimizer, factor)
    losses = train(optimizer, model, CASE.batch(), 6)
    assert all(map(math.isfinite, losses))
    assert set(optimizer.ledger[0].fallbacks.values()) == {"gradient not finite"}


def test_clipping_a_bad_gradient_is_torchs_own_error(chained):
    model, optimizer, batch = chained(steps=2, knots=Never())
    before = copy.deepcopy(model.state_dict())
    (loss_of(model, batch) * NAN).backward()
    with pytest.raises(RuntimeError, match="non-finite"):
        nn.utils.clip_grad_norm_(optimizer.parameters(), 1.0, error_if_nonfinite=True)
    optimizer.zero_grad()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    train(optimizer, model, batch, 2)
    optimizer.tie_knot()


@pytest.mark.parametrize("options", [{}, {"max_rank": 1}, {"tolerance": 0.1}], ids=str)
def test_adapter_with_nan_is_never_written(chained, tmp_path, options):
    model, optimizer, _ = chained(steps=4)
    poisoned_step(model, optimizer, NAN)
    with pytest.raises(NonFiniteFactorsError, match=r"layers\.0.*nothing was written"):
        optimizer.export_adapter(tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()
    with pytest.raises(NonFiniteFactorsError):
        optimizer.merge_and_unload()


# -- batches without rows ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reduce", ["mean", "sum"])
def test_empty_batch_moves_no_weight(chained, reduce):
    """Its gradient is zero though a mean over no rows is nan; moments decay, as under any optimizer."""
    model, optimizer, batch = chained(steps=1, inner=torch.optim.SGD)
    before = copy.deepcopy(model.state_dict())
    optimizer.zero_grad()
    getattr(output(model, {"x": batch["x"][:0]}).square(), reduce)().backward()
    optimizer.step()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert optimizer.progress.step == 2
    train(optimizer, model, batch, 1)
    assert len(optimizer.chain) == 1
    assert optimizer.ledger[0].refused is None


def test_first_batch_may_be_empty(chained):
    model, optimizer, batch = chained()
    output(model, {"x": batch["x"][:0]}).sum().backward()
    optimizer.step()
    train(optimizer, model, batch, 3)
    assert len(optimizer.chain) == 1


def test_step_without_gradients_in_the_middle_counts_and_moves_nothing(chained):
    """As torch.optim's own does: a loop that skips a backward pass goes on."""
    model, optimizer, batch = chained(steps=2)
    before = output(model, batch)
    optimizer.zero_grad()
    optimizer.step()
    assert optimizer.progress.step == 3
    assert len(optimizer.chain) == 1
    torch.testing.assert_close(output(model, batch), before, rtol=1e-5, atol=1e-6)


# -- ranks beyond the layer -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "reset"),
    [*(("linear", reset) for reset in RESETS), *((kind, Kaiming()) for kind in ("conv2d", "embedding", "gpt2"))],
    ids=str,
)
def test_rank_beyond_the_layer_trains_ties_and_exports(tmp_path, kind, reset):
    """A link of rank 50 in layers of 3 to 96: its rank is what was asked for, and what is written is exact."""
    case = CASES[kind]
    model = case.model()
    optimizer = make_chain(case, model, rank=50, reset=reset, knots=Every(4), lr=1e-3)
    train(optimizer, model, case.batch(), 7)
    name = next(iter(optimizer.sites))
    assert optimizer.chain.rank(name) == 50
    assert len(optimizer.chain.spectrum(name)) <= min(optimizer.delta(name).flatten(1).shape)
    for options, ranks in (({}, {100}), ({"max_rank": 50}, None)):
        folder = tmp_path / str(len(options))
        report = optimizer.export_adapter(folder, **options)
        reloaded = PeftModel.from_pretrained(case.model(), str(folder)).eval()
        torch.testing.assert_close(output(reloaded, case.batch()), output(model, case.batch()), rtol=1e-4, atol=1e-5)
        assert ranks is None or set(report.ranks.values()) == ranks
        assert ranks is not None or all(rank <= 50 for rank in report.ranks.values())


def test_cut_rank_is_never_beyond_the_layer(chained, tmp_path):
    """Over the ranks that a 6 x 7 and a 7 x 3 matrix have there is nothing to keep."""
    _, optimizer, _ = chained(steps=7, rank=50, lr=1e-3)
    report = optimizer.export_adapter(tmp_path, max_rank=1000)
    assert report.ranks == {"layers.0": 6, "layers.2": 3}
    assert report.chain_ranks == {"layers.0": 150, "layers.2": 150}
    assert max(report.errors.values()) < 1e-6


def test_rank_beyond_the_layer_goes_with_algorithm_2(chained):
    _, optimizer, _ = chained(steps=9, rank=50, lr=1e-3, merge=FrankWolfe(NuclearBall(1.0), 0.5))
    assert len(optimizer.chain) == 3
    assert all(norm <= 1.0 + 1e-5 for record in optimizer.ledger for norm in record.norms.values())
