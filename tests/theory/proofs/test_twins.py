"""Python and Coq say the same: the same theorems, the same assumptions, the same numbers."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from theory.bounds import DriftBound, all_bounds
from theory.bounds.huber import phi, phi_inverse
from theory.proofs import FOLDER, Definition, Source, Twin, evaluate, page, twins
from theory.step_sizes import Anytime, Centred, ShortStep, Step, best_fixed
from theory.trajectory import Constants

POSITIVE = st.fractions(0, 20, max_denominator=50)
HORIZONS = st.integers(3, 200)
NAMES = [twin.theorem for twin in twins()]
HUBER, ASSUMPTIONS, CIRCUMRADIUS = (
    Source(FOLDER / f"{name}.v").definitions for name in ("huber", "assumptions", "circumradius")
)
PAGE = Path(__file__).parents[3] / "docs" / "theory" / "proofs.md"


def closed_forms(twin: Twin) -> list[Definition]:
    """What the theorem's statements call the value."""
    used = twin.source.used(twin.statements())
    return [twin.source.definitions[name] for name in used if name.startswith("value")]


def near(value: float) -> object:
    """To float64's accuracy."""
    return pytest.approx(value, rel=1e-12, abs=1e-12)


def test_every_bound_has_its_theorem_and_every_theorem_file_its_bound():
    assert NAMES == [type(bound).__name__ for bound in all_bounds()]
    assert all(twin.theorem in twin.source.theorems for twin in twins())
    assert all(f"theory/proofs/{twin.source.path.name}" in (type(twin.bound).__doc__ or "") for twin in twins())


@pytest.mark.parametrize("twin", twins(), ids=NAMES)
def test_both_assume_the_same(twin):
    assert [twin.assumed(statement) for statement in twin.statements()] == [twin.required()] * len(twin.statements())


@pytest.mark.parametrize("twin", twins(), ids=NAMES)
@given(
    beta=POSITIVE, diameter=POSITIVE, radius=POSITIVE, start=POSITIVE, M=POSITIVE, Mo=POSITIVE, eps=POSITIVE, T=HORIZONS,
    up=POSITIVE, down=POSITIVE,
)  # fmt: skip
def test_both_have_the_same_value(twin, beta, diameter, radius, start, M, Mo, eps, T, up, down):
    C = beta * diameter**2
    assume(C > 0)
    numbers = {
        "M": M, "Mo": Mo, "C": C, "beta": beta, "radius": radius, "T": Fraction(T), "eps": eps, "up": up, "down": down,
        "delta": eps * (T + 1) / C,  # eps_t <= delta eta_t C/2 with eta_t = 2/(t + 1)
    }  # fmt: skip
    for form in closed_forms(twin):
        start_distance = 0.0 if form.name == "value_from_centre" else float(start + 1)
        constants = Constants(float(beta), float(diameter), float(radius), float(M), float(Mo), start_distance)
        bound = DriftBound(float(up), float(down)) if isinstance(twin.bound, DriftBound) else twin.bound
        # where Coq's value knows the shortfall, Python's is asked with it; elsewhere it is added to both
        inside = {"eps", "delta"} & set(form.parameters)
        value = evaluate(form, HUBER | twin.source.definitions, numbers)
        assert float(value) == near(bound.value(T, constants, float(eps) if inside else 0.0))


@given(g=POSITIVE, C=POSITIVE)
def test_both_have_the_same_huber_function(g, C):
    for name, function in (("phi", phi), ("phi_inverse", phi_inverse)):
        definition = HUBER[name]
        values = dict(zip(definition.parameters, (g, C), strict=True))
        assert float(evaluate(definition, HUBER, values)) == near(float(function(float(g), float(C))))


@given(M=POSITIVE, C=POSITIVE, T=HORIZONS)
def test_both_tune_the_fixed_step_alike(M, C, T):
    step = evaluate(HUBER["best_fixed"], HUBER, {"M": M, "C": C, "n": Fraction(T)})
    assert float(step) == near(best_fixed(float(M), float(C), T))


@given(
    beta=POSITIVE, diameter=POSITIVE, radius=POSITIVE, M=POSITIVE, Mo=POSITIVE, T=HORIZONS, away=st.booleans(),
    ghat=POSITIVE, distance=POSITIVE,
)  # fmt: skip
def test_both_make_the_same_steps(beta, diameter, radius, M, Mo, T, away, ghat, distance):
    constants = Constants(*(float(x) for x in (beta, diameter, radius, M, Mo, away)))
    step = Step(T, T, float(ghat), float(distance), constants, along=lambda eta: 0.0)
    ours = {
        "anytime": (Anytime(), {"Mo": Mo, "C": beta * diameter**2, "t": Fraction(T)}),
        "short_step": (ShortStep(), {"ghat": ghat, "bend": beta * distance**2}),
        "step_from_anywhere" if away else "step_from_centre":
            (Centred(), {"M": M, "beta": beta, "radius": radius, "T": Fraction(T)}),
    }  # fmt: skip
    definitions = ASSUMPTIONS | CIRCUMRADIUS
    for name, (rule, values) in ours.items():
        assert float(evaluate(definitions[name], definitions, values)) == near(rule.eta(step))


def test_the_page_is_up_to_date():
    assert PAGE.read_text(encoding="utf-8") == page(), "run `python -m theory.proofs --page docs/theory/proofs.md`"


def test_the_page_names_every_assumption_of_both():
    text = page()
    for twin in twins():
        pairs = zip(twin.bound.requires, twin.shared(twin.statements()[0]), strict=True)
        assert all(f"`{asked!r}` | `{said}`" in text for asked, said in pairs)
        assert all(f"`{said}`" in text for said in twin.others())
