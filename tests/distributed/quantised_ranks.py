"""What each of two gloo ranks does with a quantised model: started as a program by test_quantised_ddp.py."""

from __future__ import annotations

import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from fwlora import ChainLoRAOptimizer, Every
from fwlora.errors import UnsupportedModelError
from tests.conftest import make_chain
from tests.distributed.launching import run_scenarios
from tests.tables import QUANTISED

STEPS = 10  # three knots and one step


def rows(step: int, rank: int) -> torch.Tensor:
    """Different ones on each rank."""
    return torch.randn(4, 16, generator=torch.Generator().manual_seed(1000 * rank + step))


def trained(model: nn.Module, batch, optimizer: ChainLoRAOptimizer) -> None:
    """The plain loop, the chain compressed once on the way."""
    for step in range(STEPS):
        optimizer.zero_grad()
        (model(x=batch(step)) - 1).square().mean().backward()
        optimizer.step()
        if step == 6:
            optimizer.compress(max_rank=2)


def facts(model: nn.Module, optimizer: ChainLoRAOptimizer) -> dict[str, torch.Tensor]:
    """Every weight and factor, every total update, and what comes out."""
    totals = {f"delta.{name}": optimizer.delta(name) for name in optimizer.sites}
    with torch.no_grad():
        return {**{k: v.clone() for k, v in model.state_dict().items()}, **totals, "output": model(x=rows(99, 0))}


def joint(rank: int) -> dict:
    """Two ranks on their own rows, and one process on all of them."""
    found = {}
    for kind in ("nf4", "int8"):
        case = QUANTISED[kind]
        model = case.model()
        optimizer = make_chain(case, model)
        trained(DistributedDataParallel(model), lambda step: rows(step, rank), optimizer)
        alone = case.model()
        single = make_chain(case, alone)
        trained(alone, lambda step: torch.cat([rows(step, 0), rows(step, 1)]), single)
        found[kind] = {"together": facts(model, optimizer), "alone": facts(alone, single), "knots": len(optimizer.chain)}
    return found


def sharded(rank: int) -> dict:
    """A packed weight in a storage that FSDP2 takes."""
    import bitsandbytes as bnb

    model = nn.Sequential(bnb.nn.Linear4bit(64, 64, quant_storage=torch.float32).to("cpu"))
    model.is_loaded_in_4bit = True  # type: ignore[assignment]
    model = get_peft_model(model, LoraConfig(target_modules=["0"]))  # type: ignore[arg-type]
    fully_shard(model)
    try:
        ChainLoRAOptimizer(model, 0.1, knots=Every(3))
    except UnsupportedModelError as error:
        return {"error": str(error)}
    return {"error": "none"}


if __name__ == "__main__":
    run_scenarios([joint, sharded])
