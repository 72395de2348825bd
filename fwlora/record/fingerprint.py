"""Telling whether a weight is the original, the merged one, or neither, without a copy of either.

The fingerprint is an exact integer, ``sum_i h(bits_i, i) mod 2^64`` over the entries: a sum, so shards add, and sensitive to
every bit and its place. Beside it a sketch of 64 float64 sums tells "differs by rounding" from "differs".
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

BINS = 64
_CHUNK = 2**16  # entries hashed at a time, so that the integer scratch stays in cache; a multiple of BINS
_BITS = {
    torch.float64: torch.int64,
    torch.float32: torch.int32,
    torch.bfloat16: torch.int16,
    torch.float16: torch.int16,
}
# Odd 64-bit multipliers of the splitmix64 generator (Steele et al. 2014), as signed integers.
_GOLDEN, _MIX = -7046029254386353131, -4658895280553007687


class Fingerprint(NamedTuple):
    """An exact hash of a weight and a rounding-tolerant sketch of it.

    Attributes:
        exact: the integer, as a signed 64-bit number.
        sketch: (64,) float64 on the CPU; entry i of the weight is in bin ``i mod 64``.
    """

    exact: int
    sketch: Tensor

    def close(self, other: Fingerprint, tolerance: float) -> bool:
        """Whether the sketches agree to a relative `tolerance`."""
        difference = torch.linalg.vector_norm(self.sketch - other.sketch)
        return bool(difference <= tolerance * torch.linalg.vector_norm(other.sketch))


@torch.no_grad()
def fingerprint(weight: Tensor) -> Fingerprint:
    """The fingerprint of a floating weight, entries numbered in row-major order.

    Returns:
        Its hash and its sketch.

    Example:
        >>> w = torch.randn(3, 5)
        >>> fingerprint(w).exact == fingerprint(w.clone()).exact, fingerprint(w).exact == fingerprint(w.flip(0)).exact
        (True, False)
    """
    flat = weight.detach().contiguous().flatten()
    total = torch.zeros((), dtype=torch.int64, device=flat.device)
    sketch = torch.zeros(BINS, dtype=torch.float64, device=flat.device)
    for start in range(0, len(flat), _CHUNK):
        chunk = flat[start : start + _CHUNK]
        index = torch.arange(start, start + len(chunk), device=flat.device)
        total += _hash(chunk.view(_BITS[weight.dtype]).long(), index).sum()
        sketch += pad(chunk.double(), (0, -len(chunk) % BINS)).view(-1, BINS).sum(0)
    return Fingerprint(int(total), sketch.cpu())


def _hash(bits: Tensor, index: Tensor) -> Tensor:
    # Integer arithmetic on int64 wraps, which is arithmetic mod 2^64.
    h = bits + (index + 1) * _GOLDEN
    h = (h ^ (h >> 30)) * _MIX
    return h ^ (h >> 27)
