"""In-place merging ``W <- W + s L R``, a chunk of rows at a time, with error feedback where W is stored in half precision.

Rounding to nearest forgets an update that is small beside the spacing of W: at ``|dW| / |W| = 1e-3`` a bf16 weight loses
46 % of it, at 1e-4 94 %, at every merge and for ever. So the rounding error is kept as a signed int8 in units of 1/256 of
the weight's last place and is given back at the next merge: W and its residual together hold about 24 bits.

`restore` and `split` say what is computed; a merge computes just that, bit for bit, in as few passes over a chunk as can be.
"""

import math
from itertools import repeat
from typing import NamedTuple, cast

import torch
from jaxtyping import Float, Int8, Int32
from torch import Tensor

# Entries of a chunk, whose scratch of 19 bytes an entry stays in a core's cache, and so does half a chunk of float32 weights
# between product and norm. A device that launches kernels one by one is given twice that, 2.4 MiB, whatever the model.
CHUNK = 2**16

# Views: of the weight, of the left and the right factor, and of the residual.
_Chunk = tuple[Tensor, Tensor, Tensor, Tensor | None]

EXACT = (torch.float32, torch.float64)
ROUNDED = (torch.bfloat16, torch.float16)
_EXPONENT = 0x7F800000  # of a float32: what remains is the power of two below the number
_SMALLEST = {dtype: int(torch.tensor(torch.finfo(dtype).smallest_normal).view(torch.int32)) for dtype in ROUNDED}
# Added to a float32, 1.5 * 2^23 steps round it to a whole number of steps, ties to even, that stands in the sum's last bits.
_ROUNDER = 1.5 * 2**23


def ulp(W: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Distance from ``|W|`` to the next larger number of W's own 16-bit format, as if it had one everywhere, in float32.

    Returns:
        The unit in the last place of each entry.

    Example:
        >>> ulp(torch.tensor([1.0, 2.0], dtype=torch.bfloat16)).tolist()
        [0.0078125, 0.015625]
    """
    mask = torch.tensor(_EXPONENT, dtype=torch.int32, device=W.device)
    return _power(W.float().view(torch.int32), W.dtype, mask).view(torch.float32) * torch.finfo(W.dtype).eps


def restore(W: Float[Tensor, "*shape"], residual: Int8[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """What W stands for: its stored value plus the rounding error that was kept, in float32."""
    return W.float() + residual.to(W.device).float() * ulp(W) / 256


def split(E: Float[Tensor, "*shape"], dtype: torch.dtype) -> tuple[Float[Tensor, "*shape"], Int8[Tensor, "*shape"]]:
    """E rounded to nearest in `dtype`, and the error in 1/256 of the last place.

    Returns:
        The rounded W and its int8 residual, from which `restore` gives E back to about 2^-16.

    Example:
        >>> E = torch.randn(100)
        >>> bool(((restore(*split(E, torch.bfloat16)) - E).abs() <= E.abs() * 2**-15).all())
        True
    """
    # fp16 ends at 65504: a weight that would leave it stays at the end, where the gain tells, and does not become inf.
    E = E.clamp(-torch.finfo(dtype).max, torch.finfo(dtype).max)
    W = E.to(dtype)
    # Nearest rounding errs by half a last place at most, 128 units; +128 does not fit int8 and loses one unit.
    units = ((E - W.float()) / ulp(W) * 256).round().clamp(-128, 127)
    return W, units.to(torch.int8)


def lost(dtype: torch.dtype, relative: float, gain: float | None) -> str | None:
    r"""Why a merge loses over 1 % of an update for good, told from its record; None where it does not.

    A weight and its residual hold multiples of a unit: 1/256 of the last place, or the last place itself where W is exact. To
    an entry that moves by less than half a unit nothing happens, at this merge and at every later one, so it does not matter
    whether updates add up. This was kept of 30 merges into normal weights, in random directions or in one; it is 99 % or more
    at 0.8 units for uniform and heavy-tailed weights too, and for exact ones of unit eps:

        |dW| / |W| in eps / 256   1       0.8       0.65    0.33      0.16    0.1       0.03      0.003
        that is, in bf16          3e-5    2.4e-5    2e-5    1e-5      5e-6    3e-6      9e-7      9e-8
        that is, in fp16          4e-6    3e-6      2e-6    1.3e-6    6e-7    4e-7      1.1e-7    1.1e-8
        kept                      99.8 %  99.4 %    98.8 %  89 %      63 %    44 %      14 %      1.5 %

    Where an update is two last places large, a merge realises 99 % of it at once (measured at 99.6 % and more); less than that
    tells of fp16 weights that have come to 65504, where they stay. A gain below 1 of a smaller update tells nothing: what was
    not realised yet is in the residual.

    Args:
        dtype: of the weight.
        relative: ``|dW| / |W|``.
        gain: ``<realised, asked> / |asked|^2``; None for a weight that is stored exactly.

    Returns:
        The reason, as the end of a sentence.

    Example:
        >>> lost(torch.bfloat16, 1e-3, 0.54), lost(torch.bfloat16, 1e-6, 1.0) is None
        (None, False)
    """
    eps = torch.finfo(dtype).eps
    unit = eps / 256 if dtype in ROUNDED else eps
    if 0 < relative < 0.8 * unit:
        return f"it is {relative:.1e} of the weight, and what {dtype} holds, rounding errors included, ends at {0.8 * unit:.1e}"
    # bf16 ends where float32 does, and no weight comes to that.
    if dtype == torch.float16 and gain is not None and relative >= 2 * eps and gain < 0.99:
        return f"weights have come to the largest number of {dtype}, and {gain:.0%} of the update went in"
    return None


class RowMerge:
    """One weight's merge; where an exception cuts it off between chunks, `run()` again goes on at the same chunk.

    Args:
        weight: (rows, ...), changed in place.
        left: (rows, rank).
        right: (rank, everything else of a row).
        scale: s.
        residual: int8, shaped as the weight, on the host; None for a weight that is stored exactly.

    Attributes:
        sums: (2, chunks), of each chunk ``<realised, asked>``, zero for an exact weight, and ``|W'|``.
    """

    def __init__(self, weight: Tensor, left: Tensor, right: Tensor, scale: float, residual: Tensor | None) -> None:
        self.weight, self.scale, self.residual = weight, scale, residual
        dtype = weight.dtype if weight.dtype in EXACT else torch.float32
        self.left, self.right = (side.detach().to(weight.device, dtype) for side in (left, right))
        # As a matrix, where its memory is one: channels_last, for one, is not.
        shape = (weight.shape[0], math.prod(weight.shape[1:])) if weight.is_contiguous() else weight.shape
        whole = weight.view(shape)
        if _on_host(weight):
            entries = CHUNK if residual is not None else CHUNK // 2
        elif residual is None and whole.ndim == 2:
            entries = weight.numel()  # without scratch there is no reason to cut
        else:
            entries = 2 * CHUNK
        chunks = _chunks(whole, self.left, self.right, None if residual is None else residual.view(shape), entries)
        self._chunks = chunks if weight.numel() else []  # a rank may hold no row
        self._scratch = None if residual is None else _Scratch(weight, residual, min(weight.numel(), entries))
        self._next, self._is_half_done = 0, False
        # Left on the device, to be read when all is done: it is not to be waited for at each chunk.
        self.sums = torch.zeros(2, len(self._chunks), dtype=dtype, device=weight.device)
        self._realised, self._merged = (sums.unbind() for sums in self.sums.unbind())

    @torch.no_grad()
    def run(self) -> None:
        """Merge the chunks that remain."""
        while self._next < len(self._chunks):
            W, left, right, residual = self._chunks[self._next]
            if residual is None:
                if not self._is_half_done:
                    self._add(W, left)
                    self._is_half_done = True  # whatever fails from here on, it is not added again
                torch.linalg.vector_norm(W, out=self._merged[self._next])
            else:
                if not self._is_half_done:
                    self._add_with_feedback(W, left, right, residual)
                    self._is_half_done = True  # the sum is in the scratch, and is not taken again
                self._store(W, residual)
            self._next, self._is_half_done = self._next + 1, False

    def _add(self, W: Tensor, left: Tensor) -> None:
        if W.ndim == 2:
            W.addmm_(left, self.right, alpha=self.scale)
        else:
            W.add_((left @ self.right).reshape(W.shape), alpha=self.scale)

    def _add_with_feedback(self, W: Tensor, left: Tensor, right: Tensor, residual: Tensor) -> None:
        assert self._scratch is not None
        mask, unit = self._scratch.mask, self._scratch.unit
        floats, bits, rows, product, rounded, units = self._scratch.shaped(W.shape)
        (asked, before, E, after), (before_bits, _, after_bits) = floats, bits
        product.addmm_(left, right, beta=0, alpha=self.scale)
        # E = restore(W, residual) + asked, and `after` holds the powers of two meanwhile.
        before.copy_(W)
        E.copy_(residual if units is None else units.copy_(residual))
        _power(before_bits, W.dtype, mask, out=after_bits)
        torch.addcmul(before, E, after, value=unit, out=E)
        E.add_(asked).clamp_(-self._scratch.max, self._scratch.max)
        # W' = E rounded, and what is to be told of it.
        after.copy_(rounded.copy_(E))
        torch.sub(after, before, out=before)
        torch.dot(*rows, out=self._realised[self._next])
        torch.linalg.vector_norm(after, out=self._merged[self._next])
        # residual' = round((E - W') / ulp(W') * 256), the last bits of the sum.
        E.sub_(after)
        _power(after_bits, W.dtype, mask, out=after_bits)
        torch.addcdiv(self._scratch.rounder, E, after, out=E)
        E.clamp_((_ROUNDER - 128) * unit, (_ROUNDER + 127) * unit)

    def _store(self, W: Tensor, residual: Tensor) -> None:
        assert self._scratch is not None
        _, (_, E_bits, _), _, _, rounded, units = self._scratch.shaped(W.shape)
        # Nothing here allocates, and what was cut off may be done again.
        W.copy_(rounded)
        residual.copy_(E_bits if units is None else units.copy_(E_bits))


class _Views(NamedTuple):
    """Scratch in the shape of a chunk, and other views of it, made once: at each chunk they would take as long as a pass."""

    floats: tuple[Tensor, Tensor, Tensor, Tensor]  # asked, before, E, after
    bits: tuple[Tensor, Tensor, Tensor]  # of before, E, after
    rows: tuple[Tensor, Tensor]  # before and asked, as vectors
    product: Tensor  # asked, as a matrix
    rounded: Tensor
    units: Tensor | None  # None where the residual lies on the weight's device


class _Scratch:
    """What a merge with feedback works in, taken before anything changes and used by every chunk.

    Args:
        weight: to be merged into.
        residual: its residual.
        entries: of the largest chunk.
    """

    def __init__(self, weight: Tensor, residual: Tensor, entries: int) -> None:
        device = weight.device
        is_beside = _on_host(residual) == _on_host(weight)
        floats = torch.empty(4, entries, device=device).unbind()
        rounded = torch.empty(entries, dtype=weight.dtype, device=device)
        units = None if is_beside else torch.empty(entries, dtype=torch.int8, device=device)
        self._flat, self._units = (*floats, rounded), units
        self._views: _Views | None = None
        # Made once, as numbers would be made tensors of at every use.
        info = torch.finfo(weight.dtype)
        self.max, self.unit = info.max, info.eps / 256  # `unit` of the residual, beside the power of two below the weight
        self.rounder = torch.full((), _ROUNDER * self.unit, device=device)
        self.mask = torch.full((), _EXPONENT, dtype=torch.int32, device=device)

    def shaped(self, shape: torch.Size) -> _Views:
        """Its beginning in this shape."""
        if self._views is None or self._views.rounded.shape != shape:
            entries = shape.numel()
            asked, before, E, after, rounded = (flat[:entries].view(shape) for flat in self._flat)
            units = None if self._units is None else self._units[:entries].view(shape)
            before_bits, E_bits, after_bits = (x.view(torch.int32) for x in (before, E, after))
            self._views = _Views(
                (asked, before, E, after),
                (before_bits, E_bits, after_bits),
                (before.view(-1), asked.view(-1)),
                asked.view(len(asked), -1),
                rounded,
                units,
            )
        return self._views


def _on_host(tensor: Tensor) -> bool:
    return tensor.device.type == "cpu"


def _chunks(weight: Tensor, left: Tensor, right: Tensor, residual: Tensor | None, entries: int) -> list[_Chunk]:
    """So many rows that they hold so many entries; of a matrix with a residual also columns, where a row is longer."""
    length = max(1, math.prod(weight.shape[1:]))
    rows = max(1, entries // length)
    residuals = repeat(None) if residual is None else residual.split(rows)
    chunks = list(zip(weight.split(rows), left.split(rows), repeat(right), residuals))
    if residual is None or weight.ndim != 2 or length <= entries:
        return chunks
    return [
        chunk
        for W, L, R, C in chunks
        for chunk in zip(W.split(entries, 1), repeat(L), R.split(entries, 1), cast(Tensor, C).split(entries, 1))
    ]


def _power(
    bits: Int32[Tensor, "*shape"], dtype: torch.dtype, mask: Tensor, out: Tensor | None = None
) -> Int32[Tensor, "*shape"]:
    """The largest power of two no larger than a float32, and no smaller than the smallest normal number of `dtype`, as bits."""
    return torch.bitwise_and(bits, mask, out=out).clamp_(min=_SMALLEST[dtype])
