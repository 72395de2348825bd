"""Restarts that restarted nothing, killed the link, or threw it off: bugs of others that must never be ours.

Each test puts one and the same check to a chain and to what the peer does; the peer must fail it.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fwlora import ChainLoRAOptimizer, Kaiming, Never
from fwlora.errors import ArgumentError, KnotError
from tests.conftest import make_chain, train
from tests.tables import CASES, output

LR = 1e-3


def share_forgotten(optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter]) -> float:
    """The share of the optimizer's tensors for these parameters that are zero: all of them after a reset that happened."""
    tensors = [value for p in parameters for value in optimizer.state.get(p, {}).values() if isinstance(value, Tensor)]
    return sum(not value.any() for value in tensors) / len(tensors) if tensors else 1.0


class ForgetsNothing(ChainLoRAOptimizer):
    """Resets the optimizer by names that no parameter has, and says that it has done so."""

    def forget(self, parameters):
        for name in ("lora_A.weight", "lora_B.weight"):
            self.state.get(name, {})  # type: ignore[call-overload]


def test_01_reset_that_resets_nothing_is_an_error(chained):
    """axolotl-ai-cloud/axolotl#1414, #3646: for two years "percent of optimizer states zeroed: 0.00", and no error."""
    model, optimizer, batch = chained("llama", steps=3, knots=Never())
    factors = [p for site in optimizer.sites.values() for p in site.parameters()]
    assert share_forgotten(optimizer, factors) < 0.1
    optimizer.tie_knot()
    assert share_forgotten(optimizer, factors) == 1.0

    train(optimizer, model, batch, 2)
    optimizer.__class__ = ForgetsNothing
    with pytest.raises(KnotError, match="still remembers"):
        optimizer.tie_knot()
    assert share_forgotten(optimizer, factors) < 0.1, "the same number, and it tells the peer"


def assert_link_can_grow(model: nn.Module, factors: list[tuple[nn.Parameter, nn.Parameter]], learn) -> None:
    """Exactly one factor of each pair is zero, and a few steps of training change what the model computes."""
    assert all(sum(not factor.any() for factor in pair) == 1 for pair in factors)
    before = [p.detach().clone() for pair in factors for p in pair]
    learn()
    after = [p.detach() for pair in factors for p in pair]
    assert any(not torch.equal(p, q) for p, q in zip(before, after, strict=True))


def test_03_restart_leaves_a_link_that_can_grow(chained):
    """Guitaricet/relora#18, NovaSky-AI/SkyRL#852: with A and B both zero neither has a gradient, and nothing ever trains."""
    model, optimizer, batch = chained("llama", steps=3, knots=Never())
    pairs = [(site.A, site.B) for site in optimizer.sites.values()]
    optimizer.tie_knot()
    assert_link_can_grow(model, pairs, lambda: train(optimizer, model, batch, 3))

    optimizer.tie_knot()
    with torch.no_grad():
        for A, _ in pairs:
            A.zero_()
    with pytest.raises(AssertionError):
        assert_link_can_grow(model, pairs, lambda: train(optimizer, model, batch, 3))
    assert not any(p.any() for pair in pairs for p in pair), "both stay zero for ever"


class Zeros(Kaiming):
    """A rule that draws what the peer draws."""

    def draw(self, shape, generator):
        return torch.zeros(shape)


def test_03_rule_that_would_kill_the_link_is_refused_with_nothing_changed(chained):
    """Guitaricet/relora#18 again, as a user's own reset rule."""
    model, optimizer, batch = chained(steps=3, knots=Never())
    optimizer.reset = Zeros()
    before = output(model, batch)
    with pytest.raises(KnotError, match="could never grow"):
        optimizer.tie_knot()
    assert torch.equal(output(model, batch), before)


def test_03_rule_that_would_kill_the_first_link_is_refused_at_once():
    model = CASES["linear"].model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ArgumentError, match="could never grow"):
        make_chain(CASES["linear"], model, reset=Zeros())
    after = model.state_dict()
    assert {name: torch.equal(value, before[name]) for name, value in after.items()} == dict.fromkeys(before, True)
    assert isinstance(make_chain(CASES["linear"], model), ChainLoRAOptimizer)


def largest_update(optimizer: torch.optim.Optimizer, parameter: nn.Parameter, steps: int = 300) -> float:
    """The largest step of any entry, in units of lr, under a gradient that never changes: 1 for an Adam that begins."""
    peak = 0.0
    for _ in range(steps):
        before = parameter.detach().clone()
        parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        peak = max(peak, (parameter.detach() - before).abs().max().item() / LR)
    return peak


def moments_zeroed_and_step_kept(state: dict[str, Tensor]) -> None:
    state["exp_avg"].zero_()
    state["exp_avg_sq"].zero_()


def moments_pruned_apart(state: dict[str, Tensor]) -> None:
    """Each by a mask of its own, as by "random" or "magnitude" pruning."""
    for name in ("exp_avg", "exp_avg_sq"):
        state[name].mul_(torch.rand_like(state[name]) < 0.5)


@pytest.mark.parametrize(
    ("reset_of_the_peer", "jump"),
    [(moments_zeroed_and_step_kept, 3.0), (moments_pruned_apart, 10.0)],
    ids=["step kept", "moments pruned apart"],
)
def test_04_first_updates_after_a_reset_are_first_updates(chained, reset_of_the_peer, jump):
    """ai-safety-foundation/sparse_autoencoder#115, Guitaricet/relora: Adam's step or a moment survives, and updates jump."""
    _, optimizer, _ = chained(knots=Never(), lr=LR, betas=(0.9, 0.999))
    B = optimizer.sites["layers.0"].B
    for _ in range(2):
        assert largest_update(optimizer, B) == pytest.approx(1, rel=1e-3)
        optimizer.tie_knot()

    largest_update(optimizer, B)
    reset_of_the_peer(optimizer.state[B])
    with torch.no_grad():
        B.zero_()
    assert largest_update(optimizer, B) > jump
