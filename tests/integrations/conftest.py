"""A two-layer Llama of hidden size 32, its data, and the plain training loop that every framework is compared with."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn
from transformers import LlamaForCausalLM

from fwlora import ChainLoRAOptimizer, Every, Flat
from tests.tables import CASES

TARGETS = ["q_proj", "v_proj"]


class Workbench:
    """What the tests of this folder have in common."""

    targets = TARGETS

    @staticmethod
    def llama() -> LlamaForCausalLM:
        """A new object with the same pristine weights at every call."""
        return CASES["llama"].model()  # type: ignore[return-value]

    @staticmethod
    def tokens(seed: int, rows: int = 4, length: int = 8) -> torch.Tensor:
        """Random token ids, the same for the same seed."""
        return torch.randint(3, 64, (rows, length), generator=torch.Generator().manual_seed(seed))

    @staticmethod
    def chain(model: nn.Module, lr: float = 1e-2, **options) -> ChainLoRAOptimizer:
        """Rank 4 on q_proj and v_proj, a knot every 3 steps, two steps of warm-up after each."""
        return ChainLoRAOptimizer(
            model,
            lr,
            **{
                "rank": 4,
                "alpha": 8,
                "target_modules": TARGETS,
                "knots": Every(3),
                "link_lr": Flat(warmup=2),
                **options,
            },
        )

    @staticmethod
    def adopt(model: nn.Module, lr: float = 1e-2, **options) -> ChainLoRAOptimizer:
        """The same chain on a model that brings its own LoRA layers."""
        return ChainLoRAOptimizer(model, lr, **{"knots": Every(3), "link_lr": Flat(warmup=2), **options})

    @classmethod
    def train(cls, model: nn.Module, optimizer: torch.optim.Optimizer, steps: range, scheduler=None) -> None:
        """The plain loop: on step k the batch of seed k."""
        for k in steps:
            ids = cls.tokens(k)
            model(input_ids=ids, labels=ids).loss.backward()
            optimizer.step()
            if scheduler is not None:
                scheduler.step()
            optimizer.zero_grad()

    @staticmethod
    def facts(chain: ChainLoRAOptimizer) -> dict[str, torch.Tensor]:
        """Every tensor of the model and of the chain: weights, live factors, retired factors, moments."""
        found = {f"model.{name}": value for name, value in chain._attachment.model.state_dict().items()}
        for index, link in enumerate(chain.chain):
            for site, factors in link.factors.items():
                found |= {f"link{index}.{site}.A": factors.A, f"link{index}.{site}.sB": factors.scale * factors.B}
        for number, parameter in enumerate(chain.parameters()):
            for name, value in chain.state.get(parameter, {}).items():
                if isinstance(value, torch.Tensor):
                    found[f"moment{number}.{name}"] = value
        for number, group in enumerate(chain.param_groups):
            found[f"group{number}.lr"] = torch.as_tensor(group["lr"], dtype=torch.float64)
        progress = chain.progress
        found["counters"] = torch.tensor([progress.step, progress.knot, progress.link_step])
        return {name: value.detach().clone() for name, value in found.items()}

    @staticmethod
    def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
        """Bit for bit, nothing missing and nothing more."""
        assert one.keys() == other.keys()
        differing = [name for name in one if not torch.equal(one[name], other[name])]
        assert not differing, differing

    @staticmethod
    def records(chain: ChainLoRAOptimizer) -> list:
        """The ledger without its note of how a link came back."""
        return [replace(record, replay=None) for record in chain.ledger]

    @classmethod
    def logits(cls, model: nn.Module) -> torch.Tensor:
        """What the model computes on a fixed batch."""
        with torch.no_grad():
            return model(input_ids=cls.tokens(99)).logits


@pytest.fixture(scope="session")
def bench() -> type[Workbench]:
    return Workbench
