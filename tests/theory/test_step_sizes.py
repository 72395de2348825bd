"""The step sizes are what their theorems say."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize_scalar

from theory.errors import ArgumentError
from theory.frank_wolfe import frank_wolfe
from theory.problems import Completion, Concave, Logistic, WorstCase
from theory.step_sizes import Anytime, Centred, Fixed, LineSearch, OpenLoop, ShortStep, Step, StepSize, best_fixed
from theory.trajectory import Constants

CONSTANTS = Constants(beta=2.0, diameter=3.0, radius=1.5, initial_gap=4.0, oscillation=5.0, start_distance=0.0)


def step(t: int = 1, T: int = 50, ghat: float = 1.0, distance: float = 2.0, constants: Constants = CONSTANTS) -> Step:
    return Step(t, T, ghat, distance, constants, along=None)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("T", [1, 3, 10, 1000])
def test_best_fixed_minimises_theorem_a(T: int):
    """``M/(eta T) + C eta/2`` over (0, 1]."""
    found = minimize_scalar(lambda eta: 4 / (eta * T) + 9 * eta, bounds=(1e-9, 1), method="bounded", options={"xatol": 1e-12})
    assert best_fixed(4.0, 18.0, T) == pytest.approx(found.x, rel=1e-5)
    assert Fixed().eta(step(T=T)) == best_fixed(4.0, 18.0, T)
    assert Fixed(drift=6.0).eta(step(T=T)) == best_fixed(10.0, 18.0, T)


@pytest.mark.parametrize("start", [0.0, 1.5])
@pytest.mark.parametrize("T", [1, 3, 10, 1000])
def test_centred_minimises_theorem_c(T: int, start: float):
    """``M/(eta T) + beta (|W_1 - c|^2/(eta T) + R^2) eta/(2 (1 - eta))`` over (0, 1)."""
    constants = Constants(2.0, 3.0, 1.5, 4.0, 5.0, start_distance=start)

    def bound(eta: float) -> float:
        return 4 / (eta * T) + 2 * (start**2 / (eta * T) + 2.25) * eta / (2 * (1 - eta))

    found = minimize_scalar(bound, bounds=(1e-9, 1 - 1e-9), method="bounded", options={"xatol": 1e-12})
    eta = Centred().eta(step(T=T, constants=constants))
    assert eta == pytest.approx(found.x, rel=1e-4)
    assert eta < 1


def test_anytime_falls_as_the_root_of_t():
    assert Anytime().eta(step(t=20)) == pytest.approx(np.sqrt(5 / (18 * 20)))
    assert Anytime().eta(step(t=1)) == pytest.approx(np.sqrt(5 / 18))


@pytest.mark.parametrize(("ghat", "eta"), [(-0.1, 0.0), (0.0, 0.0), (2.0, 0.25), (8.0, 1.0), (50.0, 1.0)])
def test_short_step_minimises_the_upper_bound(ghat: float, eta: float):
    """``-eta ghat + eta^2 beta d^2/2`` with beta d^2 = 8."""
    assert ShortStep().eta(step(ghat=ghat)) == eta
    grid = np.linspace(0, 1, 1001)
    assert -eta * ghat + 4 * eta**2 <= (-grid * ghat + 4 * grid**2).min() + 1e-12


def test_open_loop_counts_from_one():
    assert [OpenLoop().eta(step(t=t)) for t in (1, 2, 3, 99)] == [1.0, 2 / 3, 1 / 2, 0.02]


@pytest.mark.parametrize("rule", [Fixed(), Centred(), Anytime(), ShortStep(), LineSearch()], ids=repr)
def test_without_curvature_every_tuned_step_is_whole(rule: StepSize):
    assert np.all(frank_wolfe(Concave.draw(0, (5, 4)), rule, 3).column("eta")[:1] == 1.0)


@pytest.mark.parametrize("problem", [Completion.draw(0, (6, 5)), Logistic.draw(0, (4, 5))], ids=repr)
def test_line_search_is_exact_and_never_worse_than_the_short_step(problem):
    for t in (1, 5, 20):
        W = frank_wolfe(problem, ShortStep(), t).final
        found = frank_wolfe(problem, LineSearch(), 1, start=W)
        short = frank_wolfe(problem, ShortStep(), 1, start=W)
        V = problem.constraint.lmo(problem.gradient(W)).dense()
        best = min(problem.loss(W + eta * (V - W)) for eta in np.linspace(0, 1, 2001))
        assert found.final_loss <= short.final_loss
        assert found.final_loss <= best + 1e-12 * abs(best)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Fixed(0.0), r"`Fixed\(value=...\)` must be above 0 and at most 1"),
        (lambda: Fixed(1.5), "at most 1"),
        (lambda: Fixed(float("nan")), "at most 1"),
        (lambda: Fixed(drift=-1.0), r"`Fixed\(drift=...\)` must be finite and at least 0"),
        (lambda: Constants(-1.0, 1.0, 1.0, 1.0, 1.0, 0.0), r"`Constants\(beta=...\)` must be finite and at least 0"),
    ],
)
def test_bad_step_sizes_are_refused_by_name(make, words: str):
    with pytest.raises(ArgumentError, match=words):
        make()


@pytest.mark.parametrize("eta", [1.2, -0.1, float("nan")])
def test_a_rule_that_leaves_the_segment_is_refused(eta: float):
    class Overshoot(StepSize):
        def eta(self, step: Step) -> float:
            return eta

    with pytest.raises(ArgumentError, match=r"gave eta = .* at t = 1, and must give a number from 0 to 1"):
        frank_wolfe(WorstCase(), Overshoot(), 3)
