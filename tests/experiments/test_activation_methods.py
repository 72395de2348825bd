"""Methods that act on activations: prefix tuning and bottleneck adapters."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from experiments.errors import UsageError
from experiments.methods import BottleneckAdapters, PrefixTuning, effective_weights
from experiments.train import train
from tests.experiments.small import TARGETS, Text, llama, logits


def test_bottlenecks_and_prefixes_change_no_weight():
    for method in (BottleneckAdapters("bottlenecks", 1e-2, 3), PrefixTuning("prefix", 1e-2, 4)):
        model = llama()
        before = effective_weights(model)
        setup = method.prepare(model, TARGETS, steps=3, seed=0)
        train(setup, Text(), steps=3)
        after = effective_weights(setup.model)
        assert after.keys() == before.keys()
        assert all(torch.equal(after[name], before[name]) for name in before)


def test_prefix_is_drawn_as_wide_as_it_says_and_stands_before_the_text():
    model = llama()
    base = logits(model).detach()
    setup = PrefixTuning("prefix", 1e-2, virtual_tokens=50, spread=0.5).prepare(model, TARGETS, steps=3, seed=0)
    (prefix,) = setup.parameters
    assert float(prefix.detach().std()) == pytest.approx(0.5, rel=0.1)
    assert logits(setup.model).shape == base.shape
    # Keys and values of zeros take part in attention as well.
    with torch.no_grad():
        prefix.zero_()
    assert not torch.allclose(logits(setup.model), base, atol=0.1)


def test_bottleneck_is_a_small_network_with_a_residual_connection():
    model = llama()
    layer = model.model.layers[0].mlp.down_proj
    x = torch.randn(3, 32)
    plain = layer(x)
    BottleneckAdapters("bottlenecks", 1e-2, 3, behind=("down_proj",)).inject(model, TARGETS)
    assert not hasattr(model.model.layers[0].self_attn.q_proj, "bottleneck")
    down, up = layer.bottleneck.down, layer.bottleneck.up
    nn.init.normal_(up.weight)
    nn.init.normal_(up.bias)
    expected = plain + torch.relu(plain @ down.weight.T + down.bias) @ up.weight.T + up.bias
    assert torch.allclose(layer(x), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("method", "model", "targets", "says"),
    [
        (
            PrefixTuning("prefix", 1e-2),
            nn.Sequential(nn.Linear(4, 4)),
            ["0"],
            "prefix: prefix tuning needs a decoder .* Sequential",
        ),
        (
            BottleneckAdapters("narrow", 1e-2, 2),
            nn.Sequential(nn.Linear(4, 4)),
            ["none"],
            "narrow: the model has no layer called none",
        ),
        (BottleneckAdapters("narrow", 1e-2, 2), nn.Sequential(nn.Conv2d(1, 1, 3)), ["0"], "narrow: '0' is a Conv2d"),
    ],
    ids=["prefix", "no layer", "convolution"],
)
def test_model_that_a_method_does_not_serve_is_refused_in_one_line(method, model, targets, says):
    with pytest.raises(UsageError, match=says) as error:
        method.prepare(model, targets, steps=2, seed=0)
    assert "\n" not in str(error.value)
    assert all(parameter.requires_grad for parameter in model.parameters())
