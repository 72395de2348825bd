"""The balls keep the promises of norms: duality, vertices on the boundary, the limits that they are known by."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fwlora.errors import ArgumentError
from fwlora.rules import NuclearBall, SupportBall

BALLS = [NuclearBall(2.0), SupportBall(0.5, rank=1), SupportBall(2.0, rank=2), SupportBall(3.0, rank=4)]
balls = st.sampled_from(BALLS)
SIZES = st.tuples(st.integers(1, 7), st.integers(1, 7))
# Ties and zeros come from the few values, everything else from the many.
values = st.one_of(st.sampled_from([0.0, 1.0, 2.0]), st.floats(1e-3, 10))
spectra = st.lists(values, min_size=1, max_size=8).map(lambda v: torch.tensor(sorted(v, reverse=True), dtype=torch.float64))


def draw(size: tuple[int, int]) -> torch.Tensor:
    return torch.randn(size, dtype=torch.float64)


def norm_of(ball, X: torch.Tensor) -> float:
    return ball.norm(torch.linalg.svdvals(X))


def lmo(ball, G: torch.Tensor) -> torch.Tensor:
    U, S, Vh = torch.linalg.svd(G, full_matrices=False)
    return -ball.radius * (U * ball.vertex_weights(S)) @ Vh


@given(ball=balls, size=SIZES)
def test_oracle_answers_a_vertex_worth_the_dual_norm(ball, size):
    """<G, lmo(G)> = -radius |G|_dual, on the boundary in the ball's norm and in Frobenius', of the atom's rank."""
    G = draw(size)
    V = lmo(ball, G)
    assert torch.sum(G * V).item() == pytest.approx(-ball.radius * ball.dual_norm(torch.linalg.svdvals(G)))
    assert norm_of(ball, V) == pytest.approx(ball.radius)
    assert torch.linalg.norm(V).item() == pytest.approx(ball.radius)
    assert torch.linalg.matrix_rank(V) <= ball.atom_rank
    assert ball.contains(torch.linalg.svdvals(V))
    assert not ball.contains(torch.linalg.svdvals(1.01 * V))


@given(ball=balls, size=SIZES)
def test_norm_and_dual_norm_bound_every_inner_product(ball, size):
    """Hölder: |<G, X>| <= |G|_dual |X|; and the triangle inequality."""
    G, X = draw(size), draw(size)
    dual = ball.dual_norm(torch.linalg.svdvals(G))
    assert abs(torch.sum(G * X).item()) <= dual * norm_of(ball, X) * (1 + 1e-12)
    assert norm_of(ball, G + X) <= (norm_of(ball, G) + norm_of(ball, X)) * (1 + 1e-12)


@given(rank=st.integers(1, 9), S=spectra)
def test_support_norm_is_what_its_best_certificate_gives(rank, S):
    """The norm is max <S, T> over |T|_{F,r} <= 1, the T being S itself flattened from j on, of which one is the best."""
    ball = SupportBall(1.0, rank)
    norm, most = ball.norm(S), 0.0
    for j in range(min(rank, len(S))):
        T = S.clone()
        T[j:] = S[j:].sum() / (min(rank, len(S)) - j)
        dual = ball.dual_norm(T.sort(descending=True).values)
        most = max(most, (S @ T).item() / dual if dual > 0 else 0.0)
    assert norm == pytest.approx(most, rel=1e-12)


@given(S=spectra, rank=st.integers(1, 9))
def test_support_norm_falls_from_nuclear_to_frobenius(S, rank):
    """Rank one is the nuclear ball, a rank that no matrix exceeds the Frobenius ball; between them it falls."""
    nuclear, frobenius = NuclearBall(1.0), torch.linalg.vector_norm(S).item()
    assert SupportBall(1.0, 1).norm(S) == pytest.approx(nuclear.norm(S))
    assert SupportBall(1.0, 1).dual_norm(S) == pytest.approx(nuclear.dual_norm(S))
    assert SupportBall(1.0, len(S) + rank).norm(S) == pytest.approx(frobenius)
    assert SupportBall(1.0, len(S) + rank).dual_norm(S) == pytest.approx(frobenius)
    assert SupportBall(1.0, rank + 1).norm(S) <= SupportBall(1.0, rank).norm(S) * (1 + 1e-12)
    assert SupportBall(1.0, rank).norm(S) >= frobenius * (1 - 1e-12)


@given(ball=balls, S=spectra, power=st.sampled_from([-300, -200, 200, 300]))
def test_norms_scale_where_squares_would_not_fit(ball, S, power):
    size = 10.0**power
    assert ball.norm(size * S) == pytest.approx(size * ball.norm(S), rel=1e-12, abs=0)
    assert ball.dual_norm(size * S) == pytest.approx(size * ball.dual_norm(S), rel=1e-12, abs=0)
    torch.testing.assert_close(ball.vertex_weights(size * S), ball.vertex_weights(S))


@pytest.mark.parametrize("ball", BALLS, ids=repr)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_any_precision_is_read_and_python_numbers_are_returned(ball, dtype):
    S = torch.tensor([4.0, 2.0, 1.0, 0.0, 0.0], dtype=dtype)
    weights = ball.vertex_weights(S)
    assert weights.dtype == dtype
    assert weights.device == S.device
    assert weights.shape == S.shape
    assert not weights[ball.atom_rank :].any()
    assert type(ball.norm(S)) is type(ball.dual_norm(S)) is float
    assert ball.norm(S) == pytest.approx(ball.norm(S.double()))


@pytest.mark.parametrize("ball", BALLS, ids=repr)
def test_zero_has_norm_zero_and_the_first_atoms_for_a_vertex(ball):
    zero = torch.zeros(5, dtype=torch.float64)
    weights = ball.vertex_weights(zero)
    assert ball.norm(zero) == ball.dual_norm(zero) == 0.0
    assert ball.contains(zero)
    assert torch.equal(weights > 0, torch.arange(5) < ball.atom_rank)
    assert ball.norm(weights) == pytest.approx(1.0)
    assert ball.norm(zero[:0]) == ball.dual_norm(zero[:0]) == 0.0
    assert len(ball.vertex_weights(zero[:0])) == 0


@pytest.mark.parametrize("ball", BALLS, ids=repr)
def test_nan_is_in_no_ball(ball):
    S = torch.full((3,), math.nan)
    assert math.isnan(ball.norm(S))
    assert not ball.contains(S)
    assert ball.vertex_weights(S)[: ball.atom_rank].isnan().all() or ball == NuclearBall(2.0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: NuclearBall(0), r"`NuclearBall\(radius=\.\.\.\)` .* got 0\."),
        (lambda: NuclearBall(math.inf), "inf"),
        (lambda: NuclearBall(math.nan), "nan"),
        (lambda: NuclearBall(True), "True"),
        (lambda: NuclearBall("2"), "'2'"),
        (lambda: SupportBall(-1.0, rank=2), r"`SupportBall\(radius=\.\.\.\)` .* got -1\.0"),
        (lambda: SupportBall(1.0, rank=0), r"`SupportBall\(rank=\.\.\.\)` .* got 0\."),
        (lambda: SupportBall(1.0, rank=1.5), r"1\.5"),
        (lambda: SupportBall(1.0, rank=True), "True"),
    ],
)
def test_bad_argument_is_named_as_typed(make, message):
    with pytest.raises(ArgumentError, match=message):
        make()
