"""Kernels on products of factors: `B A` is never formed where its r x r shadow will do.

With thin QRs ``B = Q_B R_B`` and ``A^T = Q_A R_A``, the singular values of ``B A`` are those of the small matrix
``R_B R_A^T``: O((out + in) r^2) instead of O(out * in * min(out, in)).
"""

from collections.abc import Mapping, Sequence
from itertools import islice
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from fwlora.errors import DecompositionError

_NOT_CONVERGED = torch.linalg.LinAlgError  # pyright: ignore[reportPrivateImportUsage]
# Entries of a factor that are in float64 at a time.
_PART = 2**15


class Factors(NamedTuple):
    """One site's low-rank update ``scale * B A``, with the factors in the layer's own shapes.

    Attributes:
        A: (rank, in, ...), trailing axes for convolutions.
        B: (out, rank, ...).
        scale: LoRA's ``alpha / r`` times the link's coefficient.
        bias: (out,), what the factor adds to the layer's bias before scaling; None without `lora_bias`.
    """

    A: Tensor
    B: Tensor
    scale: float
    bias: Tensor | None = None

    @property
    def rank(self) -> int:
        """Columns of B, which is the rank of the product at most."""
        return self.B.shape[1]

    def matrices(self) -> tuple[Tensor, Tensor]:
        """``A`` as (rank, fan_in) and ``B`` as (out, rank)."""
        return self.A.flatten(1), self.B.flatten(1)

    def norm(self) -> float:
        """Frobenius norm of ``scale * B A``."""
        return abs(self.scale) * product_norm(*self.matrices())

    def spectrum(self) -> Tensor:
        """Singular values of ``scale * B A``, largest first, in float64."""
        return abs(self.scale) * product_spectrum(*self.matrices())


def product_norm(A: Float[Tensor, "rank in_"], B: Float[Tensor, "out rank"]) -> float:
    """Frobenius norm of ``B A`` through Gram matrices: ``|BA|^2 = <B^T B, A A^T>``.

    Returns:
        The norm, summed in float64.

    Example:
        >>> A, B = torch.randn(2, 5), torch.randn(7, 2)
        >>> abs(product_norm(A, B) - torch.linalg.norm(B @ A).item()) < 1e-4
        True
    """
    return _product_norm(A, B).item()


def product_norms(links: Mapping[str, Factors]) -> dict[str, float]:
    """Frobenius norm of each link; a device is waited for once.

    Returns:
        The norms by the links' names.

    Example:
        >>> link = Factors(torch.randn(2, 5), torch.randn(7, 2), 0.5)
        >>> product_norms({"q_proj": link}) == {"q_proj": link.norm()}
        True
    """
    norms = read([_product_norm(*link.matrices()) for link in links.values()])
    return {name: abs(link.scale) * norm for (name, link), (norm,) in zip(links.items(), norms, strict=True)}


def extremes(tensors: Sequence[Tensor]) -> list[tuple[float, float]]:
    """The least and the largest entry of each tensor, both nan where it holds one; a device is waited for once.

    Returns:
        The pairs, zeros for a tensor without entries.

    Example:
        >>> extremes([torch.tensor([[1.0, -3.0]]), torch.zeros(0)])
        [(-3.0, 1.0), (0.0, 0.0)]
    """
    kinds: dict[tuple[torch.device, torch.dtype], dict[int, Tensor]] = {}
    for place, tensor in enumerate(tensors):
        some = tensor.detach() if tensor.numel() else tensor.new_zeros(1)
        kinds.setdefault((tensor.device, tensor.dtype), {})[place] = some
    found: dict[int, tuple[float, float]] = {}
    for kind in kinds.values():
        # Two reductions are faster than `aminmax` on a CPU, by half.
        least, largest = ([end(tensor) for tensor in kind.values()] for end in (torch.amin, torch.amax))
        found.update(zip(kind, zip(torch.stack(least).tolist(), torch.stack(largest).tolist(), strict=True), strict=True))
    return [found[place] for place in range(len(tensors))]


def read(tensors: Sequence[Tensor]) -> list[list[float]]:
    """The entries of each tensor; a device is waited for once, however many lie on it.

    Returns:
        The entries in row-major order, as many lists as tensors.

    Example:
        >>> read([torch.ones(()), torch.zeros(1, 2)])
        [[1.0], [0.0, 0.0]]
    """
    kinds: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for tensor in tensors:
        kinds.setdefault((tensor.device, tensor.dtype), []).append(tensor.flatten())
    entries = {kind: iter(torch.cat(flat).tolist()) for kind, flat in kinds.items()}
    return [list(map(float, islice(entries[tensor.device, tensor.dtype], tensor.numel()))) for tensor in tensors]


def _product_norm(A: Float[Tensor, "rank in_"], B: Float[Tensor, "out rank"]) -> Float[Tensor, ""]:
    return torch.sum(_gram(B.mT) * _gram(A)).clamp_(min=0).sqrt_()


def _gram(M: Float[Tensor, "rank n"]) -> Float[Tensor, "rank rank"]:
    """``M M^T`` in float64, from a few columns at a time: a float64 copy of an embedding's factor would be large."""
    if M.numel() <= _PART:
        M = M.double()
        return M @ M.mT
    G = M.new_zeros(len(M), len(M), dtype=torch.float64)
    for part in M.split(max(1, _PART // len(M)), dim=1):
        part = part.double()
        G.addmm_(part, part.mT)
    return G


def product_svd(
    A: Float[Tensor, "rank in_"], B: Float[Tensor, "out rank"]
) -> tuple[Float[Tensor, "out k"], Float[Tensor, " k"], Float[Tensor, "k in_"]]:
    """Thin SVD ``B A = U diag(S) Vh`` in float64, with ``k = min(rank, out, in)`` singular triples.

    Returns:
        U, S (largest first) and Vh.

    Example:
        >>> A, B = torch.randn(2, 5), torch.randn(7, 2)
        >>> U, S, Vh = product_svd(A, B)
        >>> torch.allclose((U * S) @ Vh, (B @ A).double(), atol=1e-6)
        True
    """
    Q_B, R_B = torch.linalg.qr(B.double())
    Q_A, R_A = torch.linalg.qr(A.double().mT)
    U, S, Vh = svd(R_B @ R_A.mT)
    return Q_B @ U, S, Vh @ Q_A.mT


def svd(
    M: Float[Tensor, "m n"],
) -> tuple[Float[Tensor, "m k"], Float[Tensor, " k"], Float[Tensor, "k n"]]:
    """Thin SVD ``M = U diag(S) Vh``; where it does not converge, as rarely happens to one matrix, that of its triangle.

    With the thin QR ``M^T = Q R`` the singular values of M are those of ``R^T``, which the iteration begins elsewhere with.

    Returns:
        U, S (largest first) and Vh.

    Raises:
        DecompositionError: where neither converges, as with inf or nan in M.

    Example:
        >>> M = torch.randn(5, 3)
        >>> U, S, Vh = svd(M)
        >>> torch.allclose((U * S) @ Vh, M, atol=1e-5)
        True
    """
    try:
        return torch.linalg.svd(M, full_matrices=False)
    except _NOT_CONVERGED:
        pass
    try:
        Q, R = torch.linalg.qr(M.mT)
        U, S, Vh = torch.linalg.svd(R.mT, full_matrices=False)
    except _NOT_CONVERGED as error:
        raise DecompositionError(
            f"The SVD of a matrix of {len(M)} x {len(M.mT)} did not converge ({error}). What needs it was not done, and "
            "nothing was changed; an export needs none without `max_rank=` and `tolerance=`."
        ) from error
    return U, S, Vh @ Q.mT


def basis(Y: Float[Tensor, "n k"]) -> Float[Tensor, "n m"]:
    """Orthonormal columns that span those of Y, ``m = min(n, k)``: the Q of a thin QR.

    Returns:
        Q; where Y is short of rank, some of its columns span more.

    Example:
        >>> Y = torch.randn(6, 2)
        >>> torch.allclose(basis(Y) @ (basis(Y).mT @ Y), Y, atol=1e-6)
        True
    """
    return torch.linalg.qr(Y).Q


def top_directions(Z: Float[Tensor, "n k"]) -> Float[Tensor, "n m"]:
    """Left singular vectors of Z, the strongest first, ``m = min(n, k)``, through a k x k SVD.

    Returns:
        Orthonormal columns.

    Raises:
        DecompositionError: where the SVD does not converge.

    Example:
        >>> top_directions(torch.tensor([[0.0, 2.0], [3.0, 0.0]])).abs().round().tolist()
        [[0.0, 1.0], [1.0, 0.0]]
    """
    Q, R = torch.linalg.qr(Z)
    return Q @ svd(R)[0]


def product_spectrum(A: Float[Tensor, "rank in_"], B: Float[Tensor, "out rank"]) -> Float[Tensor, " k"]:
    """Singular values of ``B A``, largest first, in float64."""
    R_B = torch.linalg.qr(B.double(), mode="r").R
    R_A = torch.linalg.qr(A.double().mT, mode="r").R
    M = R_B @ R_A.mT
    try:
        return torch.linalg.svdvals(M)
    except _NOT_CONVERGED:
        return svd(M)[1]


def effective_rank(S: Float[Tensor, " k"]) -> float:
    """Exponential of the entropy of the normalised singular values, ``exp(-sum p log p)`` (Roy & Vetterli 2007).

    Returns:
        A number between 1 and the rank; 0 for the zero matrix.

    Example:
        >>> round(effective_rank(torch.ones(3)), 6)
        3.0
    """
    p = S[S > 0] / S.sum()
    return torch.exp(-(p * p.log()).sum()).item() if len(p) else 0.0


def stable_rank(S: Float[Tensor, " k"]) -> float:
    """``|M|_F^2 / |M|_2^2``, at most the rank and insensitive to small singular values.

    Returns:
        A number between 1 and the rank; 0 for the zero matrix.

    Example:
        >>> stable_rank(torch.tensor([2.0, 0.0]))
        1.0
    """
    return (S.square().sum() / S.max().square()).item() if len(S) and S.max() > 0 else 0.0


def truncation_rank(S: Float[Tensor, " k"], max_rank: int | None, tolerance: float | None) -> int:
    """Fewest singular values that keep ``sqrt(sum of the dropped squares) <= tolerance * |S|``, `max_rank` at most.

    Args:
        S: singular values, largest first.
        max_rank: a ceiling, or None.
        tolerance: relative Frobenius error to be kept, or None.

    Returns:
        The rank, at least 1.

    Example:
        >>> truncation_rank(torch.tensor([3.0, 4.0e-3]), None, 0.01)
        1
    """
    rank = len(S)
    if tolerance is not None:
        # tails[k] = sqrt(sum_{i >= k} S_i^2): what dropping all but the first k loses.
        tails = S.flip(0).square().cumsum(0).sqrt().flip(0)
        rank = int((tails > tolerance * torch.linalg.vector_norm(S)).sum())
    return max(1, rank if max_rank is None else min(rank, max_rank))
