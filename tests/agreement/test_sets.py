"""fwlora's balls, which see singular values in torch, and theory's, which see matrices in numpy, are the same sets."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import fwlora.rules
import theory.sets
from theory.points import dense, inner


@st.composite
def pairs(draw: st.DrawFn):
    """The same ball twice, of any shape, radius and rank."""
    shape = (draw(st.integers(1, 7)), draw(st.integers(1, 7)))
    radius = draw(st.floats(1e-3, 1e3))
    if draw(st.booleans()):
        return fwlora.rules.NuclearBall(radius), theory.sets.NuclearBall(shape, radius)
    rank = draw(st.integers(1, min(shape)))
    return fwlora.rules.SupportBall(radius, rank), theory.sets.SupportBall(shape, radius, rank)


@st.composite
def matrices(draw: st.DrawFn, shape: tuple[int, int]):
    """Random ones, ones short of rank, whole numbers, and ones with tied singular values or zero."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    G = rng.standard_normal(shape)
    kind = draw(st.sampled_from(["random", "short", "whole", "tied", "zero"]))
    if kind == "short":
        rank = draw(st.integers(1, min(shape)))
        return rng.standard_normal((shape[0], rank)) @ rng.standard_normal((rank, shape[1]))
    if kind == "whole":
        return (2 * G).round()
    if kind == "tied":
        U, _, Vt = np.linalg.svd(G, full_matrices=False)
        return (U * np.sort(rng.integers(0, 3, size=min(shape)))[::-1]) @ Vt
    return G if kind == "random" else np.zeros(shape)


def spectrum(X: np.ndarray) -> torch.Tensor:
    return torch.linalg.svdvals(torch.from_numpy(X))


@given(pair=pairs(), data=st.data())
@settings(max_examples=200, deadline=None)
def test_norm_dual_norm_and_membership_agree(pair, data):
    mine, theirs = pair
    X = data.draw(matrices(theirs.shape))
    S, size = spectrum(X), np.linalg.norm(X)
    assert mine.atom_rank == theirs.atom_rank
    assert mine.radius == theirs.radius
    assert mine.norm(S) == pytest.approx(theirs.norm(X), rel=1e-11, abs=1e-13 * size)
    assert mine.dual_norm(S) == pytest.approx(theirs.dual_norm(X), rel=1e-11, abs=1e-13 * size)
    for part, inside in [(0.999, True), (1.001, False)]:
        if size > 0:
            at = part * mine.radius / theirs.norm(X)
            assert mine.contains(at * S) == theirs.contains(at * X) == inside
    assert mine.contains(0 * S)
    assert theirs.contains(0 * X)


@given(pair=pairs(), data=st.data())
@settings(max_examples=200, deadline=None)
def test_oracles_answer_the_same_vertex(pair, data):
    """Always of the same worth; the same matrix where the r-th singular value is not tied with the next."""
    mine, theirs = pair
    G = data.draw(matrices(theirs.shape))
    U, S, Vh = torch.linalg.svd(torch.from_numpy(G), full_matrices=False)
    V = (-mine.radius * (U * mine.vertex_weights(S)) @ Vh).numpy()
    W = dense(theirs.lmo(G))
    size = mine.radius * (1 + np.linalg.norm(G))
    assert inner(G, V) == pytest.approx(inner(G, W), abs=1e-12 * size)
    assert theirs.contains(V)
    assert np.linalg.norm(V) == pytest.approx(np.linalg.norm(W))
    r = mine.atom_rank
    gap = S[r - 1] - (S[r] if r < len(S) else 0.0)
    if gap > 1e-3 * S[0]:
        np.testing.assert_allclose(V, W, atol=1e-9 * size)


@given(data=st.data(), beyond=st.integers(1, 5), radius=st.floats(1e-3, 1e3))
def test_rank_beyond_the_matrix_is_the_full_rank(data, beyond, radius):
    """A ball of fwlora serves sites of many shapes; theory's, of one shape, takes no larger rank than there is."""
    shape = data.draw(st.tuples(st.integers(1, 5), st.integers(1, 5)))
    full = min(shape)
    mine, theirs = fwlora.rules.SupportBall(radius, full + beyond), theory.sets.SupportBall(shape, radius, full)
    X = data.draw(matrices(shape))
    assert mine.norm(spectrum(X)) == pytest.approx(theirs.norm(X), rel=1e-11)
    assert mine.dual_norm(spectrum(X)) == pytest.approx(theirs.dual_norm(X), rel=1e-11)
    assert len(mine.vertex_weights(spectrum(X))) == full
