"""The nuclear ball's oracle takes what has products, and never makes a dense matrix of it."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from scipy import sparse
from scipy.sparse.linalg import LinearOperator, aslinearoperator

from theory.errors import ArgumentError, ConvergenceError
from theory.points import LowRank, inner
from theory.sets import NuclearBall, nuclear_ball


def forms(G: np.ndarray) -> dict:
    return {
        "csr": sparse.csr_array(G), "csc": sparse.csc_array(G), "coo": sparse.coo_array(G), "matrix": sparse.csr_matrix(G),
        "operator": aslinearoperator(G),
    }  # fmt: skip


@pytest.mark.parametrize("form", ["csr", "csc", "coo", "matrix", "operator"])
@pytest.mark.parametrize("shape", [(30, 20), (20, 30), (1, 5), (5, 1)], ids=str)
def test_products_alone_give_the_dense_answer(form: str, shape: tuple[int, int]):
    dense = np.random.default_rng(0).standard_normal(shape)
    K, G = NuclearBall(shape, radius=2.0), forms(dense)[form]
    assert K.support(G) == pytest.approx(K.support(dense), rel=1e-12)
    assert inner(G, K.lmo(G)) == pytest.approx(-K.support(dense), rel=1e-12)
    assert np.allclose(K.lmo(G).dense(), K.lmo(dense).dense(), atol=1e-9)


def test_the_vertex_is_a_structured_atom_of_rank_one():
    V = NuclearBall((5, 4), radius=3.0).lmo(np.random.default_rng(0).standard_normal((5, 4)))
    assert isinstance(V, LowRank)
    assert V.rank == 1
    assert V.norm() == pytest.approx(3.0)


def test_a_sparse_gradient_is_never_made_dense():
    """A 60,000 x 40,000 matrix would take 19 GB."""
    rng, n, (d, k) = np.random.default_rng(0), 20_000, (60_000, 40_000)
    values = rng.standard_normal(n)
    values[0] = 40.0  # a singular value well above the others
    G = sparse.csr_array((values, (rng.integers(d, size=n), rng.integers(k, size=n))), shape=(d, k))
    tracemalloc.start()
    V = NuclearBall((d, k)).lmo(G)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert inner(G, V) == pytest.approx(-40.0, rel=0.01)
    assert peak < 200e6


def test_an_operator_of_another_shape_is_refused():
    with pytest.raises(ArgumentError, match="must have shape"):
        NuclearBall((3, 2)).lmo(sparse.csr_array(np.ones((2, 3))))


def test_products_that_are_not_finite_are_refused():
    broken = LinearOperator((3, 2), matvec=lambda x: np.full(3, np.nan), rmatvec=lambda y: np.ones(2), dtype=float)
    with pytest.raises(ArgumentError, match="not finite"):
        NuclearBall((3, 2)).lmo(broken)
    with pytest.raises(ArgumentError, match="not finite"):
        NuclearBall((3, 2)).lmo(sparse.csr_array(np.array([[np.inf, 0], [0, 1], [0, 0]])))


def test_a_complex_operator_is_refused():
    with pytest.raises(ArgumentError, match="must hold real numbers"):
        NuclearBall((3, 2)).lmo(sparse.csr_array(1j * np.ones((3, 2))))


def test_an_oracle_that_does_not_settle_says_so(monkeypatch):
    """Two steps and no restart, on a matrix that needs more."""
    monkeypatch.setattr(nuclear_ball, "STEPS", 2)
    monkeypatch.setattr(nuclear_ball, "RESTARTS", 0)
    G = sparse.csr_array(np.random.default_rng(0).standard_normal((30, 20)))
    with pytest.raises(ConvergenceError, match="did not settle: relative residual"):
        NuclearBall((30, 20)).lmo(G)
