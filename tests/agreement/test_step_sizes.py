"""fwlora's step sizes, which see a knot, and theory's, which see an iteration, say the same of the same numbers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fwlora import rules
from theory import step_sizes
from theory.trajectory import Constants

numbers = st.floats(1e-3, 1e3)


def facts(knot: int = 0, gap: float | None = None, distance: float | None = None) -> rules.Retiring:
    return rules.Retiring(knot, {}, gap, distance)


def step(t: int = 1, T: int = 10, ghat: float = 1.0, distance: float = 1.0, constants: Constants | None = None):
    constants = constants or Constants(1.0, 2.0, 1.0, 1.0, 1.0, start_distance=0.0)
    return step_sizes.Step(t, T, ghat, distance, constants, along=None)  # pyright: ignore[reportArgumentType]


@given(value=st.floats(1e-3, 1), knot=st.integers(0, 99))
def test_fixed_and_open_loop_agree_at_every_knot(value, knot):
    """The knot after k others is iteration k + 1."""
    assert rules.Fixed(value).eta(facts(knot), 1.0) == step_sizes.Fixed(value).eta(step(t=knot + 1))
    assert rules.OpenLoop().eta(facts(knot), 1.0) == step_sizes.OpenLoop().eta(step(t=knot + 1))


@given(beta=numbers, M=numbers, R=numbers, T=st.integers(1, 500))
def test_centred_agrees_from_the_centre(beta, M, R, T):
    """A fresh chain starts at its balls' centre."""
    constants = Constants(beta, 2 * R, R, M, M, start_distance=0.0)
    theirs = step_sizes.Centred().eta(step(T=T, constants=constants))
    assert rules.Centred(beta, M, T).eta(facts(), R) == pytest.approx(theirs, rel=1e-12)


@given(beta=numbers, gap=st.floats(-1e3, 1e3), distance=numbers)
def test_short_step_agrees(beta, gap, distance):
    constants = Constants(beta, 2.0, 1.0, 1.0, 1.0, start_distance=0.0)
    theirs = step_sizes.ShortStep().eta(step(ghat=gap, distance=distance, constants=constants))
    assert rules.ShortStep(beta).eta(facts(gap=gap, distance=distance), 1.0) == theirs
