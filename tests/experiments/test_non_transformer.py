"""Networks that are no transformers, in small: convolutions get factors of their own, and the page says what the tests say."""

from __future__ import annotations

import math
import os
import re
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft.tuners.lora import Conv2d as LoraConv2d

from experiments.compare import check_export
from experiments.errors import UsageError
from experiments.image_contenders import FULL, LINKS, contests
from experiments.methods import ChainOfLoRA, LoRA, chain_with_decay
from experiments.pages import non_transformer as page
from experiments.records import RunFolder
from experiments.statistics import compare
from experiments.store import Store
from experiments.studies import non_transformer
from experiments.tasks.digit_images import LAYERS, ConvolutionalDigits, ConvolutionalNewLabels, Convolutions
from experiments.tasks.digits import Digits
from experiments.train import train
from fwlora import ChainLoRAOptimizer, Decay, Evenly, Flat

SMALL = replace(non_transformer.PRESETS["smoke"], problems=("cnn-rotated", "mlp-new-labels"))
CNN = ConvolutionalDigits(epochs=1)
METHODS = 3 + 2 * len(LINKS)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small study."""
    out = tmp_path_factory.mktemp("non-transformer")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "environ", os.environ.copy())
        non_transformer.run(replace(SMALL, out=out))
    return out


# -- the convolutional network ----------------------------------------------------------------------------------------


def test_convolutional_network_meets_the_images_and_splits_of_the_other_one():
    for split in ("train", "validation", "test"):
        for mine, theirs in zip(CNN.data(split), Digits().data(split), strict=True):
            assert torch.equal(mine, theirs)
    assert (CNN.steps, ConvolutionalNewLabels(epochs=1).steps) == (31, 25)
    assert sum(parameter.numel() for parameter in Convolutions().parameters()) == 13_706


def test_base_knows_upright_digits_and_no_rotated_ones():
    network = CNN.model()
    images, labels = CNN.data("test")
    upright = torch.rot90(images.view(-1, 8, 8), k=-1, dims=(1, 2)).reshape(-1, 64)
    accuracy = {
        name: float((network(rows).argmax(1) == labels).double().mean())
        for name, rows in {"up": upright, "turned": images}.items()
    }
    assert accuracy["up"] > 0.95
    assert accuracy["turned"] < 0.3


def test_base_of_the_new_labels_knows_the_old_ones_only():
    problem = ConvolutionalNewLabels()
    assert set(problem.outputs(problem.model()).argmax(1).tolist()) <= {0, 1, 2, 3, 4}
    assert problem.evaluate(problem.model()) == 0.0


def test_a_models_copy_is_its_own():
    network = CNN.model()
    with torch.no_grad():
        network.get_parameter("first.weight").zero_()
    assert CNN.model().get_parameter("first.weight").detach().any()


def test_every_layer_is_adapted_and_convolutions_by_convolutions():
    setup = chain_with_decay("chain", 1e-2, 2, Evenly(2), warmup=5).prepare(CNN.model(), CNN.targets, steps=31, seed=0)
    layers = {name: type(setup.model.get_submodule(name)) for name in LAYERS}
    assert layers["first"] is layers["second"] is LoraConv2d
    assert isinstance(setup.optimizer, ChainLoRAOptimizer)
    shapes = {name: (tuple(site.A.shape), tuple(site.B.shape)) for name, site in setup.optimizer.sites.items()}
    assert shapes["second"] == ((2, 16, 3, 3), (32, 2, 1, 1))
    assert shapes["hidden"] == ((2, 128), (64, 2))
    assert set(shapes) == set(LAYERS)


def test_links_of_a_convolution_add_up_to_the_rank_of_the_chain():
    """Three links of rank 1: the kernel's update has rank 3 as a matrix, LoRA's has rank 1, and the base moved by it."""
    ranks = {}
    for links in (1, 3):
        setup = chain_with_decay("chain", 1e-2, 1, Evenly(links), warmup=2).prepare(
            CNN.model(), CNN.targets, steps=CNN.steps, seed=0
        )
        train(setup, CNN.task(0), steps=CNN.steps)
        optimizer = setup.optimizer
        assert isinstance(optimizer, ChainLoRAOptimizer)
        update = optimizer.delta("second")
        assert update.shape == (32, 16, 3, 3)
        ranks[links] = int(torch.linalg.matrix_rank(update.flatten(1).double(), rtol=1e-4))
        retired = optimizer.chain.delta("second") if links > 1 else torch.zeros_like(update)
        moved = optimizer.sites["second"].weight - CNN.model().get_parameter("second.weight")
        assert torch.allclose(moved, retired.view_as(moved), atol=1e-6)
    assert ranks == {1: 1, 3: 3}


def test_exported_adapter_of_a_convolutional_network_is_the_trained_one(tmp_path):
    setup = chain_with_decay("chain", 1e-2, 1, Evenly(3), warmup=2).prepare(CNN.model(), CNN.targets, steps=CNN.steps, seed=0)
    train(setup, CNN.task(0), steps=CNN.steps)
    export = check_export(CNN, setup, tmp_path)
    assert export["largest_difference"] <= 1e-5 * export["largest_output"]
    assert export["base_difference"] > 0.1
    assert (export["rank"], export["sites"], export["knots"]) == (3, 4, 2)


# -- who meets --------------------------------------------------------------------------------------------------------


def test_each_contest_has_lora_chains_under_both_decays_and_two_with_more_to_train():
    for contest in contests(epochs=2, seeds=2).values():
        labels = [method.label for method in contest.methods]
        assert len(set(labels)) == len(labels) == METHODS
        first, *chains, wider, full = contest.methods
        assert isinstance(first, LoRA)
        assert isinstance(wider, LoRA)
        assert wider.rank == max(LINKS) * first.rank
        assert full.label == FULL
        for method in chains:
            assert isinstance(method, ChainOfLoRA)
            assert method.rank == first.rank
            assert (method.schedule is None) == isinstance(method.link_lr, Decay) == (not method.label.endswith("one decay"))
            assert isinstance(method.link_lr, Decay | Flat)


def test_shortest_run_that_is_taken_has_room_for_every_method():
    assert set(contests(epochs=2, seeds=2)) == set(page.TITLES) == set(non_transformer.Config().problems)
    for contest in contests(non_transformer.LEAST["epochs"], seeds=1).values():
        for method in contest.methods:
            run = contest.run(method.label, 1e-3, 0, "validation")
            with warnings.catch_warnings(action="error"):
                warnings.filterwarnings("ignore", message=".* makes a link of ")
                setup = run.method.prepare(run.problem.model(), run.problem.targets, steps=run.problem.steps, seed=0)
                assert len(train(setup, run.problem.task(0), steps=2)) == 2


# -- the study --------------------------------------------------------------------------------------------------------


def test_every_method_meets_every_test_seed_at_equal_steps(finished: Path):
    rows = RunFolder(finished).rows("runs.jsonl")
    assert len({(row["problem"], row["method"], row["seed"]) for row in rows}) == len(rows) == 2 * 2 * METHODS
    assert {row["seed"] for row in rows} == {1, 2}
    assert {(row["problem"], row["steps"]) for row in rows} == {("cnn-rotated", 62), ("mlp-new-labels", 50)}
    for row in rows:
        links = re.match(r"chain of (\d+)", row["method"])
        assert len(row["knots"]) == (int(links[1]) - 1 if links else 0)


def test_chain_trains_as_many_numbers_as_lora_of_its_rank(finished: Path):
    for results in page.collect(RunFolder(finished)).values():
        trained = {method: rows[0]["trainable"] for method, rows in results.rows.items()}
        assert {trained[chain] for chain in results.chains} == {trained[results.reference]}
        assert trained[results.reference] < trained[results.wider] < trained[FULL]


def test_finished_study_is_not_trained_again(finished: Path, monkeypatch: pytest.MonkeyPatch):
    runs = Store(finished / "runs.sqlite").rows()
    assert len(runs) == 2 * METHODS * (1 + 2)
    table = (finished / "runs.jsonl").read_bytes()

    def refuse(*_arguments, **_options):
        raise AssertionError("trained again")

    monkeypatch.setattr("experiments.compare.train", refuse)
    monkeypatch.setattr(os, "environ", os.environ.copy())
    non_transformer.run(replace(SMALL, out=finished))
    assert (finished / "runs.jsonl").read_bytes() == table


def test_page_has_a_table_and_two_figures_for_each_problem(finished: Path):
    document = (finished / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"(src|href)=\"(?!data:)", document)
    problems = page.collect(RunFolder(finished))
    assert list(problems) == ["cnn-rotated", "mlp-new-labels"]
    for name, results in problems.items():
        assert page.TITLES[name] in document
        assert len(results.table().rows) == METHODS
        for figure in ("values", "spectrum"):
            assert (finished / "figures" / f"{name}-{figure}.png").is_file()


def test_sentences_go_by_p_values_corrected_within_each_question(finished: Path):
    results = page.collect(RunFolder(finished))["cnn-rotated"]
    assert len(results.tests) == (METHODS - 1) + len(LINKS) + 2
    for (method, control), test in results.tests.items():
        alone = compare(results.values(method), results.values(control))
        # Methods that end alike on all seeds have no p at all.
        assert test.comparison.p >= alone.p or (math.isnan(test.comparison.p) and alone.difference.deviation == 0)
        assert test.comparison.difference == alone.difference


def test_each_chain_stands_where_its_verdict_puts_it(finished: Path):
    problems = page.collect(RunFolder(finished))
    helps, helps_not, decays, roomier, lacking = page.findings(problems).values()
    chains = [(name, chain) for name, results in problems.items() for chain in results.chains]
    better = [chain for chain in chains if problems[chain[0]].verdict(chain[1]) == "better"]
    assert (len(helps), len(helps_not)) == (len(better), len(chains) - len(better))
    assert (len(decays), len(roomier), len(lacking)) == (2 * len(LINKS), 4, 2)


def test_a_clear_gain_is_said_to_help():
    metric = {"name": "accuracy", "unit": "points", "higher_is_better": True, "digits": 1}
    values = {"LoRA r=1": 80.0, "chain of 2": 90.0, "chain of 2, one decay": 70.0, "LoRA r=5": 91.0, FULL: 92.0}
    results = page.Meeting()
    for method, value in values.items():
        results.rows[method] = [
            {"value": value + 0.1 * ((seed * len(method)) % 3), "seed": seed, "metric": metric, "trainable": 1,
             "watched": "map", "spectrum": [3.0, 4.0] if method == FULL else [1.0], "norm": 5.0 if method == FULL else 1.0}
            for seed in range(6)
        ]  # fmt: skip
        results.choices[method] = page.Choice({0.1: value})
    said = page.findings({"cnn-rotated": results})
    helps, helps_not, decays, _roomier, lacking = said.values()
    assert [sentence.split(" is ")[0] for sentence in helps] == [f"{page.TITLES['cnn-rotated']}: chain of 2"]
    assert "chain of 2, one decay is worse than LoRA r=1" in helps_not[0]
    assert "chain of 2 is better than chain of 2, one decay" in decays[0]
    # A rank of 1 holds 9 of 25.
    assert f"64 % of what {FULL} has" in lacking[0]


def test_share_beyond_a_rank_is_eckart_youngs():
    update = torch.randn(6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    U, S, Vh = torch.linalg.svd(update, full_matrices=False)
    cut = (U[:, :2] * S[:2]) @ Vh[:2]
    results = page.Meeting({"method": [{"spectrum": S.tolist(), "norm": float(update.norm())}]})
    assert results.beyond("method", 2) == pytest.approx(float((update - cut).norm() ** 2 / update.norm() ** 2))
    assert page.Meeting({"method": [{"spectrum": [0.0], "norm": 0.0}]}).beyond("method", 1) == 0.0


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"problems": ("cnn-turned",)}, "--problems cnn-turned: choose from cnn-rotated,"),
        ({"problems": ()}, "--problems"),
        ({"epochs": 1}, "--epochs 1: give a number of at least 2."),
        ({"seeds": 0}, "--seeds 0"),
    ],
)
def test_a_size_or_a_name_that_cannot_be_is_told_of_before_a_folder_is_made(tmp_path, monkeypatch, options, says):
    monkeypatch.setattr(os, "environ", os.environ.copy())
    with pytest.raises(UsageError) as caught:
        non_transformer.run(replace(SMALL, out=tmp_path / "out", **options))
    assert str(caught.value).startswith(says)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()
