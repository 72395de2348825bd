"""accelerate wraps the optimizer, reloads its state at `prepare`, and steps it when gradients are whole."""

from __future__ import annotations

import copy

import pytest
import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.state import AcceleratorState, GradientState, PartialState
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader

from fwlora import ChainLoRAOptimizer, Evenly, unwrap
from fwlora.errors import ArgumentError, DisconnectedParametersError


@pytest.fixture(autouse=True)
def _no_shared_state():
    """Its set-up lies in class attributes: every test starts and ends without."""
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()
    yield
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()


def _loop(accelerator, model, optimizer, batches, scheduler=None):
    for ids in batches:
        with accelerator.accumulate(model):
            accelerator.backward(model(input_ids=ids, labels=ids).loss)
            optimizer.step()
            if scheduler is not None:
                scheduler.step()
            optimizer.zero_grad()


@pytest.mark.parametrize("steps", [0, 2, 3, 4, 7])
def test_prepare_disconnects_nothing_and_merges_nothing(bench, steps):
    """load_state_dict(state_dict()) = identity, at every phase around a knot."""
    model = bench.llama()
    chain = bench.chain(model)
    bench.train(model, chain, range(steps))
    before, parameters = bench.facts(chain), [id(p) for p in chain.parameters()]
    accelerator = Accelerator(cpu=True)
    prepared_model, prepared = accelerator.prepare(model, chain)
    bench.assert_same(bench.facts(chain), before)
    assert prepared_model is model
    assert prepared.param_groups is chain.inner.param_groups
    assert prepared.state is chain.inner.state
    assert [id(p) for p in chain.parameters()] == parameters
    assert chain.ledger.column("replay") == [None] * (steps // 3)

    _loop(accelerator, prepared_model, prepared, map(bench.tokens, range(steps, 8)))
    twin_model = bench.llama()
    twin = bench.chain(twin_model)
    bench.train(twin_model, twin, range(8))
    bench.assert_same(bench.facts(chain), bench.facts(twin))
    assert chain.ledger == twin.ledger


def test_prepare_leaves_an_open_schedule_open(bench):
    """Evenly(links=2) may be bound after prepare(), and progress may be read before."""
    model = bench.llama()
    chain = bench.chain(model, knots=Evenly(links=2))
    accelerator = Accelerator(cpu=True)
    model, optimizer = accelerator.prepare(model, chain)
    assert (chain.progress.step, chain.progress.total_steps, chain.link_factor) == (0, None, 1.0)
    unwrap(optimizer).total_steps = 4
    _loop(accelerator, model, optimizer, map(bench.tokens, range(4)))
    assert [(record.step, record.link_steps) for record in chain.ledger] == [(2, 2)]


def test_accelerate_loop_with_a_scheduler_is_the_plain_loop(bench):
    """Weights, chain, moments and lr, bit for bit; inside the inner step lr_k = lr 0.9^k factor_k."""

    def begin():
        model = bench.llama()
        chain = bench.chain(model, lr=0.01)
        return model, chain, LambdaLR(chain, lambda step: 0.9**step)

    model, chain, scheduler = begin()
    seen = []
    chain.inner.register_step_pre_hook(lambda inner, *_: seen.append(inner.param_groups[0]["lr"]))
    accelerator = Accelerator(cpu=True)
    data = DataLoader([bench.tokens(k)[0] for k in range(8)], batch_size=1)
    model, optimizer, scheduler, data = accelerator.prepare(model, chain, scheduler, data)
    _loop(accelerator, model, optimizer, data, scheduler)

    twin_model, twin, twin_scheduler = begin()
    for k in range(8):
        ids = bench.tokens(k)[:1]
        twin_model(input_ids=ids, labels=ids).loss.backward()
        twin.step()
        twin_scheduler.step()
        twin.zero_grad()
    bench.assert_same(bench.facts(chain), bench.facts(twin))
    factors = [1, 1, 1, 0.5, 1, 1, 0.5, 1]
    assert seen == pytest.approx([0.01 * 0.9**k * factor for k, factor in enumerate(factors)], rel=1e-12)


@pytest.mark.parametrize("steps", [2, 3, 4, 7])
@pytest.mark.parametrize("kind", ["plain", "peft"])
def test_saved_accelerator_state_resumes_exactly(bench, tmp_path, kind, steps):
    """save_state -> load_state on a fresh model -> the uninterrupted run."""
    from peft import LoraConfig, get_peft_model

    def begin():
        model = bench.llama()
        if kind == "plain":
            chain = bench.chain(model)
        else:
            model = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules=bench.targets))
            chain = bench.adopt(model)
        accelerator = Accelerator(cpu=True)
        model, optimizer, scheduler = accelerator.prepare(model, chain, LambdaLR(chain, lambda step: 0.9**step))
        return accelerator, model, optimizer, scheduler, chain

    accelerator, model, optimizer, scheduler, chain = begin()
    _loop(accelerator, model, optimizer, map(bench.tokens, range(steps)), scheduler)
    accelerator.save_state(str(tmp_path / "state"))
    saved = bench.facts(chain)
    _loop(accelerator, model, optimizer, map(bench.tokens, range(steps, 8)), scheduler)

    accelerator, model, optimizer, scheduler, resumed = begin()
    accelerator.load_state(str(tmp_path / "state"))
    bench.assert_same(bench.facts(resumed), saved)
    accelerator.load_state(str(tmp_path / "state"))
    bench.assert_same(bench.facts(resumed), saved)
    # The model's weights came merged: nothing was replayed.
    assert set(resumed.ledger.column("replay")) <= {None}
    _loop(accelerator, model, optimizer, map(bench.tokens, range(steps, 8)), scheduler)
    bench.assert_same(bench.facts(resumed), bench.facts(chain))
    assert resumed.ledger == chain.ledger


def test_prepare_reloads_a_chain_on_disk(bench, tmp_path):
    """With chain_dir= the state holds names and checksums, and the reload reads them back."""
    model = bench.llama()
    chain = bench.chain(model, chain_dir=tmp_path)
    bench.train(model, chain, range(4))
    before = bench.facts(chain)
    accelerator = Accelerator(cpu=True)
    model, optimizer = accelerator.prepare(model, chain)
    bench.assert_same(bench.facts(chain), before)
    _loop(accelerator, model, optimizer, map(bench.tokens, range(4, 8)))
    assert sorted(path.name[:11] for path in tmp_path.iterdir()) == ["link-00000-", "link-00001-"]


@pytest.mark.parametrize("steps", [2, 4])
def test_weights_loaded_after_prepare_are_the_originals(bench, steps):
    """prepare() asks for the state early; who loads his base after it must still be able to resume on that base."""

    def base():
        model = bench.llama()
        return {name: value * 1.25 for name, value in model.state_dict().items() if name.endswith("_proj.weight")}

    def load(model):
        values = base()
        for name, module in model.named_modules():
            key = f"{name.removesuffix('.base_layer')}.weight"
            if key in values and not hasattr(module, "base_layer"):
                module.load_state_dict({"weight": values[key]}, strict=False)

    model = bench.llama()
    chain = bench.chain(model)
    accelerator = Accelerator(cpu=True)
    model, optimizer = accelerator.prepare(model, chain)
    load(model)
    _loop(accelerator, model, optimizer, map(bench.tokens, range(steps)))
    document = chain.state_dict()

    fresh = bench.llama()
    load(fresh)
    resumed = bench.chain(fresh)
    resumed.load_state_dict(document)
    bench.assert_same(bench.facts(resumed), bench.facts(chain))


def test_moments_of_parameters_that_were_swapped_out_are_not_lost_in_silence(bench):
    """FSDP2's `prepare` makes new parameters: after it a chain that has trained asks for its state, and goes on exactly."""
    model = bench.llama()
    chain = bench.chain(model)
    bench.train(model, chain, range(4))
    document = copy.deepcopy(chain.state_dict())
    swapped = {}
    for site in chain.sites.values():
        for layer in (site.layer.lora_A["default"], site.layer.lora_B["default"]):
            swapped[layer.weight] = torch.nn.Parameter(layer.weight.detach().clone())
            layer.weight = swapped[layer.weight]
    for group in chain.param_groups:
        group["params"] = [swapped[parameter] for parameter in group["params"]]
    for call in (lambda: bench.train(model, chain, range(4, 5)), chain.state_dict):
        with pytest.raises(DisconnectedParametersError, match=r"Prepare the model first, then `load\(\)` the state"):
            call()
    assert chain.progress.step == 4

    chain.zero_grad()
    chain.load_state_dict(document)
    bench.train(model, chain, range(4, 8))
    twin_model = bench.llama()
    twin = bench.chain(twin_model)
    bench.train(twin_model, twin, range(8))
    bench.assert_same(bench.facts(chain), bench.facts(twin))


def test_gradient_accumulation_counts_effective_steps(bench):
    """8 micro-batches, 2 to a step: 4 steps, a knot after the third, and the mean gradient of each pair."""
    model = bench.llama()
    chain = bench.chain(model)
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    model, optimizer = accelerator.prepare(model, chain)
    _loop(accelerator, model, optimizer, map(bench.tokens, range(8)))
    assert (chain.progress.step, chain.progress.knot, chain.progress.link_step) == (4, 1, 1)

    twin_model = bench.llama()
    twin = bench.chain(twin_model)
    for k in range(8):
        ids = bench.tokens(k)
        (twin_model(input_ids=ids, labels=ids).loss / 2).backward()
        if k % 2:
            twin.step()
            twin.zero_grad()
    bench.assert_same(bench.facts(chain), bench.facts(twin))


def test_clipping_through_the_accelerator_takes_the_chains_parameters(bench):
    """accelerator.clip_grad_norm_(chain.parameters(), c): the norm of all factors' gradients is at most c."""
    model = bench.llama()
    chain = bench.chain(model)
    accelerator = Accelerator(cpu=True)
    model, _optimizer = accelerator.prepare(model, chain)
    ids = bench.tokens(0)
    accelerator.backward(model(input_ids=ids, labels=ids).loss)
    accelerator.clip_grad_norm_(chain.parameters(), 1e-3)
    norm = torch.stack([p.grad.norm() for p in chain.parameters()]).norm()
    assert float(norm) == pytest.approx(1e-3, rel=1e-3)


def test_step_that_the_accelerators_scaler_skips_is_not_counted(bench):
    """It patches `step` on the instance to learn whether it was called; the run is the one without a scaler."""
    Accelerator(cpu=True)
    model = bench.llama()
    chain = bench.chain(model)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    optimizer = AcceleratedOptimizer(chain, scaler=scaler)

    def step(seed, poisoned):
        ids = bench.tokens(seed)
        scaler.scale(model(input_ids=ids, labels=ids).loss).backward()
        if poisoned:
            chain.parameters()[0].grad[0, 0] = torch.inf
        optimizer.step()
        optimizer.zero_grad()
        return optimizer.step_was_skipped

    assert [step(0, False), step(1, False), step(2, True), step(2, False), step(3, True)] == [False, False, True, False, True]
    assert (chain.progress.step, len(chain.chain), chain.progress.link_step) == (3, 1, 0)
    twin_model = bench.llama()
    twin = bench.chain(twin_model)
    bench.train(twin_model, twin, range(3))
    bench.assert_same(bench.facts(chain), bench.facts(twin))


def test_unwrap_finds_the_chain(bench):
    """unwrap(prepare(chain)) is chain, unwrap(chain) is chain, and anything else is refused."""
    model = bench.llama()
    chain = bench.chain(model)
    accelerator = Accelerator(cpu=True)
    _model, optimizer = accelerator.prepare(model, chain)
    assert not isinstance(optimizer, ChainLoRAOptimizer)
    assert unwrap(optimizer) is chain
    assert unwrap(chain) is chain
    with pytest.raises(ArgumentError, match="no ChainLoRAOptimizer inside a AdamW"):
        unwrap(torch.optim.AdamW([torch.nn.Parameter(torch.ones(1))]))
