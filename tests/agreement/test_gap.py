"""`measure_gap` on the whole of the data is theory's gap in dense algebra; what it says of itself, and what it refuses."""

from __future__ import annotations

import json
import math
from dataclasses import fields
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fwlora import (
    Add,
    Ball,
    ChainLoRAOptimizer,
    Flat,
    FrankWolfe,
    GapReport,
    Interval,
    Never,
    NuclearBall,
    OpenLoop,
    SiteGap,
    SupportBall,
)
from fwlora.errors import ArgumentError, NoGradientError
from tests.agreement.dense import dense_gradients, loss_of
from tests.agreement.torch_problems import Testbed, live, set_link
from tests.conftest import make_chain, train
from tests.tables import CASES
from theory import sets
from theory.points import Array, inner
from theory.problems import Completion
from theory.sets.support_ball import truncated_norm

BALLS = [NuclearBall(0.7), SupportBall(0.7, rank=2), SupportBall(1.3, rank=4), SupportBall(0.7, rank=100)]


class Pair(nn.Module):
    """Two tanh layers of different shapes on one input; calls are a loss that couples them."""

    def __init__(self) -> None:
        super().__init__()
        self.tall = nn.Linear(6, 9, dtype=torch.float64)
        self.wide = nn.Linear(9, 5, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        return self.wide(torch.tanh(self.tall(x))).sub(1).square().mean()


@pytest.fixture
def x() -> Tensor:
    return torch.randn(12, 6, dtype=torch.float64)


def chain_of(model: nn.Module, **options: Any) -> ChainLoRAOptimizer:
    defaults = {"lr": 0.05, "rank": 2, "knots": Never(), "link_lr": Flat(warmup=0), "target_modules": ["tall", "wide"]}
    return ChainLoRAOptimizer(model, **{**defaults, **options})


def steps(model: nn.Module, optimizer: ChainLoRAOptimizer, x: Tensor, n: int) -> None:
    for _ in range(n):
        optimizer.zero_grad()
        model(x).backward()
        optimizer.step()


def theirs(ball: Ball, shape: tuple[int, ...]) -> sets.NuclearBall | sets.SupportBall:
    """The same ball in theory."""
    shape = (shape[0], shape[1])
    if isinstance(ball, SupportBall):
        return sets.SupportBall(shape, ball.radius, min(ball.rank, *shape))
    return sets.NuclearBall(shape, ball.radius)


def dense_gap(ball: Ball, G: Array, D: Array, link: Array) -> dict[str, float]:
    """One site: gradient, sum of the retired links, live link."""
    K = theirs(ball, G.shape)
    gap = inner(G, D) + K.support(-G)
    found = {
        "gap": gap,
        "gradient_norm": float(np.linalg.norm(G)),
        "truncated_norm": truncated_norm(G, min(ball.atom_rank, *G.shape)),
        "eps": gap,  # a link that is zero does not move
    }
    if link.any():
        V = K.radius * link / K.norm(link)
        assert K.contains(V)
        found["eps"] = inner(G, V) + K.support(-G)
        found["alignment"] = -inner(G, V) / K.support(-G)
    return found


def assert_exact(row: SiteGap, truth: dict[str, float], tolerance: float = 1e-10) -> None:
    """Lower end, point and upper end are the truth."""
    for name, value in truth.items():
        assert list(getattr(row, name)) == pytest.approx([value] * 3, rel=tolerance, abs=1e-14), name
    assert ("alignment" in truth) == (row.alignment is not None)


def add_up(rows: list[dict[str, float]], ball: Ball) -> dict[str, float]:
    """The product of the sets: gaps add, norms are those of one long vector."""
    total = {name: sum(row[name] for row in rows) for name in ("gap", "eps")}
    total |= {name: math.hypot(*(row[name] for row in rows)) for name in ("gradient_norm", "truncated_norm")}
    return total


@pytest.mark.parametrize("ball", BALLS, ids=repr)
@pytest.mark.parametrize("knots", [0, 1, 3])
@pytest.mark.parametrize("merge", ["add", "frank-wolfe"])
def test_small_sites_are_measured_exactly(x: Tensor, ball: Ball, knots: int, merge: str):
    """Up to 8 columns, two passes see everything: no sampling noise, no projection; with D != 0 after the first knot."""
    model = Pair()
    optimizer = chain_of(model, merge=Add() if merge == "add" else FrankWolfe(ball, 0.4))
    originals = {name: site.weight.detach().clone() for name, site in optimizer.sites.items()}
    base = Pair()
    for name, site in optimizer.sites.items():
        base.get_submodule(name).load_state_dict(site.layer.get_base_layer().state_dict())
    for _ in range(knots):
        steps(model, optimizer, x, 4)
        optimizer.tie_knot()

    for trained in (0, 3):
        steps(model, optimizer, x, trained)
        gradients = dense_gradients(base, optimizer.sites, lambda base: base(x))
        rows, alignments = [], []
        report = optimizer.measure_gap([x], model, ball, passes=2 if knots % 2 else 5)
        assert list(report.sites) == list(optimizer.sites)
        for name, site in optimizer.sites.items():
            D = (site.weight.detach() - originals[name]).numpy()
            assert D.any() == bool(knots)
            truth = dense_gap(ball, gradients[name].numpy(), D, live(site))
            assert_exact(report.sites[name], truth)
            rows.append(truth)
            support = theirs(ball, D.shape).support(-gradients[name].numpy())
            alignments.append((truth.get("alignment", 0.0) * support, support))
        total = add_up(rows, ball)
        if trained:
            total["alignment"] = sum(a for a, _ in alignments) / sum(s for _, s in alignments)
        assert_exact(report.total, total)
        assert report.ghat == pytest.approx(total["gap"] - total["eps"], rel=1e-10, abs=1e-14)


@pytest.mark.parametrize("ball", [NuclearBall(0.5), SupportBall(0.5, rank=4)], ids=repr)
@pytest.mark.parametrize("kind", CASES)
def test_on_the_whole_data_the_truth_lies_between_point_and_upper_end_at_every_layer_kind(kind: str, ball: Ball):
    """The found vertex is in the set, so that no point exceeds the gap; more passes come as near as one likes."""
    case = CASES[kind]
    model, batch = case.model(torch.float64), case.batch()
    optimizer = make_chain(case, model)
    originals = {name: site.weight.detach().clone() for name, site in optimizer.sites.items()}
    train(optimizer, model, batch, 5)
    gradients = dense_gradients(case.model(torch.float64), optimizer.sites, lambda model: loss_of(model, batch))
    for passes in (4, 40):
        report = optimizer.measure_gap([batch], lambda batch: loss_of(model, batch), ball, passes=passes)
        for name, site in optimizer.sites.items():
            D = site.weight.detach() - originals[name]
            D = (D.mT if site.transposed else D).flatten(1)
            truth = dense_gap(ball, gradients[name].numpy(), D.numpy(), live(site))
            row = report.sites[name]
            for found, value in ((getattr(row, key), truth[key]) for key in ("gap", "eps", "truncated_norm")):
                assert found.lower == found.point <= value + 1e-12 <= found.upper + 2e-12
                assert found.point == pytest.approx(value, rel=0.2 if passes == 4 else 1e-3, abs=1e-3 * truth["gap"])
            assert row.gradient_norm.lower <= truth["gradient_norm"] * (1 + 1e-12) <= row.gradient_norm.upper * (1 + 2e-12)
            assert row.alignment is not None
            assert row.alignment.point == pytest.approx(truth["alignment"], abs=0.05 if passes == 4 else 1e-3)


def test_the_gap_vanishes_at_the_solution_and_bounds_the_error_elsewhere():
    """On the border of the ball G need not be zero; a convex loss lies within the gap of its minimum."""
    target = np.zeros((7, 6))
    target[2, 3] = 5.0
    K = sets.NuclearBall(target.shape, radius=2.0)
    problem = Completion(target, constraint=K)
    model, ball = Testbed(problem), NuclearBall(2.0)
    optimizer = model.chain(merge=FrankWolfe(ball, OpenLoop()))
    start = optimizer.measure_gap([None], model, ball).total
    assert start.gap.lower >= problem.loss(problem.start) - problem.minimum
    set_link(optimizer.sites["maps.0"], K.lmo(problem.gradient(problem.start)))
    assert optimizer.measure_gap([None], model, ball).total.eps.upper <= 1e-12
    optimizer.tie_knot()  # eta = 1: to the vertex, which is the solution
    end = optimizer.measure_gap([None], model, ball).total
    assert problem.loss(model.merged(optimizer)) == pytest.approx(problem.minimum)
    assert abs(end.gap.point) + abs(end.gap.upper) <= 1e-12
    assert end.gradient_norm.point == pytest.approx(3.0)


@pytest.mark.parametrize("n", [1, 4, 5, 9])
@pytest.mark.parametrize("trained", [0, 5])
def test_every_interval_holds_its_own_point(n: int, trained: int):
    model = Pair()
    optimizer = chain_of(model)
    whole = torch.randn(4 * n, 6, dtype=torch.float64)
    steps(model, optimizer, whole, trained)
    report = optimizer.measure_gap(whole.split(4), model, SupportBall(0.5, rank=2), passes=3)
    assert n == 1 or report.batches == (n // 2, n - n // 2)
    for row in [*report.sites.values(), report.total]:
        for field in fields(SiteGap):
            interval = getattr(row, field.name)
            if interval is not None:
                assert isinstance(interval, Interval)
                assert interval.lower <= interval.point <= interval.upper
                if n == 1:  # the whole of the data: nothing is random but the projection, which sees all of a small site
                    assert [interval.lower, interval.upper] == pytest.approx([interval.point] * 2, rel=1e-10)
        assert row.gradient_norm.lower >= 0
        assert row.truncated_norm.lower >= 0
        assert (row.alignment is None) == (trained == 0)
        if row.alignment is not None:
            assert -1 <= row.alignment.lower
            assert row.alignment.upper <= 1


def test_more_confidence_is_a_wider_interval_around_the_same_point(x: Tensor):
    model = Pair()
    optimizer = chain_of(model)
    reports = [
        optimizer.measure_gap(x.split(2), model, NuclearBall(1.0), confidence=confidence) for confidence in (0.5, 0.9, 0.99)
    ]
    gaps = [report.total.gap for report in reports]
    assert gaps[0].point == gaps[1].point == gaps[2].point
    assert gaps[2].lower < gaps[1].lower < gaps[0].lower <= gaps[0].upper < gaps[1].upper < gaps[2].upper
    assert [report.confidence for report in reports] == [0.5, 0.9, 0.99]


def test_the_same_batches_give_the_same_report(x: Tensor):
    model = Pair()
    optimizer = chain_of(model)
    first, second = (optimizer.measure_gap(x.split(3), model, NuclearBall(1.0)) for _ in range(2))
    assert first.document() == second.document()
    assert str(first) == str(second)


def test_a_report_reads_as_a_table_and_as_plain_data(x: Tensor):
    model = Pair()
    optimizer = chain_of(model)
    steps(model, optimizer, x, 3)
    report = optimizer.measure_gap(x.split(3), model, NuclearBall(1.0), confidence=0.9)
    assert isinstance(report, GapReport)
    lines = str(report).splitlines()
    assert lines[0] == "point [lower, upper] at 0.9 confidence, from 2 batches and measured on 2"
    assert [line.split()[0] for line in lines[1:]] == ["site", "tall", "wide", "total"]
    assert json.loads(json.dumps(report.document()))["sites"]["wide"]["gap"] == list(report.sites["wide"].gap)


def test_a_site_that_no_batch_reaches_has_gap_zero(x: Tensor):
    model = Pair()
    optimizer = chain_of(model)
    report = optimizer.measure_gap([x], lambda x: model.tall(x).square().mean(), NuclearBall(1.0))
    assert_exact(report.sites["wide"], dict.fromkeys(["gap", "gradient_norm", "truncated_norm", "eps"], 0.0))
    assert report.total.gap == report.sites["tall"].gap
    assert report.total.gap.point > 0


@pytest.mark.parametrize(
    ("loss_fn", "error", "words"),
    [
        (lambda model, x: (x**2).mean(), NoGradientError, "depends on no site"),
        (lambda model, x: model(x).detach(), NoGradientError, "depends on no site"),
        (lambda model, x: model(x).item(), ArgumentError, "must return the mean loss"),
        (lambda model, x: model.tall(x), ArgumentError, "must return the mean loss"),
    ],
    ids=["of no site", "detached", "a float", "not a number"],
)
def test_losses_that_have_no_gradient_are_refused(x: Tensor, loss_fn: Any, error: type[Exception], words: str):
    model = Pair()
    with pytest.raises(error, match=words):
        chain_of(model).measure_gap([x], lambda x: loss_fn(model, x), NuclearBall(1.0))


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("batches", []),
        ("batches", [0, 1]),
        ("batches", [0, 1, 2]),
        ("confidence", 1.5),
        ("confidence", 0.0),
        ("confidence", 1),
        ("confidence", True),
        ("confidence", "high"),
        ("passes", 1),
        ("passes", 2.0),
        ("passes", True),
        ("set", None),
        ("set", 3.0),
        ("set", NuclearBall),
        ("set", sets.NuclearBall((9, 6))),
    ],
)
def test_bad_arguments_are_named(argument: str, value: Any):
    """Before anything is computed."""
    optimizer = chain_of(Pair())
    given = {"batches": [0], "set": NuclearBall(1.0), argument: value}

    def loss_fn(batch: Any) -> Tensor:
        raise AssertionError("nothing is to be computed")

    with pytest.raises(ArgumentError, match=rf"measure_gap\({argument}="):
        optimizer.measure_gap(given.pop("batches"), loss_fn, given.pop("set"), **given)


def test_measurements_at_knots_are_in_the_records(x: Tensor):
    """Of the weights before the knot, with the link that the knot retires."""
    model, ball = Pair(), SupportBall(0.5, rank=2)
    optimizer = chain_of(model, merge=FrankWolfe(ball, 0.2))
    assert optimizer.tie_knot().gap is None
    calls = []

    def batches() -> list[Tensor]:
        calls.append(len(optimizer.chain))
        return list(x.split(3))

    optimizer.measure_at_knots(batches, model)
    for knot in (1, 2):
        steps(model, optimizer, x, 4)
        expected = optimizer.measure_gap(list(x.split(3)), model, ball).document()
        assert optimizer.tie_knot().gap == expected
        assert calls == [*range(1, knot + 1)]


def test_gradient_that_is_not_finite_is_named(x: Tensor):
    optimizer = chain_of(Pair())
    with pytest.raises(ArgumentError, match=r"`loss_fn\(batch\)` has a gradient with inf or nan at 'tall'"):
        optimizer.measure_gap(x.split(3), lambda batch: float("nan") * optimizer._attachment.model(batch), NuclearBall(1.0))
