"""The gap-tracking study, in small: what it measures, what it knows for certain, and what it says of either."""

from __future__ import annotations

import copy
import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from experiments.__main__ import main
from experiments.dense_gap import bend, truth, unit_link
from experiments.guarantees import estimated_beta, is_chain, trajectory, yardsticks
from experiments.landscape import Landscape, largest_eigenvalue
from experiments.pages import gap_findings as said
from experiments.pages import gap_tracking as page
from experiments.records import RunFolder
from experiments.studies import gap_tracking as study
from fwlora import ChainLoRAOptimizer, Every, SupportBall

SIZES = {"links": 2, "link_steps": 4, "batches": 4, "windows": 64, "curved": 2, "pretraining_steps": 4}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small study."""
    out = tmp_path_factory.mktemp("gap-tracking")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "environ", os.environ.copy())
        study.run(study.Config(**SIZES, workers=1, out=out))
    return out


@pytest.fixture(scope="module")
def runs(finished: Path) -> list[dict[str, Any]]:
    return RunFolder(finished).rows("runs.jsonl")


@pytest.fixture(scope="module")
def scouted(finished: Path) -> dict[str, Any]:
    return RunFolder(finished).read_json("scout.json")


# ---------------------------------------------------------------- the runs


def test_every_knot_has_a_gap_whose_intervals_are_in_order(runs):
    assert [len(run["knots"]) for run in runs] == [2, 2, 2]
    for knot in (knot for run in runs for knot in run["knots"]):
        rows = [knot["gap"]["total"], *knot["gap"]["sites"].values()]
        assert len(rows) == 1 + 14
        for lower, point, upper in (interval for row in rows for interval in row.values() if interval is not None):
            assert lower <= point <= upper
        assert knot["truth"].keys() == {"total", "sites"}
        assert knot["truth"]["sites"].keys() == knot["gap"]["sites"].keys()


def test_all_iterates_stay_in_the_set(runs):
    assert all(knot["largest_norm"] <= run["radius"] * (1 + 1e-5) for run in runs for knot in run["knots"])
    assert max(knot["largest_norm"] for knot in runs[0]["knots"]) == pytest.approx(runs[0]["radius"], rel=1e-6)


def test_measurements_leave_the_run_alone(runs, scouted):
    assert runs[0]["losses"] == scouted["losses"]
    assert said.unchanged(runs[0], scouted).startswith("8 of 8 losses are the same")


def test_algorithm_1_takes_its_links_as_they_are_and_algorithm_2_does_not(runs):
    for knot in runs[0]["knots"]:
        assert knot["eta"] is None
        assert knot["after"] == pytest.approx(knot["before"], abs=1e-5)
    etas = [{knot["eta"] for knot in run["knots"]} for run in runs[1:]]
    assert all(len(eta) == 1 and 0 < next(iter(eta)) < 1 for eta in etas)
    assert max(etas[0]) > max(etas[1])
    assert all(abs(knot["after"] - knot["before"]) > 1e-4 for knot in runs[2]["knots"])


def test_the_passes_of_a_measurement_are_counted(runs):
    per_knot = 4 * SIZES["batches"] // 2 + SIZES["batches"] // 2
    assert [run["passes"] for run in runs] == [2 * per_knot] * 3
    assert all(0 < run["seconds"]["measuring"] for run in runs)


# ---------------------------------------------------------------- what is known for certain


def test_the_largest_eigenvalue_of_a_quadratic_is_found():
    generator = torch.Generator().manual_seed(3)
    Q = torch.linalg.qr(torch.randn(40, 40, generator=generator, dtype=torch.float64)).Q
    spectrum = torch.linspace(-9.0, 4.0, 40, dtype=torch.float64)
    H = Q @ torch.diag(spectrum) @ Q.mT
    x, y = (torch.randn(20, generator=generator, dtype=torch.float64, requires_grad=True) for _ in range(2))
    z = torch.cat([x, y])
    # The largest, not the one of the largest magnitude, -9; from below, whatever the tolerance.
    assert largest_eigenvalue(z @ H @ z / 2, [x, y], tolerance=1e-8) == pytest.approx(4.0, rel=1e-8)
    rough = largest_eigenvalue(z @ H @ z / 2, [x, y], products=5)
    assert 0.0 < rough <= 4.0


def test_a_loss_without_curvature_has_none():
    x = torch.ones(3, requires_grad=True)
    assert largest_eigenvalue(x.square().sum() * 0 + x.sum(), [x]) == 0.0


def test_the_curvature_of_a_least_squares_layer_is_that_of_its_inputs():
    """``mean_i |W x_i|^2/2`` has the Hessian ``I (x) X^T X/n``."""
    X = torch.randn(32, 5, generator=torch.Generator().manual_seed(0))
    model = nn.Sequential(nn.Linear(5, 3, bias=False))
    landscape = Landscape(model, ["0"], lambda model, rows: model(rows).square().sum() / (2 * len(rows)), X)
    W = {"0": torch.randn(3, 5, dtype=torch.float64)}
    loss, gradient = landscape.gradient(W)
    C = (X.mT @ X / len(X)).double()
    assert loss == pytest.approx(float((W["0"] @ C * W["0"]).sum()) / 2, rel=1e-5)
    assert torch.allclose(gradient["0"], W["0"] @ C, atol=1e-5)
    assert landscape.curvature(W, rows=32) == pytest.approx(float(torch.linalg.eigvalsh(C).max()), rel=1e-2)


def test_the_dense_gap_is_what_a_measurement_on_the_whole_data_finds():
    """One batch that is all of the data, and sites so narrow that the sketch sees everything: no interval is left."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4)).double()
    X, Y = torch.randn(30, 6, dtype=torch.float64), torch.randn(30, 4, dtype=torch.float64)

    def loss(model: nn.Module, rows: Tensor) -> Tensor:
        return (model(X[rows]) - Y[rows]).square().sum(1).mean()

    landscape = Landscape(copy.deepcopy(model), ["0", "2"], loss, torch.arange(30))
    optimizer = ChainLoRAOptimizer(model, lr=0.05, rank=2, knots=Every(100), target_modules=["0", "2"])

    def train(steps: int) -> None:
        for _ in range(steps):
            optimizer.zero_grad()
            loss(model, torch.arange(30)).backward()
            optimizer.step()

    train(100)
    weights = landscape.weights_of(model)
    train(50)
    ball = SupportBall(3.0, 2)
    report = optimizer.measure_gap([torch.arange(30)], lambda rows: loss(model, rows), ball)
    links = {name: site.live() for name, site in optimizer.sites.items()}
    units = {name: unit_link(ball, (f.scale * f.B @ f.A).detach()) for name, f in links.items()}
    update = {name: weights[name] - landscape.origin[name] for name in weights}
    known = truth(ball, landscape.gradient(weights)[1], update, units)
    for name, value in known["total"].items():
        assert getattr(report.total, name).point == pytest.approx(value, rel=1e-5), name
    for site, row in known["sites"].items():
        assert report.sites[site].eps.point == pytest.approx(row["eps"], rel=1e-5, abs=1e-8)


def test_a_step_that_does_not_move_has_no_curvature():
    zero = {"w": torch.zeros(2, 2)}
    assert bend(0.0, zero, zero) != bend(0.0, zero, zero)
    assert torch.equal(unit_link(SupportBall(1.0, 2), zero["w"]), zero["w"])


# ---------------------------------------------------------------- theorems and words


def exact_run(*, chain: bool, beta: float) -> dict[str, Any]:
    """``L(w) = beta (w - 1)^2/2`` from w = 0, one site with the set ``[-1, 1]``: gradient steps, or halfway to the vertex 1."""
    w, knots = 0.0, []
    for step in (10, 20, 30):
        after, slope = 1.0 if chain else (w + 1.0) / 2, beta * (1.0 - w)
        total = {"gap": [slope * (1.0 - w)] * 3, "eps": [0.0] * 3, "truncated_norm": [slope] * 3}
        knots.append({
            "step": step, "loss": beta * (w - 1) ** 2 / 2, "after": beta * (after - 1) ** 2 / 2,
            "eta": None if chain else 0.5, "gap": {"total": total}, "truth": {"total": {"truncated_norm": slope}},
            "distance": 1 - w, "curvature": beta, "bend": beta,
        })  # fmt: skip
        w = after
    last = knots[-1]["after"]
    return {"label": "exact", "radius": 1.0, "sites": 1, "rank": 1, "knots": knots, "last_loss": last}


@pytest.mark.parametrize("chain", [True, False], ids=["Algorithm 1", "Algorithm 2"])
def test_a_true_beta_is_not_exceeded_and_one_too_low_is_called_so(chain: bool):
    run = exact_run(chain=chain, beta=4.0)
    assert is_chain(run) is chain
    for yardstick in yardsticks(run, 4.0):
        assert not yardstick.is_exceeded
        assert "It is not exceeded at any knot." in said.guarantee(run, yardstick)
    if not chain:
        low = yardsticks(run, 0.0)[0]
        assert low.is_exceeded
        assert "the estimate of beta is too low, which refutes no theorem" in said.guarantee(run, low)


def test_theorem_f_is_tight_where_one_gradient_step_reaches_the_minimum():
    (yardstick,) = yardsticks(exact_run(chain=True, beta=4.0), 4.0)
    assert yardstick.measured[:, 1] == pytest.approx(yardstick.guaranteed)


def test_a_tracked_run_is_a_trajectory_of_the_theory(runs):
    run = trajectory(runs[1], beta=2.0)
    assert run.column("gap").tolist() == [knot["gap"]["total"]["gap"][1] for knot in runs[1]["knots"]]
    assert run.constants.diameter == 2 * run.constants.radius == pytest.approx(2 * runs[1]["radius"] * 14**0.5)
    assert run.losses_after()[-1] == runs[1]["last_loss"]


def test_the_estimate_is_the_largest_that_was_found(runs, scouted):
    found = [knot["curvature"] for run in runs for knot in run["knots"]]
    assert estimated_beta(scouted["curvatures"], runs) == max(found + scouted["curvatures"])
    assert estimated_beta([1e9], runs) == 1e9
    low = copy.deepcopy(runs)
    low[0]["knots"][0]["bend"] = 1e9
    assert said.curvature(low, scouted).endswith("the estimate is too low.")


def test_words_follow_the_numbers(runs):
    run = copy.deepcopy(runs[0])
    for intervals, word in (
        ([[5, 6, 7], [1, 2, 3]], "falls"),
        ([[1, 2, 3], [5, 6, 7]], "rises"),
        ([[1, 2, 6], [5, 6, 7]], "may"),
    ):
        for knot, interval in zip(run["knots"], intervals, strict=True):
            knot["gap"]["total"]["gap"] = interval
        assert f"the gap {word} " in said.fall(run)
    run["knots"][0]["truth"]["total"]["alignment"] = -0.1
    assert "1 of 2 are no directions of descent" in said.alignment(run)
    run["last_loss"] = runs[1]["last_loss"] + 0.5
    assert "0.5000 nats better than Algorithm 1's" in said.price(runs[1], run)


def test_the_page_stands_alone_and_labels_what_is_estimated(finished: Path, runs):
    document = (finished / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"(src|href)=\"(?!data:)", document)
    assert document.count("data:image/png") == len(list((finished / "figures").glob("*.png"))) == 3
    assert document.count("estimated beta, no certificate") >= 5
    assert all(run["label"].replace("'", "&#x27;") in document for run in runs)
    assert all(len(row) == len(table.headings) for run in runs for table in page.tables(run) for row in table.rows)
    texts = [(finished / name).read_text(encoding="utf-8") for name in ("report.html", "environment.json", "runs.jsonl")]
    assert not any(str(Path.home()) in text or str(finished) in text for text in texts)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--links", "1"], "--links 1: give a number of at least 2"),
        (["--workers", "0"], "--workers 0: give a number of at least 1"),
        (["--batches", "3"], "--batches 3: give a number of at least 4"),
        (["--windows", "63"], "--windows 63: give a number of at least 64"),
        (["--seed", "-1"], "--seed -1: give a number of at least 0"),
        (["--lr", "0"], "--lr 0.0: give a learning rate above 0"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_sizes_without_meaning_are_refused(arguments, words, capsys):
    assert main(["gap-tracking", *arguments]) == 2
    assert words in capsys.readouterr().err
