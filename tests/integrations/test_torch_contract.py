"""What any code that takes a torch.optim optimizer may count on."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from torch.optim.lr_scheduler import ExponentialLR
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from fwlora import Every
from fwlora.errors import ArgumentError, OwnershipError

COPIES = {"deepcopy": copy.deepcopy, "pickle": lambda run: pickle.loads(pickle.dumps(run))}
# One phase of each kind: before any step, in a link, just before, at and just after the knot at 3, in the second link.
PHASES = [0, 1, 2, 3, 4, 5]


def _backward(bench, model, seed=0):
    ids = bench.tokens(seed)
    loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    return loss


# -- groups and state -------------------------------------------------------------------------------------------------


def _save_and_load(document):
    buffer = io.BytesIO()
    torch.save(document, buffer)
    return torch.load(io.BytesIO(buffer.getvalue()), weights_only=True)


@pytest.mark.parametrize("inner", [torch.optim.AdamW, torch.optim.SGD, torch.optim.NAdam])
def test_groups_and_state_are_the_inner_optimizers_after_a_load(bench, inner):
    """param_groups is inner.param_groups, state is inner.state, before and after load_state_dict."""
    model = bench.llama()
    optimizer = bench.chain(model, inner=inner)
    assert isinstance(optimizer, torch.optim.Optimizer)
    for _ in range(2):
        bench.train(model, optimizer, range(4))
        optimizer.load_state_dict(_save_and_load(optimizer.state_dict()))
        assert optimizer.param_groups is optimizer.inner.param_groups
        assert optimizer.state is optimizer.inner.state
        factors = {id(p) for site in optimizer.sites.values() for p in site.parameters()}
        assert {id(p) for p in optimizer.parameters()} == factors
        assert {id(p) for p in optimizer.state} <= factors
    optimizer.param_groups[0]["lr"] = 0.125
    assert optimizer.inner.param_groups[0]["lr"] == 0.125


def test_assigned_groups_and_state_reach_the_inner_optimizer(bench):
    """optimizer.param_groups = g => inner.param_groups is g, and so for state: frameworks assign both."""
    optimizer = bench.chain(bench.llama())
    groups, state = [dict(group) for group in optimizer.param_groups], {}
    optimizer.param_groups, optimizer.state = groups, state
    assert optimizer.inner.param_groups is groups
    assert optimizer.inner.state is state


def test_state_holds_tensor_keys_only(bench):
    """No str key in `state`, so that torch can name every entry by its parameter."""
    model = bench.llama()
    optimizer = bench.chain(model)
    bench.train(model, optimizer, range(4))
    optimizer.state_dict()
    assert all(isinstance(key, torch.nn.Parameter) for key in optimizer.state)
    assert set(optimizer.state_dict()) == {"state", "param_groups", "fwlora"}


@pytest.mark.parametrize("phase", PHASES)
def test_saved_state_continues_bitwise_on_the_pristine_base(bench, phase):
    """torch.save -> torch.load(weights_only=True) -> the run that was never interrupted."""
    model = bench.llama()
    optimizer = bench.chain(model)
    bench.train(model, optimizer, range(phase))
    document = _save_and_load(optimizer.state_dict())
    bench.train(model, optimizer, range(phase, 8))

    fresh = bench.llama()
    resumed = bench.chain(fresh)
    resumed.load_state_dict(document)
    resumed.load_state_dict(document)
    bench.train(fresh, resumed, range(phase, 8))
    bench.assert_same(bench.facts(resumed), bench.facts(optimizer))
    assert bench.records(resumed) == bench.records(optimizer)


def test_added_group_trains_survives_knots_and_comes_back(bench):
    """add_param_group: the parameters learn, their moments outlive a knot, the state names them."""

    def begin():
        model = bench.llama()
        optimizer = bench.chain(model)
        head = model.lm_head.weight.requires_grad_(True)
        optimizer.add_param_group({"params": head, "lr": 3e-3})
        return model, optimizer, head

    model, optimizer, head = begin()
    assert optimizer.param_groups is optimizer.inner.param_groups
    assert optimizer.param_groups[-1]["lr"] == 3e-3
    pristine = head.detach().clone()
    bench.train(model, optimizer, range(3))
    assert len(optimizer.chain) == 1
    assert not torch.equal(head, pristine)
    assert optimizer.state[head]["step"] == 3
    document = _save_and_load(optimizer.state_dict())
    bench.train(model, optimizer, range(3, 7))

    fresh, resumed, _ = begin()
    resumed.load_state_dict(document)
    bench.train(fresh, resumed, range(3, 7))
    bench.assert_same(bench.facts(resumed), bench.facts(optimizer))


def test_group_of_foreign_parameters_is_refused(bench):
    """The state could not name them."""
    optimizer = bench.chain(bench.llama())
    with pytest.raises(ArgumentError, match="add_param_group"):
        optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(2))]})
    assert len(optimizer.param_groups) == 2


def test_group_of_an_adapted_weight_is_refused(bench):
    """A weight that knots merge into must move by knots only, or no state of it can be replayed."""
    model = bench.llama()
    optimizer = bench.chain(model)
    site = next(iter(optimizer.sites.values()))
    with pytest.raises(ArgumentError, match="add_param_group"):
        optimizer.add_param_group({"params": [site.weight.requires_grad_(True)]})
    assert len(optimizer.param_groups) == 2


# -- copies -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheduled", [False, True], ids=["no scheduler", "scheduler"])
@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("how", COPIES)
# A copied optimizer has lost the mark that the scheduler left on its `step`, as torch's own has.
@pytest.mark.filterwarnings("ignore:Seems like `optimizer.step\\(\\)` has been overridden:UserWarning")
def test_copy_of_model_and_optimizer_continues_exactly_and_alone(bench, how, phase, scheduled):
    """copy(model, optimizer) trains as the original does, and neither moves the other."""
    model = bench.llama()
    optimizer = bench.chain(model)
    scheduler = ExponentialLR(optimizer, 0.9) if scheduled else None
    bench.train(model, optimizer, range(phase), scheduler)

    other_model, other, other_scheduler = COPIES[how]((model, optimizer, scheduler))
    before = bench.facts(optimizer)
    bench.assert_same(bench.facts(other), before)
    bench.train(other_model, other, range(phase, 8), other_scheduler)
    bench.assert_same(bench.facts(optimizer), before)
    after = bench.facts(other)
    bench.train(model, optimizer, range(phase, 8), scheduler)
    bench.assert_same(bench.facts(other), after)
    bench.assert_same(bench.facts(optimizer), after)
    assert bench.records(other) == bench.records(optimizer)


@pytest.mark.parametrize("how", COPIES)
def test_copy_of_the_optimizer_alone_brings_its_own_model(bench, how):
    """The copy's factors are in the copy's groups, and none is shared with the original."""
    model = bench.llama()
    optimizer = bench.chain(model)
    bench.train(model, optimizer, range(4))
    other = COPIES[how](optimizer)
    assert {id(p) for p in other.parameters()} == {id(p) for s in other.sites.values() for p in s.parameters()}
    assert not {p.data_ptr() for p in other.parameters()} & {p.data_ptr() for p in optimizer.parameters()}


@pytest.mark.parametrize("how", COPIES)
def test_copy_of_a_chain_on_disk_is_independent(bench, tmp_path, how):
    """With chain_dir= too, the knots of one leave the links of the other: W = W_0 + chain for both."""
    model = bench.llama()
    optimizer = bench.chain(model, chain_dir=tmp_path)
    bench.train(model, optimizer, range(4))
    other_model, other = COPIES[how]((model, optimizer))
    bench.train(model, optimizer, range(4, 7))
    bench.train(other_model, other, range(14, 17))
    pristine = bench.llama().state_dict()
    for chain in (optimizer, other):
        assert len(chain.chain) == 2
        for name, site in chain.sites.items():
            assert torch.allclose(site.weight, pristine[f"{name}.weight"] + chain.chain.delta(name), atol=1e-6)
    name = next(iter(optimizer.sites))
    assert not torch.allclose(optimizer.chain.delta(name), other.chain.delta(name), atol=1e-4)


@pytest.mark.parametrize("how", COPIES)
def test_copy_owns_the_copied_model(bench, how):
    """A second chain on the copied model is refused as one on the original is."""
    model = bench.llama()
    optimizer = bench.chain(model)
    other_model, other = COPIES[how]((model, optimizer))
    with pytest.raises(OwnershipError, match="belongs to another chain"):
        bench.adopt(other_model)
    assert other.sites.keys() == optimizer.sites.keys()


@pytest.mark.parametrize("how", COPIES)
def test_copy_carries_no_hooks(bench, how):
    """Hooks hold callbacks of the original's surroundings; the copy starts without, and takes its own."""
    model = bench.llama()
    optimizer = bench.chain(model, knots=Every(1))
    seen = []
    optimizer.on_knot(seen.append)
    optimizer.register_step_post_hook(lambda *_: seen.append("step"))
    other_model, other = COPIES[how]((model, optimizer))
    bench.train(other_model, other, range(1))
    assert seen == []
    other.on_knot(seen.append)
    bench.train(other_model, other, range(1, 2))
    assert [record.knot for record in seen] == [1]


# -- hooks and closures -----------------------------------------------------------------------------------------------


def test_step_hooks_fire_once_around_the_whole_step(bench):
    """pre, step and knot, post: once each a step."""
    model = bench.llama()
    optimizer = bench.chain(model, knots=Every(1))
    events = []
    optimizer.register_step_pre_hook(lambda o, *_: events.append(("pre", o is optimizer, o.progress.step)))
    optimizer.register_step_post_hook(lambda o, *_: events.append(("post", o is optimizer, o.progress.step)))
    optimizer.on_knot(lambda record: events.append(("knot", record.knot)))
    bench.train(model, optimizer, range(2))
    one = [("pre", True, 0), ("knot", 0), ("post", True, 1)]
    assert events == [*one, ("pre", True, 1), ("knot", 1), ("post", True, 2)]


@pytest.mark.parametrize("register", [register_optimizer_step_pre_hook, register_optimizer_step_post_hook])
def test_global_step_hook_sees_the_chain_once_a_step(bench, register):
    """A global hook fires for the inner optimizer too, and once for the chain."""
    model = bench.llama()
    optimizer = bench.chain(model)
    seen = []
    handle = register(lambda o, *_: seen.append(o))
    try:
        bench.train(model, optimizer, range(2))
    finally:
        handle.remove()
    assert sum(o is optimizer for o in seen) == 2
    assert sum(o is optimizer.inner for o in seen) == len(seen) - 2


def test_state_dict_hooks_run_and_may_change_the_document(bench):
    """Pre-hooks see the optimizer, post-hooks the document, and what they return is taken."""
    model = bench.llama()
    optimizer = bench.chain(model)
    bench.train(model, optimizer, range(4))
    seen = []
    optimizer.register_state_dict_pre_hook(lambda o: seen.append("save"))
    optimizer.register_state_dict_post_hook(lambda o, document: {**document, "mine": 1})
    document = optimizer.state_dict()
    assert document["mine"] == 1
    assert seen == ["save"]

    resumed = bench.chain(bench.llama())
    resumed.register_load_state_dict_pre_hook(lambda o, given: seen.append(given.pop("mine")))
    resumed.register_load_state_dict_pre_hook(lambda o, given: {**given})
    resumed.register_load_state_dict_post_hook(lambda o: seen.append(o.progress.step))
    resumed.load_state_dict({**document})
    assert seen == ["save", 1, 4]


def test_closure_is_called_once_with_gradients_on(bench):
    """`loss = step(closure)`, one evaluation a step, also under no_grad."""
    model = bench.llama()
    optimizer = bench.chain(model, knots=Every(2))
    calls = []

    def closure():
        assert torch.is_grad_enabled()
        optimizer.zero_grad()
        calls.append(_backward(bench, model, len(calls)))
        return calls[-1]

    for _ in range(4):
        with torch.no_grad():
            assert optimizer.step(closure) is calls[-1]
    assert len(calls) == 4
    assert len(optimizer.chain) == 2

    plain_model = bench.llama()
    plain = bench.chain(plain_model, knots=Every(2))
    bench.train(plain_model, plain, range(4))
    bench.assert_same(bench.facts(optimizer), bench.facts(plain))


def test_zero_grad_clears_every_stepped_parameter(bench):
    """Every grad is None, or 0 in place where asked."""
    model = bench.llama()
    optimizer = bench.chain(model)
    _backward(bench, model)
    optimizer.zero_grad(set_to_none=False)
    assert all(p.grad is not None and not p.grad.any() for p in optimizer.parameters())
    optimizer.zero_grad()
    assert all(p.grad is None for p in optimizer.parameters())


# -- GradScaler -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("unscaled", [False, True], ids=["", "unscaled for clipping"])
@pytest.mark.parametrize("options", [{}, {"fused": True}], ids=["AdamW", "fused AdamW"])
def test_step_that_the_scaler_skips_is_not_counted_and_ties_no_knot(bench, options, unscaled):
    """With an inf gradient at the step that a knot is due after: nothing changes; the next good step is that step."""
    model = bench.llama()
    optimizer = bench.chain(model, **options)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)

    def step(seed, poisoned):
        ids = bench.tokens(seed)
        scaler.scale(model(input_ids=ids, labels=ids).loss).backward()
        if poisoned:
            optimizer.parameters()[-1].grad[0, 0] = torch.inf
        if unscaled:
            scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()

    step(0, False)
    step(1, False)
    before = bench.facts(optimizer)
    step(2, True)
    bench.assert_same(bench.facts(optimizer), before)
    assert (optimizer.progress.step, len(optimizer.chain)) == (2, 0)
    step(2, False)
    assert (optimizer.progress.step, len(optimizer.chain)) == (3, 1)
    step(3, True)
    assert (optimizer.progress.step, optimizer.progress.link_step) == (3, 0)
    step(3, False)

    # Scaling by a power of two is exact, so the run is the one without a scaler.
    plain_model = bench.llama()
    plain = bench.chain(plain_model, **options)
    bench.train(plain_model, plain, range(4))
    bench.assert_same(bench.facts(optimizer), bench.facts(plain))
