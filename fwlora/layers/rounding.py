"""In-place merging ``W <- W + s L R``, a chunk of rows at a time, with error feedback where W is stored in half precision.

Rounding to nearest forgets an update that is small beside the spacing of W: at ``|dW| / |W| = 1e-3`` a bf16 weight loses
46 % of it, at 1e-4 94 %, at every merge and for ever. So the rounding error is kept as a signed int8 in units of 1/256 of
the weight's last place and is given back at the next merge: W and its residual together hold about 24 bits.
"""

import torch
from jaxtyping import Float, Int8
from torch import Tensor

# Entries of one chunk: four float32 scratch tensors of this size are 4 MiB, whatever the model.
CHUNK = 2**18

EXACT = (torch.float32, torch.float64)
ROUNDED = (torch.bfloat16, torch.float16)


def ulp(W: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Distance from ``|W|`` to the next larger number of W's own 16-bit format, in float32.

    Returns:
        The unit in the last place of each entry.

    Example:
        >>> ulp(torch.tensor([1.0, 2.0], dtype=torch.bfloat16)).tolist()
        [0.0078125, 0.015625]
    """
    magnitude = W.abs()
    # The bit patterns of non-negative floats are ordered as the numbers are: the next pattern is the next number.
    above = (magnitude.view(torch.int16) + 1).view(W.dtype)
    return above.float() - magnitude.float()


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
    W = E.clamp(-torch.finfo(dtype).max, torch.finfo(dtype).max).to(dtype)
    # Nearest rounding errs by half a last place at most, 128 units; +128 does not fit int8 and loses one unit.
    units = ((E - W.float()) / ulp(W) * 256).round().clamp(-128, 127)
    return W, units.to(torch.int8)


class RowMerge:
    """One weight's merge; where an exception cuts it off between chunks, `run()` again goes on at the same row.

    Args:
        weight: (rows, ...), changed in place.
        left: (rows, rank).
        right: (rank, everything else of a row).
        scale: s.
        residual: int8, shaped as the weight, on the host; None for a weight that is stored exactly.
    """

    def __init__(self, weight: Tensor, left: Tensor, right: Tensor, scale: float, residual: Tensor | None) -> None:
        self.weight, self.scale, self.residual = weight, scale, residual
        dtype = weight.dtype if weight.dtype in EXACT else torch.float32
        self.left, self.right = (side.detach().to(weight.device, dtype) for side in (left, right))
        self.row = 0
        # <realised, asked> and |asked|^2, whose quotient is the gain.
        self._realised = 0.0
        self._asked = 0.0

    @property
    def gain(self) -> float | None:
        """``<realised, asked> / |asked|^2`` of this merge; None for an exact weight or a zero update."""
        return None if self.residual is None or self._asked == 0 else self._realised / self._asked

    @torch.no_grad()
    def run(self) -> None:
        """Merge the rows that remain."""
        columns = max(1, self.weight[:1].numel())
        rows = max(1, CHUNK // columns)
        while self.row < len(self.weight):
            end = min(self.row + rows, len(self.weight))
            chunk = slice(self.row, end)
            if self.residual is None:
                self._add(self.weight[chunk], self.left[chunk])
            else:
                self._add_with_feedback(self.weight[chunk], self.left[chunk], self.residual[chunk])
            self.row = end

    def _add(self, W: Tensor, left: Tensor) -> None:
        if W.ndim == 2:
            W.addmm_(left, self.right, alpha=self.scale)
        else:
            W.add_((left @ self.right).reshape(W.shape), alpha=self.scale)

    def _add_with_feedback(self, W: Tensor, left: Tensor, residual: Tensor) -> None:
        asked = (left @ self.right).reshape(W.shape).mul_(self.scale)
        rounded, units = split(restore(W, residual).add_(asked), W.dtype)
        realised = torch.sum((rounded.float() - W.float()) * asked, dtype=torch.float64).item()
        norm = torch.sum(asked.square(), dtype=torch.float64).item()
        # Nothing below allocates: the chunk is merged whole or not at all.
        W.copy_(rounded)
        residual.copy_(units)
        self._realised += realised
        self._asked += norm
