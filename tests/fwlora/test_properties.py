"""What holds for every chain, over shapes, ranks, schedules, resets and dtypes."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fwlora import ChainLoRAOptimizer, Constant
from tests.tables import KNOTS, LINK_LRS, RANKS, RESETS

# Links of two steps are over before an aligned one has trained.
pytestmark = pytest.mark.filterwarnings("ignore:A scheduled knot was refused")

CHAINS = st.fixed_dictionaries({
    "knots": st.sampled_from(KNOTS),
    "rank": st.sampled_from(RANKS) | st.integers(1, 6).map(Constant),
    "link_lr": st.sampled_from(LINK_LRS),
    "reset": st.sampled_from(RESETS),
    "freeze_A": st.booleans(),
    "lora_bias": st.booleans(),
    "seed": st.integers(0, 99),
})  # fmt: skip
WIDTHS = st.tuples(*[st.integers(1, 9)] * 3)
DTYPES = st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16])


def build(widths, dtype):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(widths[0], widths[1]), nn.Tanh(), nn.Linear(widths[1], widths[2])).to(dtype)


def start(model, options):
    optimizer = ChainLoRAOptimizer(model, 0.05, **options)
    if optimizer.total_steps is None:
        optimizer.total_steps = 9
    return optimizer


def run(model, optimizer, widths, steps):
    for _ in range(steps):
        x = torch.randn(4, widths[0], generator=torch.Generator().manual_seed(optimizer.progress.step))
        optimizer.zero_grad()
        (model(x.to(model[0].weight.dtype)).float() - 1).square().mean().backward()
        optimizer.step()


@settings(max_examples=25, deadline=None)
@given(options=CHAINS, widths=WIDTHS, dtype=DTYPES, steps=st.integers(0, 9))
def test_any_chain_sums_to_the_weight_change(options, widths, dtype, steps):
    """W' + C - W = sum of the links, up to what the storage and its residual can hold."""
    model = build(widths, dtype)
    original = copy.deepcopy(model).double().state_dict()
    optimizer = start(model, options)
    run(model, optimizer, widths, steps)
    residuals = optimizer.state_dict()["fwlora"]["residuals"]
    for name, site in optimizer.sites.items():
        live = site.live()
        merged = optimizer.delta(name).double() - live.scale * (live.B.double() @ live.A.double())
        weight = site.weight.detach().double()
        if f"{name}.weight" in residuals:
            ulp = torch.nextafter(weight.abs().to(dtype), torch.tensor(float("inf"), dtype=dtype)).double() - weight.abs()
            weight = weight + residuals[f"{name}.weight"].double() * ulp / 256
        precision = {torch.float64: 1e-6, torch.float32: 1e-6, torch.bfloat16: 2e-3, torch.float16: 3e-4}[dtype]
        torch.testing.assert_close(weight - original[f"{name}.weight"], merged, rtol=0, atol=precision)


@settings(max_examples=25, deadline=None)
@given(options=CHAINS, widths=WIDTHS, dtype=DTYPES, before=st.integers(0, 8), after=st.integers(1, 5))
def test_any_chain_resumes_bitwise(options, widths, dtype, before, after):
    model = build(widths, dtype)
    optimizer = start(model, options)
    run(model, optimizer, widths, before)
    saved = copy.deepcopy(optimizer.state_dict())
    run(model, optimizer, widths, after)
    other_model = build(widths, dtype)
    other = start(other_model, options)
    other.load_state_dict(saved)
    run(other_model, other, widths, after)
    assert optimizer.ledger == other.ledger.replayed(None)
    for mine, theirs in zip(model.parameters(), other_model.parameters(), strict=True):
        assert torch.equal(mine, theirs)
