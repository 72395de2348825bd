"""Telling whether a weight is the original, the merged one, or neither, without a copy of either.

The fingerprint is an exact integer, ``sum_i h(bits_i, i) mod 2^64`` over the entries: a sum, so shards add, and sensitive to
every bit and its place. Beside it a sketch of 64 float64 sums tells "differs by rounding" from "differs".
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

BINS = 64
# Entries hashed at a time, whose scratch of 24 bytes an entry stays in a core's cache. A device that launches kernels one by
# one is given four times that, 3 MiB.
_CHUNK = 2**15
_BITS = {
    torch.float64: torch.int64,
    torch.float32: torch.int32,
    torch.bfloat16: torch.int16,
    torch.float16: torch.int16,
    torch.uint8: torch.uint8,  # the bytes of a quantised weight
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
def fingerprint(weight: Tensor, first: int = 0) -> Fingerprint:
    """The fingerprint of a weight, entries numbered in row-major order.

    Args:
        weight: or some rows of one, whose fingerprints add up to the whole's.
        first: number of the first entry.

    Returns:
        Its hash and its sketch.

    Example:
        >>> w = torch.randn(3, 5)
        >>> fingerprint(w).exact == fingerprint(w.clone()).exact, fingerprint(w).exact == fingerprint(w.flip(0)).exact
        (True, False)
        >>> parts = fingerprint(w[:2]).exact + fingerprint(w[2:], first=10).exact
        >>> (parts - fingerprint(w).exact) % 2**64
        0
    """
    weight = weight.detach()
    device = weight.device
    total = torch.zeros((), dtype=torch.int64, device=device)
    sketch = torch.zeros(BINS, dtype=torch.float64, device=device)
    entries = min(weight.numel(), _CHUNK if device.type == "cpu" else 4 * _CHUNK)
    scratch = _Scratch(entries, device)
    start = first
    for piece in _pieces(weight, entries):
        total += scratch.hashes(piece.view(_BITS[weight.dtype]), start).sum()
        sketch += scratch.sums(piece).roll(start % BINS)
        start += len(piece)
    return Fingerprint(int(total), sketch.cpu())


def _pieces(weight: Tensor, entries: int) -> Iterator[Tensor]:
    """The entries in row-major order, so many at a time; where memory has another order, no more than some rows are copied."""
    rows = len(weight) if weight.is_contiguous() else entries // max(1, weight[:1].numel())
    for some in weight.split(max(1, rows)):
        yield from some.flatten().split(max(1, entries))


class _Scratch:
    """What the pieces are worked on in: allocated once, for every pass over it is over memory in cache."""

    def __init__(self, entries: int, device: torch.device) -> None:
        length = -(-entries // BINS) * BINS
        self._hash, self._shifted = torch.empty(2, length, dtype=torch.int64, device=device).unbind()
        self._values = self._shifted.view(torch.float64)  # the two are never needed at once
        # (index + 1) times the multiplier, of the entries of the piece at `_start`.
        self._index = torch.arange(1, length + 1, device=device).mul_(_GOLDEN)
        self._start = 0

    def hashes(self, bits: Tensor, start: int) -> Tensor:
        """The hash of each entry, the first of which has the number `start`."""
        # Integer arithmetic on int64 wraps, which is arithmetic mod 2^64.
        if start != self._start:
            self._index.add_(_wrapped((start - self._start) * _GOLDEN))
            self._start = start
        h, shifted = self._hash[: len(bits)], self._shifted[: len(bits)]
        h.copy_(bits).add_(self._index[: len(bits)])
        h.bitwise_xor_(torch.bitwise_right_shift(h, 30, out=shifted)).mul_(_MIX)
        return h.bitwise_xor_(torch.bitwise_right_shift(h, 27, out=shifted))

    def sums(self, entries: Tensor) -> Tensor:
        """The sum over every `BINS`-th entry, counted from the first."""
        length = -(-len(entries) // BINS) * BINS
        values = self._values[:length]
        values[: len(entries)].copy_(entries)
        values[len(entries) :].zero_()
        return values.view(-1, BINS).sum(0)


def _wrapped(number: int) -> int:
    """The signed 64-bit integer that is congruent."""
    return (number + 2**63) % 2**64 - 2**63
