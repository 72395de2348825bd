r"""The LoRA forward and backward that a site runs in place of PEFT's where it can: the same function, fewer passes over memory.

PEFT computes ``y = x W^T + b`` and adds ``s (x A^T) B^T`` to it by three elementwise operations, on a copy of x in the factors'
precision that every layer makes and keeps for itself. Here one autograd function computes

    u = x A^T        y = x W^T + b,  y += s u B^T
    v = g B          dx = g W,       dx += s v A        dA = s v^T x        dB = s g^T u

each sum inside the matrix product that it belongs to, in the precision that the base layer would compute in, and keeps x as it
came: layers that read the same x keep it once, and not at all where A is frozen. The factors stay what they are, float32 as a
rule, and so do their gradients.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple, cast

import peft
import torch
from peft.tuners.lora import LoraLayer
from peft.tuners.lora import layer as lora
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

# What PEFT's layer does besides `forward` is relied on as these releases have it.
TESTED_PEFT = "0.21."
# float16 is left to PEFT: its float32 factors cannot overflow where a product in float16 can.
COMPUTED = (torch.float32, torch.float64, torch.bfloat16)
# A fake tensor is a plain one without its numbers, by which a step's memory is told from shapes.
_PLAIN = (Tensor, nn.Parameter, FakeTensor)


def fuse(layer: LoraLayer) -> bool:
    """Let a layer compute with `FusedLinear` where it may, by a change of its class; its tensors and names stay.

    Args:
        layer: a LoRA layer of a model.

    Returns:
        Whether the layer is a `FusedLinear` now.

    Example:
        >>> from peft import LoraConfig, inject_adapter_in_model
        >>> model = inject_adapter_in_model(LoraConfig(target_modules=["0"]), nn.Sequential(nn.Linear(6, 5)))
        >>> x = torch.randn(4, 6); before = model(x)
        >>> fuse(model[0]), torch.allclose(model(x), before)
        (True, True)
    """
    if type(layer) is lora.Linear and not layer.fan_in_fan_out and peft.__version__.startswith(TESTED_PEFT):
        layer.__class__ = FusedLinear
    return isinstance(layer, FusedLinear)


def unfuse(layer: LoraLayer) -> None:
    """Let a layer compute with PEFT's forward again."""
    if isinstance(layer, FusedLinear):
        vars(layer).pop("turn", None)
        layer.__class__ = lora.Linear  # pyright: ignore[reportAttributeAccessIssue]


@contextmanager
def computing_in_full(layer: LoraLayer) -> Iterator[None]:
    """Let a layer compute with all of the factors that it has meanwhile, whatever its turn."""
    if not isinstance(layer, FusedLinear):
        yield
        return
    turn, layer.turn = layer.turn, None
    try:
        yield
    finally:
        layer.turn = turn


class Turn(NamedTuple):
    """What a chain knows of an adapter's factors in a layer, and what need not be computed for it.

    Attributes:
        adapter: the adapter's name.
        rank: the leading rows of A and columns of B that are in use; the others are zero.
        rests: the factors' product is zero, and is not trained.
    """

    adapter: str
    rank: int
    rests: bool


class FusedLinear(lora.Linear):
    """PEFT's LoRA layer of a Linear with another way to compute; PEFT's own forward runs whenever something is special.

    That is: active dropout, a merged or disabled adapter, several adapters or a mixed batch, a variant such as DoRA, a bias
    beside B, a base that is no plain floating Linear or is itself trained, hooks on the modules inside, and float16. Of the
    fused function there are first derivatives alone, and none in forward mode.

    Attributes:
        turn: set by the chain; None for a layer that no chain steers. A copy of the layer has none, and loaded weights end it,
            for it is true of these factors only.
    """

    turn: Turn | None = None

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """PEFT's LoRA of x.

        Args:
            x: (..., in).
            args: for PEFT's forward.
            kwargs: for PEFT's forward.

        Returns:
            (..., out).
        """
        is_traced = torch.jit.is_tracing()  # pyright: ignore[reportPrivateImportUsage]
        adapter = None if args or kwargs or is_traced else self._single_adapter()
        if adapter is None:
            return super().forward(x, *args, **kwargs)
        turn = self.turn if self.turn is not None and self.turn.adapter == adapter else None
        if turn is not None and turn.rests:
            return self.base_layer(x)
        # PEFT's attributes are typed `Tensor | Module`.
        W, bias = cast(Tensor, self.base_layer.weight), cast(Tensor | None, self.base_layer.bias)
        A, B = cast(Tensor, self.lora_A[adapter].weight), cast(Tensor, self.lora_B[adapter].weight)
        dtype = None if _drops(self.lora_dropout[adapter]) else _computed_dtype(x, W, A, B)
        if dtype is None:
            return super().forward(x)
        if turn is not None and turn.rank < len(A):
            A, B = A[: turn.rank], B[:, : turn.rank]
        y = LowRankLinear.apply(x, W, bias, A, B, self.scaling[adapter], dtype)[0]
        return y.view(*x.shape[:-1], len(W))

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self.turn = None
        super()._load_from_state_dict(*args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "turn"}

    def _single_adapter(self) -> str | None:
        """The adapter to compute with, where it and the base are plain; None where PEFT's forward is to run."""
        active = self.active_adapters
        if len(active) != 1 or self.disable_adapters or self.merged or active[0] not in self.lora_A:
            return None
        adapter = active[0]
        base, down, up = self.base_layer, self.lora_A[adapter], self.lora_B[adapter]
        is_plain = (
            all(type(module) is nn.Linear and not _is_hooked(module) for module in (base, down, up))
            and adapter not in self.lora_variant
            and up.bias is None
            and not base.weight.requires_grad
            and (base.bias is None or not base.bias.requires_grad)
        )
        return adapter if is_plain else None


class LowRankLinear(torch.autograd.Function):
    """``y = x W^T + b + s (x A^T) B^T`` with W and b frozen."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: Tensor, W: Tensor, bias: Tensor | None, A: Tensor, B: Tensor, scale: float, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        """y, and ``u = x A^T``, which the backward pass needs.

        Args:
            x: (..., in).
            W: (out, in).
            bias: (out,) or None.
            A: (rank, in).
            B: (out, rank).
            scale: s.
            dtype: to compute in.

        Returns:
            (tokens, out) and (tokens, rank).
        """
        rows = x.to(dtype).reshape(-1, x.shape[-1])
        y = F.linear(rows, W.to(dtype), None if bias is None else bias.to(dtype))
        u = rows @ A.to(dtype).mT
        # B^T in rows: this product is up to a third faster than with columns.
        y.addmm_(u, B.mT.to(dtype, memory_format=torch.contiguous_format), alpha=scale)
        # As rows: of a view that is made in here autograd would not let anybody change an entry in place.
        return y, u

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        """Keep what the wanted gradients need, and nothing else."""
        x, W, _, A, B, ctx.scale, ctx.dtype = inputs
        u = output[1]
        ctx.mark_non_differentiable(u)
        ctx.set_materialize_grads(False)
        ctx.shape, ctx.x_dtype = x.shape, x.dtype
        wants_x, _, _, wants_A, wants_B, *_ = ctx.needs_input_grad
        # Parameters are kept as they are, not cast: that costs nothing, and autograd raises where a knot has changed one
        # between forward and backward.
        ctx.save_for_backward(
            x if wants_A else None,
            W if wants_x else None,
            A if wants_x or wants_A or wants_B else None,
            B if wants_x or wants_A or wants_B else None,
            u if wants_B else None,
        )

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor | None, _: None) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The gradients of x, A and B."""
        x, W, A, B, u = ctx.saved_tensors
        if g is None:
            return (None,) * 7
        dtype, scale = ctx.dtype, ctx.scale
        dx = dA = dB = None
        # A caller's autocast is not that of the forward pass.
        with _without_autocast(g.device.type):
            if u is not None:
                # (rank, out) and then turned: up to three times as fast as g^T u.
                dB = (u.mT @ g).to(B.dtype).mul_(scale).mT
            if W is not None or x is not None:
                v = g @ B.to(dtype)
                if x is not None:
                    dA = (v.mT @ x.to(dtype).reshape(-1, x.shape[-1])).to(A.dtype).mul_(scale)
                if W is not None:
                    dx = g @ W.to(dtype)
                    dx = dx.addmm_(v, A.to(dtype), alpha=scale).view(ctx.shape).to(ctx.x_dtype)
        return dx, None, None, dA, dB, None, None


def _computed_dtype(x: Tensor, W: Tensor, A: Tensor, B: Tensor) -> torch.dtype | None:
    """What the base layer computes in; None where that, or a tensor's kind, is left to PEFT."""
    dtype, device = W.dtype, x.device.type
    if _autocasts(device):
        dtype = torch.get_autocast_dtype(device)
        if torch.float64 in (x.dtype, W.dtype):  # autocast leaves these alone
            return None
    elif x.dtype != dtype:
        return None
    if dtype not in COMPUTED or type(x) not in _PLAIN or type(W) not in _PLAIN:
        return None
    return dtype if A.dtype in (dtype, torch.float32) and B.dtype in (dtype, torch.float32) else None


def _autocasts(device: str) -> bool:
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)


def _without_autocast(device: str) -> AbstractContextManager[Any]:
    return torch.autocast(device, enabled=False) if _autocasts(device) else nullcontext()


def _drops(dropout: nn.Module) -> bool:
    return type(dropout) is not nn.Identity and not (type(dropout) is nn.Dropout and (dropout.p == 0 or not dropout.training))


def _is_hooked(module: nn.Module) -> bool:
    # accelerate's hooks put another `forward` on the instance.
    return "forward" in vars(module) or bool(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )
