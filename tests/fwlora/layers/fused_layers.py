"""A LoRA layer of PEFT, and the same one fused."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import pytest
import torch
from peft import LoraConfig
from peft.functional import cast_adapter_dtype, inject_adapter_in_model
from peft.tuners.lora import layer as lora
from torch import Tensor, nn

from fwlora.layers.fused import FusedLinear, LowRankLinear, fuse


def model_with_lora(dtype: torch.dtype = torch.float32, *, bias: bool = True, **config: Any) -> nn.Sequential:
    """One Linear (6 -> 5) with factors that are no zeros, in float32 on a half-precision base as PEFT has them."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 5, bias=bias)).to(dtype)
        options = {"r": 3, "lora_alpha": 7, "target_modules": ["0"], **config}
        inject_adapter_in_model(LoraConfig(**options), model)
        cast_adapter_dtype(model, "default", True)
        nn.init.normal_(model[0].lora_B["default"].weight)
    return model


def pair(dtype: torch.dtype = torch.float32, **config: Any) -> tuple[lora.Linear, FusedLinear]:
    """The same layer with PEFT's forward and with the fused one."""
    plain = model_with_lora(dtype, **config)
    fused = copy.deepcopy(plain)
    assert fuse(fused[0])
    return plain[0], fused[0]


def gradients(
    function: Callable[[Tensor], Tensor], x: Tensor, g: Tensor, of: nn.Module | None = None
) -> dict[str, Tensor | None]:
    """Of x and of every parameter of a layer, the function itself by default, for a given gradient of the output; that too."""
    layer = cast(nn.Module, function) if of is None else of
    layer.zero_grad()
    x = x.detach().requires_grad_(x.requires_grad)
    y = function(x)
    y.backward(g.to(y.dtype))
    return {"y": y.detach(), "x": x.grad} | {name: p.grad for name, p in layer.named_parameters()}


def assert_close(mine: dict[str, Tensor | None], theirs: dict[str, Tensor | None], tolerance: float) -> None:
    """Each tensor to a relative `tolerance` of its norm, in the same precision and shape; None where None."""
    assert mine.keys() == theirs.keys()
    for name, expected in theirs.items():
        value = mine[name]
        assert (value is None) == (expected is None), name
        if value is not None and expected is not None:
            assert (value.dtype, value.shape) == (expected.dtype, expected.shape), name
            assert (value - expected).norm() <= tolerance * expected.norm(), name


@contextmanager
def calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[Any, ...]]]:
    """The arguments of every call of the fused function meanwhile."""
    seen: list[tuple[Any, ...]] = []
    apply = LowRankLinear.apply
    with monkeypatch.context() as patch:
        patch.setattr(LowRankLinear, "apply", lambda *args: (seen.append(args), apply(*args))[1])
        yield seen
