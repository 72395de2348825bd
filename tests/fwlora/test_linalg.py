"""Kernels on products of factors against the dense matrices that they never form."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fwlora import linalg

SHAPES = st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(1, 12))


def product(shape: tuple[int, int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    out, in_, rank = shape
    return torch.randn(rank, in_).double(), torch.randn(out, rank).double()


@given(shape=SHAPES)
def test_spectrum_is_the_dense_spectrum(shape):
    """sigma(B A) = sigma(R_B R_A^T), also where the rank exceeds the matrix."""
    A, B = product(shape)
    dense = torch.linalg.svdvals(B @ A)
    S = linalg.product_spectrum(A, B)
    torch.testing.assert_close(S[: len(dense)], dense[: len(S)], rtol=1e-9, atol=1e-9)
    assert linalg.product_norm(A, B) == pytest.approx(torch.linalg.norm(B @ A).item(), rel=1e-9, abs=1e-9)


@given(shape=SHAPES)
def test_svd_multiplies_back_with_orthonormal_sides(shape):
    A, B = product(shape)
    U, S, Vh = linalg.product_svd(A, B)
    torch.testing.assert_close((U * S) @ Vh, B @ A, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(U.mT @ U, torch.eye(U.shape[1]).double(), rtol=0, atol=1e-9)
    torch.testing.assert_close(Vh @ Vh.mT, torch.eye(Vh.shape[0]).double(), rtol=0, atol=1e-9)


@given(values=st.lists(st.floats(0.01, 10), min_size=1, max_size=8), tolerance=st.floats(0.001, 0.9))
def test_truncation_rank_is_the_smallest_within_tolerance(values, tolerance):
    S = torch.tensor(sorted(values, reverse=True), dtype=torch.float64)
    rank = linalg.truncation_rank(S, None, tolerance)
    assert S[rank:].norm() <= tolerance * S.norm() * (1 + 1e-12)
    assert rank == 1 or S[rank - 1 :].norm() > tolerance * S.norm() * (1 - 1e-12)
    assert linalg.truncation_rank(S, 2, tolerance) == min(2, rank)


def test_ranks_of_the_zero_matrix_are_zero():
    assert linalg.effective_rank(torch.zeros(3)) == linalg.stable_rank(torch.zeros(3)) == 0.0


def test_factors_that_do_not_fit_are_refused():
    """A rank-1 A would broadcast in silence over a rank-2 B."""
    with pytest.raises(Exception, match="rank"):
        linalg.product_norm(torch.randn(1, 3), torch.randn(4, 2))
