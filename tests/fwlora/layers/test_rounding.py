"""Merging into half precision: the fast in-place merge against its exact float64 twin."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fwlora.layers import rounding
from fwlora.layers.rounding import RowMerge, restore, split

HALF = st.sampled_from([torch.bfloat16, torch.float16])


def updates(count: int, ratio: float, shape: tuple[int, int], rank: int = 8):
    """Random rank-r updates with |dW| = ratio |W| for W ~ 0.02 N(0, 1)."""
    generator = torch.Generator().manual_seed(0)
    W = 0.02 * torch.randn(*shape, generator=generator)
    for _ in range(count):
        B, A = torch.randn(shape[0], rank, generator=generator), torch.randn(rank, shape[1], generator=generator)
        yield B, A, ratio * W.norm().item() / (B @ A).norm().item()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_error_feedback_keeps_what_plain_rounding_loses(dtype):
    """Gain = <W' - W, sum dW> / |sum dW|^2 >= 0.98 after 30 merges at |dW|/|W| = 1e-3; plain bf16 merges keep half."""
    shape = (256, 192)
    W0 = (0.02 * torch.randn(shape)).to(dtype)
    W, plain, residual, exact = W0.clone(), W0.clone(), torch.zeros(shape, dtype=torch.int8), torch.zeros(shape).double()
    for B, A, scale in updates(30, 1e-3, shape):
        RowMerge(W, B, A, scale, residual).run()
        plain += (scale * (B @ A)).to(dtype)
        exact += scale * (B.double() @ A.double())

    def gain(weight: torch.Tensor) -> float:
        return (torch.sum((weight.double() - W0.double()) * exact) / exact.square().sum()).item()

    assert gain(W) >= 0.98
    assert abs(gain(restore(W, residual)) - 1) < 1e-3
    if dtype is torch.bfloat16:
        assert gain(plain) < 0.7


def test_weight_and_residual_follow_the_exact_sum():
    """|W + C - (W0 + sum dW)| / |sum dW| <= 1e-2 after 30 merges at 1e-3, whatever the rounding of W alone."""
    shape = (128, 128)
    W0 = (0.02 * torch.randn(shape)).bfloat16()
    W, residual, exact = W0.clone(), torch.zeros(shape, dtype=torch.int8), torch.zeros(shape).double()
    for B, A, scale in updates(30, 1e-3, shape):
        RowMerge(W, B, A, scale, residual).run()
        exact += scale * (B.double() @ A.double())
    error = restore(W, residual).double() - W0.double() - exact
    assert (error.norm() / exact.norm()).item() <= 1e-2


def test_sums_of_a_merge_tell_the_realised_projection():
    shape = (64, 64)
    W = (0.02 * torch.randn(shape)).bfloat16()
    before, residual = W.clone(), torch.zeros(shape, dtype=torch.int8)
    B, A, scale = next(updates(1, 1e-3, shape))
    merge = RowMerge(W, B, A, scale, residual)
    merge.run()
    asked = scale * (B.double() @ A.double())
    expected = torch.sum((W.double() - before.double()) * asked) / asked.square().sum()
    gain = merge.sums[0].sum().item() / asked.square().sum().item()
    assert gain == pytest.approx(expected.item(), rel=1e-4)
    assert 0.3 < gain < 0.8


@given(dtype=HALF, seed=st.integers(0, 2**16), exponent=st.integers(-8, 4))
def test_split_and_restore_are_inverse_to_sixteen_bits(dtype, seed, exponent):
    """|restore(split(E)) - E| <= ulp / 256: half a unit of rounding, and one where +128 is cut to +127."""
    E = torch.randn(64, generator=torch.Generator().manual_seed(seed)) * 2.0**exponent
    W, residual = split(E, dtype)
    assert torch.equal(W, E.to(dtype))
    assert bool(((restore(W, residual) - E).abs() <= rounding.ulp(W) / 256).all())


@given(
    dtype=HALF, seed=st.integers(0, 2**16), exponent=st.integers(-45, 15), rows=st.integers(1, 9), chunk=st.integers(1, 40)
)  # fmt: skip
def test_merge_in_place_is_restore_add_split_bit_for_bit(dtype, seed, exponent, rows, chunk):
    """(W', C') = split(restore(W, C) + s L R): with zeros, powers of two, subnormal and largest numbers among the entries."""
    generator = torch.Generator().manual_seed(seed)
    info = torch.finfo(dtype)
    W = (torch.randn(rows, 8, generator=generator) * 2.0**exponent).clamp(-info.max, info.max).to(dtype)
    special = torch.tensor([0, info.smallest_normal, -info.tiny * info.eps, 2.0**exponent, -info.max, info.max]).to(dtype)
    W[0, :6] = special
    residual = torch.randint(-128, 128, W.shape, generator=generator).to(torch.int8)
    L, R = torch.randn(rows, 1, generator=generator), torch.randn(1, 8, generator=generator) * 2.0**exponent
    expected = split(restore(W, residual) + (L @ R).mul_(0.25), dtype)
    original, rounding.CHUNK = rounding.CHUNK, chunk
    try:
        RowMerge(W, L, R, 0.25, residual).run()
    finally:
        rounding.CHUNK = original
    assert torch.equal(W, expected[0])
    assert torch.equal(residual, expected[1])
    assert W.isfinite().all()


def test_weight_at_the_end_of_its_format_stays_there_and_comes_back():
    """65504 + 100 is 65504 and nothing is kept of the rest; a later update towards zero counts in full."""
    W, residual = torch.tensor([[65504.0]]).half(), torch.zeros(1, 1, dtype=torch.int8)
    RowMerge(W, torch.ones(1, 1), torch.tensor([[100.0]]), 1.0, residual).run()
    assert (W.item(), residual.item()) == (65504.0, 0)
    RowMerge(W, torch.ones(1, 1), torch.tensor([[-320.0]]), 1.0, residual).run()
    assert (W.item(), residual.item()) == (65184.0, 0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_ulp_at_the_edges(dtype):
    info = torch.finfo(dtype)
    edges = torch.tensor([0.0, -1.0, 1.0, info.smallest_normal, info.max], dtype=dtype)
    largest = info.max / (2 - info.eps) * info.eps
    expected = [info.smallest_normal * info.eps, info.eps, info.eps, info.smallest_normal * info.eps, largest]
    assert rounding.ulp(edges).tolist() == expected


@given(
    rows=st.integers(1, 9), columns=st.integers(1, 9), rank=st.integers(1, 4), chunk=st.integers(1, 40),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]),
)  # fmt: skip
def test_chunked_merge_is_the_whole_merge(rows, columns, rank, chunk, dtype):
    """However the rows are cut, W + C is W0 + s L R to the last place that the storage has."""
    L, R = torch.randn(rows, rank), torch.randn(rank, columns)
    W0 = torch.randn(rows, columns).to(dtype)
    W = W0.clone()
    residual = torch.zeros(W.shape, dtype=torch.int8) if dtype in rounding.ROUNDED else None
    original, rounding.CHUNK = rounding.CHUNK, chunk
    try:
        RowMerge(W, L, R, 0.5, residual).run()
    finally:
        rounding.CHUNK = original
    update = 0.5 * (L.double() @ R.double())
    exact = W0.double() + update
    got = W.double() if residual is None else restore(W, residual).double()
    precision = {torch.float64: 1e-14, torch.float32: 1e-6, torch.bfloat16: 2e-4, torch.float16: 2e-5}[dtype]
    # Of what is added, not of the sum: two numbers that cancel leave their rounding errors.
    assert ((got - exact).norm() / (W0.double().norm() + update.norm())).item() < precision


def test_merge_works_on_any_memory_format():
    W = torch.randn(6, 4, 3, 3).to(memory_format=torch.channels_last)
    L, R = torch.randn(6, 2), torch.randn(2, 36)
    expected = W + (L @ R).reshape(W.shape)
    RowMerge(W, L, R, 1.0, None).run()
    torch.testing.assert_close(W, expected)
    assert W.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", [*rounding.ROUNDED, torch.float32], ids=str)
def test_merge_on_another_device_than_the_residuals_is_the_same_merge(monkeypatch, dtype):
    """Its chunks are larger, and a residual is moved through a buffer: what a CUDA weight takes, tried on a CPU."""
    shape = (96, 1024)
    results = []
    for is_device in (False, True):
        residual = torch.zeros(shape, dtype=torch.int8) if dtype in rounding.ROUNDED else None
        W = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
        if is_device:
            monkeypatch.setattr(rounding, "_on_host", lambda tensor: tensor.dtype == torch.int8)
        torch.manual_seed(1)
        for B, A, scale in updates(3, 1e-3, shape):
            merge = RowMerge(W, B, A, scale, residual)
            merge.run()
        results.append((W, residual, len(merge._chunks), merge._scratch and merge._scratch._units is not None))
    (W, residual, chunks, moved), (W_too, residual_too, fewer, moved_too) = results
    assert torch.allclose(W, W_too, rtol=1e-6)  # a float32 product may be cut otherwise
    assert dtype == torch.float32 or (torch.equal(W, W_too) and torch.equal(residual, residual_too))
    assert fewer < chunks
    assert dtype == torch.float32 or (not moved and moved_too)
