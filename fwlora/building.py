"""Making the inner optimizer: its groups, its class, and the options that it takes."""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fwlora.errors import ArgumentError

# torch has a fused kernel of these, which steps all parameters at once, and does not choose it by itself.
_FUSED_BY_DEFAULT = (torch.optim.Adam, torch.optim.AdamW)
# Options by which a user says how to step.
_CHOICES = frozenset({"fused", "foreach", "capturable", "differentiable"})


def groups_by_role(
    factors: Iterable[list[nn.Parameter]], trained: list[nn.Parameter], lr: float | Tensor, lr_ratio: float
) -> list[dict[str, Any]]:
    """Parameter groups for A, for B with its bias, and for modules trained in full; empty ones are left out.

    Args:
        factors: [A, B] or [A, B, bias] of each site.
        trained: parameters trained in full.
        lr: rate of A and of trained modules.
        lr_ratio: B's rate over A's (LoRA+).

    Returns:
        The groups, each with its ``role``.
    """
    factors = list(factors)
    roles = {
        "A": ([site[0] for site in factors], lr),
        "B": ([p for site in factors for p in site[1:]], lr * lr_ratio),
        "trained": (trained, lr),
    }
    return [
        # A tensor rate is scheduled in place: each group needs its own.
        {"params": chosen, "lr": rate.clone() if isinstance(rate, Tensor) else rate, "role": role}
        for role, (parameters, rate) in roles.items()
        if (chosen := [p for p in parameters if p.requires_grad])
    ]


def build_inner(
    factory: Callable[..., Optimizer], groups: list[dict[str, Any]], options: dict[str, Any], outer_names: Iterable[str]
) -> Optimizer:
    """Make the inner optimizer, with a helpful error for an option that nobody knows.

    Args:
        factory: an optimizer class, or a callable that takes groups and keyword options.
        groups: the parameter groups.
        options: keyword options for `factory`.
        outer_names: the outer optimizer's own keyword names, for "did you mean".

    Returns:
        The optimizer.

    Raises:
        ArgumentError: for an unknown option, a closure-only optimizer, or values that the inner optimizer refuses.
    """
    name = getattr(factory, "__name__", repr(factory))
    if not callable(factory):
        raise ArgumentError(f"`inner={factory!r}`: give an optimizer class, such as `inner=torch.optim.AdamW`.")
    if isinstance(factory, type) and issubclass(factory, torch.optim.LBFGS):
        raise ArgumentError(
            "`inner=LBFGS` evaluates a closure several times a step, and a chain counts one evaluation a step; use AdamW."
        )
    accepted = inspect.signature(factory).parameters
    if "weight_decay" not in accepted and not options.get("weight_decay"):
        options = {option: value for option, value in options.items() if option != "weight_decay"}  # not all have one
    if not any(p.kind is inspect.Parameter.VAR_KEYWORD for p in accepted.values()):
        for option in options:
            if option not in accepted:
                guess = difflib.get_close_matches(option, [name for name in (*outer_names, *accepted) if name != option], n=1)
                raise ArgumentError(
                    f"`{option}=` is an option neither of ChainLoRAOptimizer nor of its inner {name}"
                    + (f"; did you mean `{guess[0]}=`?" if guess else ".")
                )
    if factory in _FUSED_BY_DEFAULT and not _CHOICES & options.keys() and _all_fusible(factory, groups):
        options = {**options, "fused": True}
    try:
        inner = factory(groups, **options)
    except (ValueError, TypeError) as error:
        raise ArgumentError(f"`inner={name}` refused its options {sorted(options)}: {error}") from error
    if not isinstance(inner, Optimizer):
        raise ArgumentError(f"`inner={name}` made a {type(inner).__name__}, no torch optimizer; give a class such as AdamW.")
    return inner


def _all_fusible(factory: Callable[..., Optimizer], groups: Iterable[dict[str, Any]]) -> bool:
    return all(_is_fusible(factory, *kind) for kind in {(p.device, p.dtype) for group in groups for p in group["params"]})


@functools.cache
def _is_fusible(factory: Callable[..., Optimizer], device: torch.device, dtype: torch.dtype) -> bool:
    """Whether torch has the kernel, found out by a step: which devices have one is nowhere told in public."""
    parameter = torch.zeros(1, device=device, dtype=dtype, requires_grad=True)
    parameter.grad = torch.zeros_like(parameter)
    try:
        factory([parameter], fused=True).step()
    except (RuntimeError, NotImplementedError):
        return False
    return True


def check_muon(inner: object, sites: Iterable[tuple[str, bool, list[nn.Parameter]]]) -> None:
    """Muon orthogonalises matrices; refuse it where a site is no Linear.

    Args:
        inner: the factory.
        sites: (name, whether it is linear, parameters) of each site.

    Raises:
        ArgumentError: naming the first site that is not served.
    """
    if inner is not torch.optim.Muon:
        return
    for name, is_linear, parameters in sites:
        if not is_linear or any(p.ndim != 2 for p in parameters):
            raise ArgumentError(
                f"`inner=Muon` orthogonalises the updates of matrices, and the site {name!r} is not a plain Linear. Leave it "
                "out of `target_modules=` (and `lora_bias=` off), or use AdamW."
            )
