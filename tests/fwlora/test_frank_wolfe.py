"""`FrankWolfe`: a knot shrinks the earlier links and scales the new one, and nothing of a chain is lost by that."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from fwlora import (
    Chain,
    ChainLoRAOptimizer,
    Every,
    FrankWolfe,
    GradientAligned,
    Link,
    Never,
    NuclearBall,
    OpenLoop,
    ShortStep,
    SupportBall,
)
from fwlora.errors import ArgumentError, KnotError, NonFiniteFactorsError
from fwlora.layers.rounding import restore
from fwlora.layers.sites import Site
from tests.conftest import assert_same, make_chain, train
from tests.tables import CASES, SETS, TOLERANCE, loss_of, output

HALF = FrankWolfe(NuclearBall(2.0), 0.5)


def weights(optimizer) -> dict[str, torch.Tensor]:
    return {name: site.weight.detach().clone() for name, site in optimizer.sites.items()}


@pytest.mark.parametrize("ball", SETS, ids=repr)
@pytest.mark.parametrize("kind", ["linear", "conv2d", "embedding", "gpt2"])
def test_knot_is_the_frank_wolfe_step_at_every_site(chained, kind, ball):
    """``D <- (1 - eta) D + eta tau L/|L|``, on the weight and in the chain."""
    model, optimizer, batch = chained(kind, dtype=torch.float64, knots=Never(), merge=FrankWolfe(ball, OpenLoop()))
    original = weights(optimizer)
    expected = {name: torch.zeros_like(site.weight) for name, site in optimizer.sites.items()}
    for knot in range(4):
        train(optimizer, model, batch, 3)
        eta = 2 / (knot + 2)
        for name, site in optimizer.sites.items():
            factors = site.live()
            link = factors.scale * site.orient(factors.matrices()[1] @ factors.matrices()[0])
            expected[name] = (1 - eta) * expected[name] + eta * ball.radius * link / ball.norm(factors.spectrum())
        record = optimizer.tie_knot()
        assert record.eta == eta
        for name, site in optimizer.sites.items():
            torch.testing.assert_close(site.weight - original[name], expected[name], rtol=1e-9, atol=1e-12)
            # Factors are kept in float32 where the layer's are.
            torch.testing.assert_close(optimizer.delta(name).double(), expected[name], rtol=1e-5, atol=1e-6)
            assert record.norms[name] <= ball.radius * (1 + 1e-6)


def test_first_open_loop_step_lands_on_the_boundary(chained):
    _, optimizer, _ = chained(steps=3, knots=Never(), merge=FrankWolfe(NuclearBall(0.7), OpenLoop()))
    record = optimizer.tie_knot()
    for name in optimizer.sites:
        assert float(optimizer.chain.spectrum(name).sum()) == pytest.approx(0.7, rel=1e-5)
        assert record.norms[name] == pytest.approx(0.7, rel=1e-5)


def test_site_whose_link_is_zero_does_not_move(chained):
    model, optimizer, batch = chained(steps=4, knots=Every(3), merge=HALF)
    site = optimizer.sites["layers.0"]
    before = weights(optimizer)
    with torch.no_grad():
        site.B.zero_()
    optimizer.tie_knot()
    assert torch.equal(site.weight, before["layers.0"])
    assert not torch.equal(optimizer.sites["layers.2"].weight, before["layers.2"])
    train(optimizer, model, batch, 2)
    optimizer.tie_knot()


def test_knot_before_any_step_moves_nothing(chained):
    _, optimizer, _ = chained(merge=HALF)
    before = weights(optimizer)
    assert optimizer.tie_knot().eta == 0
    assert all(torch.equal(site.weight, before[name]) for name, site in optimizer.sites.items())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("base", ["original", "merged"])
def test_state_resumes_bit_for_bit_on_original_and_on_merged_weights(dtype, base):
    case = CASES["llama"]
    options = {"merge": FrankWolfe(NuclearBall(0.5), OpenLoop()), "knots": Every(3)}
    model = case.model(dtype)
    optimizer = make_chain(case, model, **options)
    train(optimizer, model, case.batch(), 8)
    saved, merged = copy.deepcopy(optimizer.state_dict()), weights(optimizer)
    train(optimizer, model, case.batch(), 4)

    other_model = case.model(dtype)
    other = make_chain(case, other_model, **options)
    if base == "merged":
        with torch.no_grad():
            for name, site in other.sites.items():
                site.weight.copy_(merged[name])
    other.load_state_dict(saved)
    train(other, other_model, case.batch(), 4)
    assert_same(model, optimizer, other_model, other)


def test_links_on_disk_carry_their_shrinks(tmp_path, chained):
    options = {"merge": HALF, "knots": Every(2)}
    model, optimizer, _batch = chained("linear", steps=7, chain_dir=tmp_path, **options)
    _, in_memory, _ = chained("linear", steps=7, **options)
    for name in optimizer.sites:
        assert torch.equal(optimizer.delta(name), in_memory.delta(name))
    other_model, other, _ = chained("linear", chain_dir=tmp_path, **options)
    other.load_state_dict(optimizer.state_dict())
    assert_same(model, optimizer, other_model, other)
    assert optimizer.chain[1].shrinks == dict.fromkeys(optimizer.sites, 0.5)


def test_rollback_replays_the_shrinks(chained):
    original = {k: v.clone() for k, v in CASES["linear"].model().state_dict().items()}
    model, optimizer, batch = chained("linear", steps=4, merge=HALF, knots=Every(2))
    after_two = weights(optimizer)
    train(optimizer, model, batch, 4)
    optimizer.rollback(2, original=original)
    assert all(torch.equal(site.weight, after_two[name]) for name, site in optimizer.sites.items())
    assert len(optimizer.chain) == 2


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_export_computes_what_the_model_computes(tmp_path, dtype):
    case = CASES["llama"]
    model = case.model(dtype)
    optimizer = make_chain(case, model, merge=FrankWolfe(SupportBall(0.5, rank=2), 0.3), knots=Every(3))
    train(optimizer, model, case.batch(), 8)
    optimizer.export_adapter(tmp_path)
    reloaded = PeftModel.from_pretrained(case.model(dtype), str(tmp_path))
    torch.testing.assert_close(output(reloaded, case.batch()), output(model, case.batch()), rtol=1e-4, atol=1e-5)


def test_link_that_a_full_step_forgets_adds_no_rank_to_an_export(tmp_path, chained):
    _, optimizer, _ = chained("linear", steps=6, merge=FrankWolfe(NuclearBall(1.0), 1.0), knots=Every(2))
    assert len(optimizer.chain) == 3
    assert set(optimizer.export_adapter(tmp_path).ranks.values()) == {2}


def test_half_precision_keeps_the_iterate_through_error_feedback():
    """After thirty shrinking knots on bf16 weights, weight and residual together are the original plus the links' sum."""
    case = CASES["linear"]
    model = case.model(torch.bfloat16)
    optimizer = make_chain(case, model, merge=FrankWolfe(NuclearBall(0.02), 0.2), knots=Every(1))
    original = {name: site.weight.detach().double() for name, site in optimizer.sites.items()}
    train(optimizer, model, case.batch(), 30)
    for name, site in optimizer.sites.items():
        total = optimizer.chain.delta(name).double()
        held = restore(site.weight.detach(), optimizer._residuals[f"{name}.weight"]).double()
        assert float((held - original[name] - total).norm()) < 0.02 * float(total.norm())
        shown = site.weight.detach().double() - original[name]
        assert float((shown - total).norm()) > 0.1 * float(total.norm()), "bf16 alone would have done"


def test_knot_that_is_cut_off_is_completed_and_never_doubled(chained, monkeypatch):
    options = {"merge": HALF, "knots": Never()}
    model, optimizer, batch = chained("llama", steps=2, **options)
    optimizer.tie_knot()
    train(optimizer, model, batch, 2)
    twin_model, twin = copy.deepcopy((model, optimizer))
    twin.tie_knot()
    merges, fails = Site.merges, iter([False, False, True])

    def failing(self, *args):
        if next(fails, False):
            raise MemoryError("no room")
        return merges(self, *args)

    monkeypatch.setattr(Site, "merges", failing)
    with pytest.raises(MemoryError):
        optimizer.tie_knot()
    assert len(optimizer.chain) == 1
    optimizer.complete_knot()
    assert_same(model, optimizer, twin_model, twin)


def test_smaller_set_than_the_chain_was_made_in_is_refused_before_anything_changes(chained):
    _model, optimizer, _batch = chained(steps=4, merge=HALF, knots=Every(2))
    _, other, _ = chained(merge=FrankWolfe(NuclearBall(0.1), 0.5), knots=Never())
    other.load_state_dict(optimizer.state_dict())
    with torch.no_grad():
        for site in other.sites.values():
            site.B.normal_()
    before = weights(other)
    with pytest.raises(KnotError, match=r"NuclearBall\(radius=0.1\).*outside the set"):
        other.tie_knot()
    assert all(torch.equal(site.weight, before[name]) for name, site in other.sites.items())
    assert len(other.chain) == 2


def test_unloaded_model_computes_what_the_model_computed(chained):
    model, optimizer, batch = chained("llama", steps=5, merge=HALF, knots=Every(3))
    before = output(model, batch)
    torch.testing.assert_close(output(optimizer.merge_and_unload(), batch), before, rtol=TOLERANCE[torch.float32], atol=1e-6)


def test_aligned_links_go_with_it(chained):
    model, optimizer, batch = chained("llama", merge=HALF, reset=GradientAligned(), knots=Every(4))
    losses = train(optimizer, model, batch, 12)
    assert len(optimizer.chain) == 3
    assert all(torch.tensor(losses).isfinite())


def test_short_step_measures_before_every_knot(chained):
    case = CASES["llama"]
    model = case.model()
    optimizer = make_chain(case, model, merge=FrankWolfe(NuclearBall(0.5), ShortStep(beta=50.0)), knots=Every(3))
    loss_of(model, case.batch()).backward()
    with pytest.raises(ArgumentError, match=r"`optimizer\.measure_at_knots\(batches, loss_fn\)`"):
        optimizer.step()
    assert optimizer.progress.step == 0
    asked = []

    def batches():
        asked.append(optimizer.progress.step)
        return [case.batch()]

    optimizer.measure_at_knots(batches, lambda batch: loss_of(model, batch))
    train(optimizer, model, case.batch(), 6)
    assert asked == [3, 6]
    for record in optimizer.ledger:
        assert 0 < record.eta <= 1
        assert record.gap["total"]["gap"][0] <= record.gap["total"]["gap"][1]


def test_knot_with_a_factor_that_is_not_finite_is_refused_before_it_is_measured(chained):
    model, optimizer, batch = chained("linear", steps=1, knots=Never(), merge=HALF)
    optimizer.measure_at_knots([batch], lambda batch: loss_of(model, batch))
    with torch.no_grad():
        optimizer.sites["layers.0"].B[0, 0] = float("nan")
    with pytest.raises(NonFiniteFactorsError, match=r"layers\.0"):
        optimizer.tie_knot()
    assert optimizer.progress.gap is None


def test_measurement_at_knots_stands_in_the_record_and_survives_a_resume(chained):
    model, optimizer, batch = chained("linear", knots=Every(3))
    optimizer.measure_at_knots([batch], lambda batch: loss_of(model, batch), NuclearBall(1.0))
    train(optimizer, model, batch, 4)
    gap = optimizer.ledger[0].gap
    assert set(gap["sites"]) == set(optimizer.sites)
    assert optimizer.progress.gap == gap["total"]["gap"][1]
    _, other, _ = chained("linear", knots=Every(3))
    other.load_state_dict(optimizer.state_dict())
    assert other.ledger[0].gap == gap
    assert other.progress.gap == optimizer.progress.gap


def test_set_is_named_once(chained):
    _, optimizer, _ = chained(merge=HALF)
    with pytest.raises(ArgumentError, match="contradicts"):
        optimizer.measure_at_knots([1], lambda batch: batch, NuclearBall(3.0))
    _, optimizer, _ = chained()
    with pytest.raises(ArgumentError, match="has none"):
        optimizer.measure_at_knots([1], lambda batch: batch)


def test_trained_biases_are_refused():
    case, config = CASES["opt"], LoraConfig(r=2, target_modules=["q_proj"], lora_bias=True)
    for build in (
        lambda model: ChainLoRAOptimizer(model, lora_bias=True, merge=HALF),
        lambda model: ChainLoRAOptimizer(model, lora_config=config, merge=HALF),
    ):
        model = case.model()
        with pytest.raises(ArgumentError, match="says nothing of biases"):
            build(model)
        assert not any("lora" in name for name, _ in model.named_modules())
    with pytest.raises(ArgumentError, match="says nothing of biases"):
        ChainLoRAOptimizer(get_peft_model(case.model(), config), merge=HALF)


def test_links_on_disk_are_read_once_a_knot(tmp_path, chained, monkeypatch):
    model, optimizer, batch = chained("llama", steps=6, knots=Every(2), merge=HALF, chain_dir=tmp_path)
    reads = []
    read = Chain._read
    monkeypatch.setattr(Chain, "_read", lambda self, link: reads.append(link) or read(self, link))
    train(optimizer, model, batch, 1)
    optimizer.tie_knot()
    assert sum(not isinstance(link, Link) for link in reads) == 3


def test_record_tells_the_links_own_norm_and_the_weights_own_change(chained):
    model, optimizer, batch = chained("linear", steps=4, knots=Every(2), merge=HALF)
    train(optimizer, model, batch, 1)
    before = weights(optimizer)
    norms = {name: site.live().norm() for name, site in optimizer.sites.items()}
    record = optimizer.tie_knot()
    for name, site in optimizer.sites.items():
        assert record.link_norms[name] == pytest.approx(norms[name], rel=1e-6)
        change = float((site.weight - before[name]).norm() / site.weight.norm())
        assert record.relative_updates[name] == pytest.approx(change, rel=1e-4)
