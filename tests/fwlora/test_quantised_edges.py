"""What of a quantised base is refused, what bitsandbytes does to a layer behind one's back, and what else runs there."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from fwlora import ChainLoRAOptimizer, Every, Never, NuclearBall
from fwlora.errors import UnsupportedModelError
from fwlora.layers.stack import Sides, Stack
from tests.conftest import make_chain, train
from tests.quantising import base_bytes, quantised, stood_for
from tests.tables import QUANTISED, TOLERANCE, loss_of, output

EVERY_KIND = pytest.mark.parametrize("kind", QUANTISED)


def relative(value: torch.Tensor, expected: torch.Tensor) -> float:
    return ((value - expected).norm() / expected.norm()).item()


def net(kind: str = "nf4") -> nn.Sequential:
    return nn.Sequential(quantised(nn.Linear(64, 32), kind))


def unpacked() -> nn.Module:
    import bitsandbytes as bnb

    return nn.Sequential(bnb.nn.Linear4bit(64, 32))


def in_16_bits() -> nn.Module:
    import bitsandbytes as bnb

    return nn.Sequential(bnb.nn.Linear8bitLt(64, 32, has_fp16_weights=True).to("cpu").requires_grad_(False))


def repacked() -> nn.Module:
    model = net()
    model[0].weight.quant_state.packing_format_for_cpu = True
    return model


def embedded() -> nn.Module:
    import bitsandbytes as bnb

    return nn.Sequential(bnb.nn.Embedding4bit(16, 64).to("cpu"))


def unmarked() -> nn.Module:
    return get_peft_model(net(), LoraConfig(target_modules=["0"]))


def of_an_earlier_chain() -> nn.Module:
    model = net()
    chain = ChainLoRAOptimizer(model, 0.1, knots=Never())
    model(torch.ones(1, 64)).sum().backward()
    chain.step()
    chain.tie_knot()
    return model


@pytest.mark.parametrize(
    ("build", "options", "message"),
    [
        (net, {"lora_bias": True}, "`lora_bias=True`.*'0' is quantised"),
        (unpacked, {}, "'0', a Linear4bit, is not quantised"),
        (in_16_bits, {}, "'0', a Linear8bitLt, is not quantised.*has_fp16_weights=True"),
        (repacked, {}, "repacked by bitsandbytes.*load the base afresh"),
        (embedded, {"target_modules": ["0"]}, "Embedding4bit.*GPTQ, AWQ, HQQ"),
        (unmarked, {}, "is_loaded_in_4bit = True"),
        (of_an_earlier_chain, {}, "links of an earlier chain"),
    ],
    ids=["lora_bias", "unpacked", "in 16 bits", "repacked", "embedding", "unmarked", "earlier chain"],
)
def test_unserved_base_is_refused_and_left_as_it_was(build, options, message):
    model = build()
    names = [(name, type(module)) for name, module in model.named_modules()]
    with pytest.raises(UnsupportedModelError, match=message):
        ChainLoRAOptimizer(model, **options)
    assert [(name, type(module)) for name, module in model.named_modules()] == names
    assert not hasattr(model, "is_loaded_in_4bit"), "what PEFT is told is taken back"


def test_evaluation_between_steps_repacks_no_weight():
    """On some CPUs bitsandbytes would, at the first evaluation: it rounds statistics, and gradients end there.

    Layers that are no sites count as well, for a gradient passes them on its way.
    """
    model = nn.Sequential(quantised(nn.Linear(64, 64), "nf4"), nn.Tanh(), quantised(nn.Linear(64, 64), "nf4"))
    for layer in (model[0], model[2]):
        layer.support_avx512bf16_for_cpu = True
    before = base_bytes(model)
    optimizer = ChainLoRAOptimizer(model, 0.01, rank=2, target_modules=["0"], knots=Every(2))
    x = torch.randn(4, 64)
    for _ in range(5):
        model.train()
        optimizer.zero_grad()
        model(x).square().mean().backward()
        assert optimizer.sites["0"].B.grad.norm() > 0
        optimizer.step()
        model.eval()
        with torch.no_grad():
            model(x)
    after = base_bytes(model)
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_links_follow_the_input_to_its_device():
    stack = Stack(Sides(torch.ones(1, 3), torch.ones(2, 1)))
    there = stack(nn.Identity(), (torch.ones(4, 3, device="meta"),), torch.ones(4, 2, device="meta"))
    assert (there.device.type, there.shape) == ("meta", (4, 2))


@EVERY_KIND
@pytest.mark.parametrize("half", ["the model", "autocast"])
def test_knot_leaves_the_function_unchanged_in_bfloat16(kind, half):
    """To what bfloat16 can hold of an output."""
    case = QUANTISED[kind]
    model = case.model(torch.bfloat16 if half == "the model" else torch.float32)
    optimizer = make_chain(case, model, knots=Never())

    def computed() -> torch.Tensor:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=half == "autocast"):
            return output(model, case.batch())

    for _ in range(2):
        train(optimizer, model, case.batch(), 3)
        before = computed()
        optimizer.tie_knot()
        after = computed()
        assert after.dtype is before.dtype
        assert relative(after.float(), before.float()) < TOLERANCE[torch.bfloat16]


def test_knot_leaves_an_evaluated_int8_layer_unchanged():
    """Evaluated it rounds what comes in as well: the links add to that, and are not rounded."""
    model, x = net("int8"), torch.randn(8, 64)
    optimizer = ChainLoRAOptimizer(model, 0.05, rank=2, knots=Never())
    for _ in range(4):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
    model.eval()
    before = model(x)
    optimizer.tie_knot()
    assert relative(model(x), before) < 1e-6


@EVERY_KIND
def test_gap_is_that_of_the_dequantised_weights(kind):
    """Measured after two knots, beside a float chain on what the packed weights stand for."""
    case = QUANTISED[kind]
    model = case.model()
    twin = stood_for(model)
    gaps = []
    for m in (model, twin):
        optimizer = make_chain(case, m)
        train(optimizer, m, case.batch(), 7)
        report = optimizer.measure_gap([case.batch()], lambda batch, m=m: loss_of(m, batch), NuclearBall(1.0))
        gaps.append(report.total.gap.point)
    assert gaps[0] == pytest.approx(gaps[1], rel=1e-3)
