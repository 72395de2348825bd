"""A tiny Llama that FSDP2 has cut into rows, the loop that trains it, and all that can be known of the run."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.utils import clip_grad_norm_

from fwlora import ChainLoRAOptimizer, Every, Flat
from fwlora.sharding import whole
from tests.distributed.ranks import STEPS, TARGETS, llama, tokens


def adapted(rank: int = 4, dtype: torch.dtype = torch.float32) -> nn.Module:
    """A PeftModel with the same adapter in every process."""
    torch.manual_seed(5)
    return get_peft_model(llama().to(dtype), LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=TARGETS))


def sharded(model: nn.Module, **options: Any) -> nn.Module:
    """Layer by layer, and what is left as one, on a mesh of all ranks."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for module in [m for m in model.modules() if type(m).__name__ == "LlamaDecoderLayer"]:
        fully_shard(module, mesh=mesh, **options)
    return fully_shard(model, mesh=mesh, **options)


def chain_of(model: nn.Module, **options: Any) -> ChainLoRAOptimizer:
    """A knot every 3 steps. With eps far above the rounding of a gradient, runs in other orders of summation stay close."""
    return ChainLoRAOptimizer(model, 1e-2, **{"knots": Every(3), "link_lr": Flat(warmup=2), "eps": 1e-4, **options})


def train(model: nn.Module, chain: ChainLoRAOptimizer, rank: int | None, steps=range(STEPS)) -> list[float]:
    """The plain loop, with clipping, on a rank's rows, or for None on those of both ranks."""
    losses = []
    for k in steps:
        ids = torch.cat([tokens(k, 0), tokens(k, 1)]) if rank is None else tokens(k, rank)
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        clip_grad_norm_(chain.parameters(), 0.5)
        chain.step()
        chain.zero_grad()
        losses.append(loss.item())
    return losses


def facts(chain: ChainLoRAOptimizer) -> dict:
    """Every weight, factor, moment, link and counter, in all rows."""
    model = chain._attachment.model
    tensors = {name: whole(value).clone() for name, value in model.state_dict().items()}
    for number, parameter in enumerate(chain.parameters()):
        for key, value in chain.state.get(parameter, {}).items():
            tensors[f"moment{number}.{key}"] = whole(value).clone()
    for index, link in enumerate(chain.chain):
        for name, factors in link.factors.items():
            tensors |= {f"link{index}.{name}.A": factors.A, f"link{index}.{name}.B": factors.B}
    return {
        "tensors": tensors,
        "ranks": [record.ranks for record in chain.ledger],
        "ledger": [{k: v for k, v in entry.items() if k != "seconds"} for entry in chain.ledger.document()],
        "progress": (chain.progress.step, chain.progress.knot, chain.progress.link_step),
    }


def alone(rank_of_link: int = 4, **options: Any) -> dict:
    """One process on the rows of both ranks; its knots ask the other rank, which does the same."""
    chain = chain_of(adapted(rank_of_link), **options)
    train(chain._attachment.model, chain, None)
    return facts(chain)
