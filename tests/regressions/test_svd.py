"""Number 20: SVDs that do not converge, which stopped the training of others.

Each test puts one and the same check to a chain and to what the peer does; the peer must fail it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from fwlora import ChainLoRAOptimizer, Every, FrankWolfe, GradientAligned, Never, NuclearBall
from fwlora.errors import DecompositionError, RefusedKnotWarning
from tests.conftest import make_chain, train
from tests.tables import CASES, loss_of, output

CASE = CASES["linear"]
SVD, SVDVALS = torch.linalg.svd, torch.linalg.svdvals


def failing(svd: Callable, times: float) -> Callable:
    """An SVD that does not converge so many times."""
    calls = []

    def of(*args, **options):
        calls.append(1)
        if len(calls) <= times:
            raise torch.linalg.LinAlgError("linalg.svd: The algorithm failed to converge because the input is ill-conditioned")
        return svd(*args, **options)

    return of


@pytest.fixture
def svd_fails(monkeypatch) -> Callable[[float], None]:
    """`svd_fails(times)`: from now on, so many times."""

    def patch(times: float) -> None:
        monkeypatch.setattr(torch.linalg, "svd", failing(SVD, times))
        monkeypatch.setattr(torch.linalg, "svdvals", failing(SVDVALS, times))

    return patch


class RenewsItsProjector(torch.optim.SGD):
    """As GaLore: within a step, by an SVD of the gradient."""

    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None and p.ndim == 2:
                    U = torch.linalg.svd(p.grad, full_matrices=False).U[:, :2]
                    p.grad = U @ (U.mT @ p.grad)
        return super().step(closure)


def steps_taken(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 7) -> int:
    """How many steps a loop takes before an error ends it."""
    for k in range(steps):
        optimizer.zero_grad()
        loss_of(model, CASE.batch()).backward()
        try:
            optimizer.step()
        except torch.linalg.LinAlgError:
            return k
    return steps


def test_20_training_by_default_asks_for_no_svd(svd_fails):
    """jiaweizzhao/GaLore#58, #26, #6: an SVD on the training path, slow, and the end of the run where it does not converge."""
    svd_fails(torch.inf)
    model = CASE.model()
    optimizer = make_chain(CASE, model)
    assert steps_taken(model, optimizer) == 7
    assert len(optimizer.chain) == 2

    peer = CASE.model()
    assert steps_taken(peer, RenewsItsProjector(peer.parameters(), 0.1)) == 0


OTHERS = {
    "aligned": {"reset": GradientAligned(), "knots": Every(4)},
    "Algorithm 2": {"merge": FrankWolfe(NuclearBall(1.0), 0.5)},
}


@pytest.mark.parametrize("how", OTHERS)
def test_20_svd_that_fails_once_is_had_in_another_way(svd_fails, how):
    """jiaweizzhao/GaLore#58: a matrix that one iteration cannot do, another can."""

    def weights(times: float) -> list[Tensor]:
        svd_fails(times)
        model = CASE.model()
        optimizer = make_chain(CASE, model, **OTHERS[how])
        assert steps_taken(model, optimizer, 9) == 9
        assert len(optimizer.chain) >= 2
        assert not optimizer.fallbacks
        return [p.detach().clone() for p in model.parameters()]

    for one, other in zip(weights(0), weights(1), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_20_aligned_link_starts_from_its_draw_where_the_svd_fails(svd_fails):
    """jiaweizzhao/GaLore#26: training goes on, and the record says what happened."""
    svd_fails(torch.inf)
    model = CASE.model()
    optimizer = make_chain(CASE, model, **OTHERS["aligned"])
    assert steps_taken(model, optimizer, 9) == 9
    assert [set(record.fallbacks.values()) for record in optimizer.ledger] == [{"SVD did not converge"}] * 2
    assert optimizer.delta("layers.0").any()


def test_20_knot_that_needs_an_svd_waits_where_it_fails(svd_fails):
    """jiaweizzhao/GaLore#58: Algorithm 2 reads spectra at a knot; a scheduled one is put off, and no factor is touched."""
    model = CASE.model()
    optimizer = make_chain(CASE, model, **OTHERS["Algorithm 2"])
    train(optimizer, model, CASE.batch(), 2)
    before = output(model, CASE.batch())
    svd_fails(torch.inf)
    with pytest.raises(DecompositionError, match="did not converge"):
        optimizer.tie_knot()
    assert torch.equal(output(model, CASE.batch()), before)
    with pytest.warns(RefusedKnotWarning, match="did not converge"):
        train(optimizer, model, CASE.batch(), 1)
    assert (len(optimizer.chain), optimizer.progress.step) == (0, 3)
    svd_fails(0)
    train(optimizer, model, CASE.batch(), 3)
    assert [record.refused is None for record in optimizer.ledger] == [False, True]


def test_20_export_is_cut_all_the_same_or_not_at_all(chained, svd_fails, tmp_path):
    """hiyouga/LlamaFactory#2926: where the SVD cannot be had there is a named error and no half an adapter."""
    _, optimizer, _ = chained(steps=7, knots=Every(3))
    expected = optimizer.export_adapter(tmp_path / "good", max_rank=2)
    svd_fails(1)
    assert optimizer.export_adapter(tmp_path / "again", max_rank=2).errors == pytest.approx(expected.errors, rel=1e-6)

    svd_fails(torch.inf)
    state = copy.deepcopy(optimizer.state_dict()["fwlora"]["links"])
    with pytest.raises(DecompositionError, match="`max_rank=`"):
        optimizer.export_adapter(tmp_path / "bad", max_rank=2)
    assert not (tmp_path / "bad").exists()
    assert len(state) == len(optimizer.chain)
    optimizer.export_adapter(tmp_path / "exact")


def unconverged_for_zero(A: Tensor) -> Tensor:
    """What an `except: pass` makes of it."""
    try:
        return torch.linalg.svdvals(A)
    except torch.linalg.LinAlgError:
        return torch.zeros(min(A.shape))


def test_20_failure_is_never_taken_for_a_number(svd_fails):
    """A norm of zero would let any link into any set."""
    model = CASE.model()
    optimizer = ChainLoRAOptimizer(model, 0.02, rank=2, knots=Never())
    train(optimizer, model, CASE.batch(), 2)
    optimizer.tie_knot()
    update = optimizer.delta("layers.0")
    svd_fails(torch.inf)
    assert not unconverged_for_zero(update).any()
    with pytest.raises(DecompositionError):
        optimizer.chain.spectrum("layers.0")
