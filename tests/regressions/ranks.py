"""What each of two gloo ranks does: started as a program by test_ranks.py, one process a rank, once for all.

A scenario returns what the chain and what the peer has come to, for one and the same check.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from peft import LoraConfig
from peft.functional import inject_adapter_in_model
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from fwlora import ChainLoRAOptimizer, Every, Flat
from fwlora.sharding import local, whole
from tests.distributed.launching import run_scenarios


def plain() -> nn.Sequential:
    """The same weights on every rank."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 8, bias=False), nn.Tanh(), nn.Linear(8, 4, bias=False))


def adapted(rank_of_link: int) -> nn.Module:
    """With the same adapter on every rank."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return inject_adapter_in_model(LoraConfig(r=rank_of_link, lora_alpha=2, target_modules=["0"]), plain())


def loop(model: nn.Module, optimizer: torch.optim.Optimizer, rank: int, steps: int) -> None:
    """The plain loop on rows of this rank's own, and not as many as the other rank's; dropout draws from its stream."""
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.dropout(model(torch.randn(3 + rank, 6)), 0.3).square().mean().backward()
        optimizer.step()


def chain_of(model: nn.Module) -> ChainLoRAOptimizer:
    return ChainLoRAOptimizer(model, 0.05, knots=Every(3), link_lr=Flat(warmup=0))


def factors_after_a_reset(rank: int) -> dict:
    """Three knots of a chain, and PEFT's own reset, each under DDP."""
    model = adapted(2)
    chain = chain_of(model)
    loop(DistributedDataParallel(model), chain, rank, 9)
    peer = adapted(2)
    adamw = torch.optim.AdamW([p for p in peer.parameters() if p.requires_grad], 0.05)
    wrapped = DistributedDataParallel(peer)
    loop(wrapped, adamw, rank, 3)
    peer[0].reset_lora_parameters("default", True)  # type: ignore[operator, index]
    loop(wrapped, adamw, rank, 3)
    return {
        "knots": len(chain.chain),
        "chain": chain.sites["0"].A.detach().clone(),
        "peer": peer[0].lora_A["default"].weight.detach().clone(),  # type: ignore[index]
    }


def sharded(model: nn.Module) -> nn.Module:
    """Layer by layer, so that the factors too are cut along their first axis."""
    mesh = init_device_mesh("cpu", (2,))
    fully_shard(model[0], mesh=mesh)  # type: ignore[index]
    return fully_shard(model, mesh=mesh)


def outcome(make: Callable[[], Tensor]) -> Tensor | str:
    """A tensor, or the error that a peer ends with."""
    try:
        return make()
    except RuntimeError as error:
        return f"{type(error).__name__}: {error}"


def merge_and_checkpoint(rank: int, rank_of_link: int) -> dict:
    """A chain on shards after a knot: the whole weight, what must have been added to it, and what a checkpoint holds.

    The peer adds the product of the shards that it finds, and lets rank 0 write them as the adapter.
    """
    model = sharded(adapted(rank_of_link))
    chain = chain_of(model)
    loop(model, chain, rank, 2)
    site = chain.sites["0"]
    B = whole(site.B)
    asked = site.scaling * B @ whole(site.A)
    W, A_rows, B_rows = (local(tensor).clone() for tensor in (site.weight, site.A, site.B))
    peers_rows = outcome(lambda: W + site.scaling * B_rows @ A_rows)
    chain.tie_knot()
    saved = chain.chain[0].factors["0"]
    return {
        "original": plain()[0].weight.detach(),
        "asked": asked,
        "rows": local(site.weight).clone(),
        "rows of A": len(A_rows),
        "saved": copy.deepcopy(saved.B),
        "trained": B,
        "fresh": whole(site.A),
        "peer's rows": peers_rows,
        "peer's saved": B_rows,
    }


def merge_on_shards(rank: int) -> dict:
    """Two rows of A a rank."""
    return merge_and_checkpoint(rank, 4)


def merge_on_an_empty_shard(rank: int) -> dict:
    """A has one row, and the second rank none of it."""
    return merge_and_checkpoint(rank, 1)


if __name__ == "__main__":
    run_scenarios([factors_after_a_reset, merge_on_shards, merge_on_an_empty_shard])
