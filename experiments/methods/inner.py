"""Optimizers inside a chain: the options they want, the rates they want beside AdamW's, and what they keep.

The rates were measured with chains of 3 on the rotated digits (20 epochs, 3 seeds, rates in steps of 2, best mean accuracy on
the validation images) at ranks 1, 2 and 4:

| inner | best rate | best accuracy, % | over AdamW's | `rate` |
|---|---|---|---|---|
| AdamW | .032, .032, .016 | 88.9, 91.7, 93.5 | | 1 |
| SGD, momentum .9 | .002, .002, .008 | 52.8, 59.2, 84.0 | 1/16, 1/16, 1/2 | 1/8 |
| Adafactor | .064, .032, .016 | 90.9, 93.3, 95.5 | 2, 1, 1 | 1 |
| RMSprop | .008, .016, .008 | 88.3, 92.1, 92.9 | 1/4, 1/2, 1/2 | 1/2 |
| Muon | .032, .032, .008 | 87.9, 92.9, 95.1 | 1, 1, 1/2 | 1 |

SGD alone steps in proportion to the gradient: its rate is that problem's, which diverges from .016 on, and no other scale's of
the loss or the weights.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from experiments.errors import UsageError

Options = tuple[tuple[str, Any], ...]


@dataclass(frozen=True)
class Inner:
    """An inner optimizer as the studies use it.

    Attributes:
        kind: its class.
        options: for it, as pairs.
        rate: its best learning rate over AdamW's, to a power of two: where the centre of a grid for it belongs.
    """

    kind: type[torch.optim.Optimizer]
    options: Options = ()
    rate: float = 1.0


INNERS = {
    "AdamW": Inner(torch.optim.AdamW),
    "SGD": Inner(torch.optim.SGD, (("momentum", 0.9),), rate=1 / 8),
    # Steps are scaled by a factor's own size from 1 on: B starts at zero, and with the usual 1e-3 would hardly leave it.
    "Adafactor": Inner(torch.optim.Adafactor, (("eps", (None, 1.0)),)),
    "RMSprop": Inner(torch.optim.RMSprop, rate=1 / 2),
    # Updates of the size of AdamW's.
    "Muon": Inner(torch.optim.Muon, (("adjust_lr_fn", "match_rms_adamw"),)),
}


def numbers(kind: type[torch.optim.Optimizer], options: Options, shape: Sequence[int]) -> int:
    """How many numbers an optimizer keeps for a parameter, without step counters.

    Args:
        kind: one of torch's.
        options: for it.
        shape: the parameter's.

    Returns:
        That number.

    Raises:
        UsageError: for a class that is not known here.

    Example:
        >>> [numbers(inner.kind, inner.options, (8, 64)) for inner in INNERS.values()]
        [1024, 512, 72, 512, 512]
    """
    given, size = dict(options), math.prod(shape)
    if issubclass(kind, torch.optim.Adam | torch.optim.AdamW):
        return (3 if given.get("amsgrad") else 2) * size
    if issubclass(kind, torch.optim.SGD):
        return size if given.get("momentum") else 0
    if issubclass(kind, torch.optim.Adafactor):
        return math.prod(shape[:-1]) + math.prod(shape[:-2]) * shape[-1] if len(shape) > 1 else size
    if issubclass(kind, torch.optim.RMSprop):
        return size * (1 + bool(given.get("momentum")) + bool(given.get("centered")))
    if issubclass(kind, torch.optim.Muon):
        return size
    known = ", ".join(INNERS)
    raise UsageError(f"inner={kind.__name__}: what it keeps is not known here; use one of {known}.")
