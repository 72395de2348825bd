"""Every set, found by walking the folder: its oracle minimises, its numbers bound it, and it can tell what lies inside."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from theory import sets
from theory.discovery import concrete_classes
from theory.errors import ArgumentError
from theory.points import dense, inner
from theory.sets import ConvexSet, NormBall, NuclearBall, Product

KINDS = concrete_classes(sets, ConvexSet)
EXAMPLES = [K for kind in KINDS for K in kind.examples()]
SEEDS = st.integers(0, 2**32 - 1)
DTYPES = [np.float64, np.float32, np.int64]


def draw(K: ConvexSet, seed: int, dtype: type = np.float64) -> np.ndarray:
    G = np.random.default_rng(seed).standard_normal(K.shape)
    return (8 * G).round().astype(dtype) if dtype is np.int64 else G.astype(dtype)


@st.composite
def any_set(draw: st.DrawFn) -> ConvexSet:
    """A set of any kind, shape and size; a product of two of them."""
    d, k = draw(st.integers(1, 7)), draw(st.integers(1, 7))
    size = draw(st.floats(1e-3, 1e3))
    plain = [
        sets.NuclearBall((d, k), size), sets.SupportBall((d, k), size, draw(st.integers(1, min(d, k)))),
        sets.SpectralBall((d, k), size), sets.FrobeniusBall((d, k), size), sets.FrobeniusBall(d, size),
        sets.L1Ball((d, k), size), sets.L1Ball(k, size), sets.Simplex(d, size),
    ]  # fmt: skip
    return draw(st.sampled_from([*plain, Product([draw(st.sampled_from(plain)), draw(st.sampled_from(plain))])]))


@given(K=any_set(), seed=SEEDS, dtype=st.sampled_from(DTYPES))
@settings(max_examples=200, deadline=None)
def test_oracle_support_and_membership_agree_at_any_size(K: ConvexSet, seed: int, dtype: type):
    """``lmo(G)`` lies in K and is worth ``-support(-G)``, the least over K; D and R bound what was sampled."""
    rng, G = np.random.default_rng(seed), draw(K, seed, dtype)
    V, scale = dense(K.lmo(G)), K.diameter * (1 + float(np.linalg.norm(G)))
    assert V.shape == K.shape
    assert K.contains(V)
    assert inner(G.astype(float), V) == pytest.approx(-K.support(-G), abs=1e-9 * scale + 1e-12)
    X = K.sample(rng)
    assert K.contains(X)
    assert np.vdot(G, V) <= np.vdot(G, X) + 1e-9 * scale + 1e-12
    rounding = 1e-9 * float(np.linalg.norm(V))
    assert np.linalg.norm(X - V) <= K.diameter + rounding
    assert np.linalg.norm(X - K.centre) <= K.radius + rounding
    assert K.rank(V) <= K.atom_rank


def test_the_folder_holds_the_sets_that_are_promised():
    names = {kind.__name__ for kind in KINDS}
    assert names == {
        "NuclearBall", "SupportBall", "SpectralBall", "FrobeniusBall", "L1Ball", "Simplex", "Product",
    }  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: d.__name__)
@pytest.mark.parametrize("K", EXAMPLES, ids=repr)
@given(seed=SEEDS)
@settings(max_examples=10, deadline=None)
def test_lmo_is_feasible(K: ConvexSet, dtype: type, seed: int):
    V = dense(K.lmo(draw(K, seed, dtype)))
    assert V.dtype == np.float64
    assert K.contains(V)


@pytest.mark.parametrize("K", EXAMPLES, ids=repr)
@given(seed=SEEDS)
@settings(max_examples=15, deadline=None)
def test_lmo_beats_every_sampled_point(K: ConvexSet, seed: int):
    """``<G, lmo(G)> <= <G, X>`` for X in K."""
    rng, G = np.random.default_rng(seed), draw(K, seed)
    least = inner(G, K.lmo(G))
    for _ in range(10):
        X = K.sample(rng)
        assert K.contains(X)
        assert least <= np.vdot(G, X) + 1e-9 * K.radius * np.linalg.norm(G)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: d.__name__)
@pytest.mark.parametrize("K", EXAMPLES, ids=repr)
@given(seed=SEEDS)
@settings(max_examples=10, deadline=None)
def test_lmo_attains_support(K: ConvexSet, dtype: type, seed: int):
    """``<G, lmo(G)> = -support(-G)``."""
    G = draw(K, seed, dtype)
    assert inner(G.astype(float), K.lmo(G)) == pytest.approx(-K.support(-G), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if issubclass(kind, NormBall)], ids=lambda k: k.__name__)
@given(seed=SEEDS, factor=st.floats(0.01, 100))
@settings(max_examples=10, deadline=None)
def test_lmo_scales_with_radius(kind: type[NormBall], seed: int, factor: float):
    for K in kind.examples():
        G = draw(K, seed)
        larger = type(K)(K.shape, factor * K.radius, **({"rank": K.atom_rank} if kind is sets.SupportBall else {}))
        assert np.allclose(dense(larger.lmo(G)), factor * dense(K.lmo(G)))
        assert np.allclose(dense(K.lmo(factor * G)), dense(K.lmo(G)))
        assert larger.diameter == pytest.approx(factor * K.diameter)


@pytest.mark.parametrize("K", EXAMPLES, ids=repr)
@given(seed=SEEDS)
@settings(max_examples=15, deadline=None)
def test_diameter_and_radius_bound_sampled_points(K: ConvexSet, seed: int):
    rng = np.random.default_rng(seed)
    X, Y = K.sample(rng), K.sample(rng)
    assert np.linalg.norm(X - Y) <= K.diameter * (1 + 1e-12)
    assert np.linalg.norm(X - K.centre) <= K.radius * (1 + 1e-12)
    # Jung: D/2 <= R <= D/sqrt 2
    assert K.diameter / 2 * (1 - 1e-12) <= K.radius <= K.diameter / np.sqrt(2) * (1 + 1e-12)


@pytest.mark.parametrize("K", EXAMPLES, ids=repr)
def test_diameter_and_radius_are_attained_by_vertices(K: ConvexSet):
    """Opposite vertices of the balls, two corners of the simplex, and both in a product."""
    G = K.gradient(draw(K, 1))
    spread = max(np.linalg.norm(dense(K.lmo(G)) - dense(K.lmo(other))) for other in (-G, np.roll(G, 1), np.roll(-G, 1)))
    reach = np.linalg.norm(dense(K.lmo(G)) - K.centre)
    assert spread == pytest.approx(K.diameter)
    assert reach == pytest.approx(K.radius)


@pytest.mark.parametrize("K", EXAMPLES, ids=repr)
def test_points_outside_are_told_apart(K: ConvexSet):
    """Beyond a vertex, and moved off the simplex's plane."""
    V = dense(K.lmo(draw(K, 3)))
    assert K.contains(V)
    assert not K.contains(K.centre + 1.01 * (V - K.centre))


@pytest.mark.parametrize("K", EXAMPLES, ids=repr)
@given(seed=SEEDS)
@settings(max_examples=10, deadline=None)
def test_a_vertex_is_one_atom(K: ConvexSet, seed: int):
    assert K.rank(dense(K.lmo(draw(K, seed)))) <= K.atom_rank


@pytest.mark.parametrize("K", EXAMPLES, ids=repr)
def test_a_zero_gradient_gets_a_vertex_too(K: ConvexSet):
    V = dense(K.lmo(np.zeros(K.shape)))
    assert K.contains(V)
    assert np.linalg.norm(V - K.centre) == pytest.approx(K.radius)


@pytest.mark.parametrize("bad", ["nan", "infinite", "shape", "complex"])
@pytest.mark.parametrize("K", EXAMPLES, ids=repr)
def test_bad_gradients_are_refused_by_name(K: ConvexSet, bad: str):
    G = np.ones(K.shape)
    if bad == "shape":
        G, words = np.ones((2, *K.shape)), "must have shape"
    elif bad == "complex":
        G, words = G * 1j, "must hold real numbers"
    else:
        G.flat[0], words = np.nan if bad == "nan" else np.inf, "must be finite"
    for ask in (K.lmo, K.support):
        with pytest.raises(ArgumentError, match=words):
            ask(G)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: sets.NuclearBall((3, 2), radius=-1.0), "`radius` must be a finite number above 0, and is -1.0"),
        (lambda: sets.L1Ball(3, radius=float("nan")), "`radius` must be"),
        (lambda: sets.FrobeniusBall(3, radius="wide"), "`radius` must be a number"),  # pyright: ignore[reportArgumentType]
        (lambda: sets.SpectralBall((3, 2), bound=0.0), "`bound` must be"),
        (lambda: sets.Simplex(0), "`size` must be a whole number of at least 1"),
        (lambda: sets.L1Ball(2.5), "`shape` must be a whole number"),
        (lambda: sets.Simplex(3, scale=-2.0), "`scale` must be"),
        (lambda: sets.SupportBall((3, 2), rank=3), r"`SupportBall\(rank=3\)` exceeds the smaller side"),
        (lambda: sets.SupportBall((3, 2), rank=0), "`rank` must be"),
        (lambda: sets.NuclearBall((3,)), "is a set of matrices"),
        (lambda: sets.Product([]), "has no layer"),
    ],
)
def test_bad_sets_are_refused_by_name(make, words: str):
    with pytest.raises(ArgumentError, match=words):
        make()


def test_a_product_separates_over_its_layers():
    """The oracle, the support and the gap are the layers' own."""
    K = Product([NuclearBall((3, 2)), sets.SpectralBall((2, 2)), sets.Simplex(3)])
    rng = np.random.default_rng(0)
    G, W = rng.standard_normal(K.shape), K.sample(rng)
    layers = list(zip(K.sets, K.split(G), K.split(W), strict=True))
    assert np.allclose(K.join([layer.lmo(g) for layer, g, _ in layers]), K.lmo(G))
    gap = np.vdot(G, W) + K.support(-G)
    assert gap == pytest.approx(sum(np.vdot(g, w) + layer.support(-g) for layer, g, w in layers))
    assert K.diameter**2 == pytest.approx(sum(layer.diameter**2 for layer in K.sets))


def test_support_ball_is_the_nuclear_and_the_frobenius_ball_at_its_ends():
    rng = np.random.default_rng(0)
    for _ in range(20):
        X = rng.standard_normal((4, 3))
        assert sets.SupportBall((4, 3), rank=1).norm(X) == pytest.approx(np.linalg.svd(X, compute_uv=False).sum())
        assert sets.SupportBall((4, 3), rank=3).norm(X) == pytest.approx(np.linalg.norm(X))


def test_projection_of_a_point_too_far_away_for_float64_is_a_vertex():
    P = NuclearBall((2, 2), radius=1e-8).project(1e10 * np.ones((2, 2)))
    assert np.allclose(P, 0.5e-8 * np.ones((2, 2)), rtol=1e-9)


def test_projection_onto_the_nuclear_ball_is_the_nearest_point():
    """``<X - P, V - P> <= 0`` for every V of the ball."""
    K, rng = NuclearBall((4, 3), radius=1.5), np.random.default_rng(0)
    for _ in range(20):
        X = rng.standard_normal((4, 3))
        P = K.project(X)
        assert K.contains(P)
        assert K.support(X - P) - np.vdot(X - P, P) <= 1e-10
    inside = 0.1 * K.sample(rng)
    assert np.array_equal(K.project(inside), inside)
