"""Products that probes read off the factors' gradients are those of the dense gradient, and nothing is moved by probing."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from peft import LoraConfig
from torch import Tensor, nn

from fwlora import ChainLoRAOptimizer, Flat, Never, NuclearBall, Site
from fwlora.errors import NoGradientError
from fwlora.layers.probes import Probes
from fwlora.linalg import Factors
from tests.agreement.dense import Batch, dense_gradients, loss_of
from tests.conftest import make_chain, train
from tests.tables import CASES, output


def assert_products(probes: Probes, sites: Mapping[str, Site], batch: Any, gradients: Mapping[str, Tensor], tolerance: float):
    """``G X``, ``G^T Q`` and ``<G, D>``, of more columns than a link has and of fewer."""
    draw = torch.Generator().manual_seed(3)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64)

    for columns in (1, 5):
        X = {name: random(G.shape[1], columns) for name, G in gradients.items()}
        Q = {name: random(G.shape[0], columns) for name, G in gradients.items()}
        right, left = probes.right(batch, X), probes.left(batch, Q)
        for name, G in gradients.items():
            assert right[name].dtype == left[name].dtype == torch.float64
            assert (right[name] - G @ X[name]).norm() <= tolerance * G.norm() * X[name].norm()
            assert (left[name] - G.mT @ Q[name]).norm() <= tolerance * G.norm() * Q[name].norm()
    D = {
        name: [Factors(random(r, G.shape[1]), random(G.shape[0], r), 0.7) for r in (3, 1)] + [sites[name].live()]
        for name, G in gradients.items()
    }
    along = probes.along(batch, D)
    for name, G in gradients.items():
        for factors, value in zip(D[name], along[name], strict=True):
            A, B = (matrix.double() for matrix in factors.matrices())
            direction = factors.scale * B @ A
            assert abs(value - torch.sum(G * direction)) <= tolerance * G.norm() * direction.norm()


@pytest.mark.parametrize("steps", [0, 2, 5], ids=["fresh", "live link", "knot and live link"])
@pytest.mark.parametrize("kind", CASES)
def test_products_are_those_of_the_dense_gradient(kind: str, steps: int):
    """The live link is set aside: the gradient is that of the weights after the last knot."""
    case = CASES[kind]
    model = case.model(torch.float64)
    optimizer = make_chain(case, model)
    batch = case.batch()
    train(optimizer, model, batch, steps)
    assert len(optimizer.chain) == steps // 3
    assert all(site.is_idle == (steps == 0) for site in optimizer.sites.values())
    gradients = dense_gradients(case.model(torch.float64), optimizer.sites, lambda model: loss_of(model, batch))
    probes = Probes(model, optimizer.sites, lambda batch: loss_of(model, batch))
    assert_products(probes, optimizer.sites, batch, gradients, tolerance=1e-13)


@pytest.mark.parametrize("kind", ["linear", "conv2d", "embedding", "llama", "gpt2"])
def test_under_autocast_products_are_right_to_bfloat16(kind: str):
    case = CASES[kind]
    model, batch = case.model(), case.batch()
    optimizer = make_chain(case, model)
    train(optimizer, model, batch, 2)

    def loss_fn(batch: Batch) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return loss_of(model, batch)

    gradients = dense_gradients(case.model(torch.float64), optimizer.sites, lambda model: loss_of(model, batch))
    assert_products(Probes(model, optimizer.sites, loss_fn), optimizer.sites, batch, gradients, tolerance=0.05)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_in_lower_precision_products_are_right_to_rounding(dtype: torch.dtype):
    case = CASES["llama"]
    model, batch = case.model(dtype), case.batch()
    optimizer = make_chain(case, model)
    train(optimizer, model, batch, 2)
    gradients = dense_gradients(case.model(torch.float64), optimizer.sites, lambda model: loss_of(model, batch))
    probes = Probes(model, optimizer.sites, lambda batch: loss_of(model, batch))
    assert_products(probes, optimizer.sites, batch, gradients, tolerance=1e-5 if dtype is torch.float32 else 0.05)


def test_padding_row_of_an_embedding_has_no_part_in_a_product():
    """Torch gives that row no gradient, so G has none there, from whichever side it is looked at."""

    class Padded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(nn.Embedding(7, 4, padding_idx=2), nn.Linear(4, 3))

        def forward(self, x: Tensor) -> Tensor:
            return self.layers(x)

    model = Padded().double()
    base = copy.deepcopy(model)
    optimizer = ChainLoRAOptimizer(model, rank=2, target_modules=["layers.0", "layers.1"], knots=Never())
    batch = {"x": torch.tensor([[0, 2, 2, 5], [2, 1, 6, 2]])}
    gradients = dense_gradients(base, optimizer.sites, lambda model: loss_of(model, batch))
    assert not gradients["layers.0"][:, 2].any()
    probes = Probes(model, optimizer.sites, lambda batch: loss_of(model, batch))
    assert_products(probes, optimizer.sites, batch, gradients, tolerance=1e-13)


def test_callers_no_grad_does_not_matter():
    case = CASES["linear"]
    model, batch = case.model(torch.float64), case.batch()
    optimizer = make_chain(case, model)
    train(optimizer, model, batch, 4)
    gradients = dense_gradients(case.model(torch.float64), optimizer.sites, lambda model: loss_of(model, batch))
    with torch.no_grad():
        probes = Probes(model, optimizer.sites, lambda batch: loss_of(model, batch))
        assert_products(probes, optimizer.sites, batch, gradients, tolerance=1e-13)


class Noisy(nn.Sequential):
    """Dropout, and running statistics that every forward pass in train() moves."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(6, 7), nn.BatchNorm1d(7), nn.Dropout(0.5), nn.Linear(7, 3))


@pytest.fixture
def noisy() -> tuple[nn.Module, ChainLoRAOptimizer, Tensor, Callable[[nn.Module, Tensor], Tensor]]:
    """In train() after a few steps, one of which has left gradients behind; LoRA has a dropout of its own."""
    model = Noisy().double()
    optimizer = ChainLoRAOptimizer(
        model,
        lr=0.05,
        lora_config=LoraConfig(r=2, lora_alpha=4, lora_dropout=0.4, target_modules=["0", "3"]),
        train_modules=["1"],
        knots=Never(),
        link_lr=Flat(warmup=0),
    )
    x = torch.randn(8, 6, dtype=torch.float64)

    def loss(model: nn.Module, x: Tensor) -> Tensor:
        return (model(x) - 0.3).square().mean()

    for _ in range(4):
        optimizer.zero_grad()
        loss(model, x).backward()
        optimizer.step()
    model[2].eval()  # a user's own choice, to be kept
    return model, optimizer, x, loss


def test_dropout_and_batch_statistics_are_off(noisy):
    model, optimizer, x, loss = noisy
    base = Noisy().double().eval()
    base[1].load_state_dict(model[1].state_dict())
    for name in ("0", "3"):
        base.get_submodule(name).load_state_dict(model.get_submodule(name).get_base_layer().state_dict())
    gradients = dense_gradients(base, optimizer.sites, lambda base: loss(base, x))
    probes = Probes(model, optimizer.sites, lambda x: loss(model, x))
    assert_products(probes, optimizer.sites, x, gradients, tolerance=1e-13)


def everything(model: nn.Module, optimizer: ChainLoRAOptimizer) -> dict[str, Any]:
    """What must not move: the gap itself is noted, as rules may read it."""
    return {
        "parameters": [(name, id(p), p.requires_grad, p.detach().clone()) for name, p in model.named_parameters()],
        "gradients": [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        "buffers": [(name, b.clone()) for name, b in model.named_buffers()],
        "modes": [(name, module.training) for name, module in model.named_modules()],
        "moments": [copy.deepcopy(optimizer.state[p]) for p in optimizer.parameters()],
        "progress": replace(optimizer.progress, gap=None, history={}),
        "links": (len(optimizer.chain), len(optimizer.ledger)),
        "torch": torch.get_rng_state(),
        "enabled": torch.is_grad_enabled(),
    }


def assert_equal(mine: Any, theirs: Any) -> None:
    """Bit for bit."""
    assert type(mine) is type(theirs)
    if isinstance(mine, Tensor):
        assert torch.equal(mine, theirs)
    elif isinstance(mine, dict):
        assert mine.keys() == theirs.keys()
        for key in mine:
            assert_equal(mine[key], theirs[key])
    elif isinstance(mine, list | tuple):
        for a, b in zip(mine, theirs, strict=True):
            assert_equal(a, b)
    else:
        assert mine == theirs


def test_a_measurement_leaves_everything_as_it_was(noisy):
    model, optimizer, x, loss = noisy
    before = everything(model, optimizer)
    assert any(gradient is not None and gradient.any() for gradient in before["gradients"])
    optimizer.measure_gap([x, x + 0.1, x - 0.1, 2 * x], lambda x: loss(model, x), NuclearBall(1.0))
    assert_equal(everything(model, optimizer), before)


@pytest.mark.parametrize("kind", CASES)
def test_a_measurement_does_not_change_what_training_does_next(kind: str):
    """Two runs, one of them measured between its steps, stay the same bit for bit."""
    case, runs = CASES[kind], []
    for measured in (False, True):
        model, batch = case.model(), case.batch()
        optimizer = make_chain(case, model)
        for _ in range(4):
            train(optimizer, model, batch, 1)
            if measured:
                optimizer.measure_gap([batch], lambda batch, model=model: loss_of(model, batch), NuclearBall(1.0), passes=2)
        runs.append([p.detach() for p in model.parameters()])
    assert_equal(*runs)


@pytest.mark.parametrize("at", [1, 2, 3, 5])
def test_a_loss_that_raises_leaves_everything_as_it_was(noisy, at: int):
    """In any pass: right, left, or along."""
    model, optimizer, x, loss = noisy
    before, calls = everything(model, optimizer), []

    def loss_fn(x: Tensor) -> Tensor:
        calls.append(x)
        if len(calls) == at:
            raise KeyboardInterrupt
        return loss(model, x)

    with pytest.raises(KeyboardInterrupt):
        optimizer.measure_gap([x], loss_fn, NuclearBall(1.0), passes=4)
    assert len(calls) == at
    assert_equal(everything(model, optimizer), before)


def test_loss_that_reaches_no_site_is_refused():
    """A gap of 0 would be a lie: here the loss reaches what is trained in full, and nothing else."""
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)).double()
    optimizer = ChainLoRAOptimizer(model, target_modules=["0"], train_modules=["1"])
    x = torch.randn(4, 3, dtype=torch.float64)
    with pytest.raises(NoGradientError, match="use_reentrant=False"):
        optimizer.measure_gap([x], lambda x: model[1](x).square().mean(), NuclearBall(1.0))


def test_small_gradients_survive_float16():
    """Lifted by a power of two, which is given back; too large ones are lifted less."""
    case = CASES["linear"]
    model, batch = case.model(), case.batch()
    optimizer = make_chain(case, model)
    gradients = dense_gradients(case.model(torch.float64), optimizer.sites, lambda model: loss_of(model, batch))
    for size in (1e-6, 1.0, 1e4):

        def loss_fn(batch: Batch, size: float = size) -> Tensor:
            with torch.autocast("cpu", torch.float16):
                out = output(model, batch)
            target = torch.randn(out.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
            return size * (out - target.to(out.dtype)).square().mean()

        probes = Probes(model, optimizer.sites, loss_fn)
        scaled = {name: size * G for name, G in gradients.items()}
        assert_products(probes, optimizer.sites, batch, scaled, tolerance=0.02)
