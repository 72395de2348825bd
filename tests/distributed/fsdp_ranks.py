"""What each gloo rank does with a model that FSDP2 has sharded: started as a program by test_fsdp.py, one process a rank.

What a scenario returns is whole: gathered from the ranks, which all take the same collective steps.
"""

from __future__ import annotations

import copy
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.utils._python_dispatch import TorchDispatchMode

from fwlora import (
    Blocks,
    ChainLoRAOptimizer,
    Every,
    Flat,
    FrankWolfe,
    GapBelow,
    GradientAligned,
    NuclearBall,
    OpenLoop,
    StepDown,
    SupportBall,
)
from fwlora.errors import KnotError
from fwlora.record.seal import seal
from tests.distributed.launching import run_scenarios
from tests.distributed.ranks import STEPS, TARGETS, llama, refusal, tokens
from tests.distributed.shards import adapted, alone, chain_of, facts, sharded, train

OUT = Path(os.environ.get("RANKS_OUT", "."))


class Gathered(TorchDispatchMode):
    """Sizes of all tensors that a collective has made whole."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if "all_gather" in str(func) and isinstance(out, Tensor):
            self.sizes.append(out.numel())
        return out


# -- scenarios --------------------------------------------------------------------------------------------------------


def trained(rank: int) -> dict:
    """Three knots on shards, what was gathered in the last one, and one process on the joint batch."""
    model = sharded(adapted())
    chain = chain_of(model)
    train(model, chain, rank, range(8))
    train(model, chain, rank, range(8, STEPS))
    found = facts(chain)
    with Gathered() as gathered:
        chain.tie_knot()
    sizes = [site.shape[0] * site.shape[1] for site in chain.sites.values()]
    local = chain.sites["model.layers.0.self_attn.q_proj"].weight.to_local().shape
    return {"together": found, "alone": alone(), "gathered": gathered.sizes, "sizes": sizes, "local": tuple(local)}


def uneven(rank: int) -> dict:
    """Factors of one row, of which a rank holds none, and ranks that step down to it."""
    found = {}
    for name, r, ranks in [("one", 1, None), ("down", 3, StepDown([3, 2, 1]))]:
        options = {} if ranks is None else {"rank": ranks}
        model = sharded(adapted(r))
        chain = chain_of(model, **options)
        train(model, chain, rank)
        found[name] = {"together": facts(chain), "alone": alone(r, **options)}
    return found


def ways_to_train(rank: int) -> dict:
    """What else a chain can be asked for, on shards and in one process."""
    found = {}
    for name, options in {
        "freeze_A": {"freeze_A": True},
        "algorithm_2": {"merge": FrankWolfe(SupportBall(0.5, rank=2), OpenLoop())},
        "momentum": {"inner": torch.optim.SGD, "momentum": 0.9, "eps": None},
        "trained_module": {"train_modules": ["norm"]},
        "by_data": {"knots": GapBelow(fraction=0.9, window=2, patience=1, min_steps=4)},
    }.items():
        options = {"eps": 1e-4, **options}
        options = {key: value for key, value in options.items() if value is not None}
        model = sharded(adapted())
        chain = ChainLoRAOptimizer(model, 1e-2, **{"knots": Every(3), "link_lr": Flat(warmup=2), **options})
        steps = range(16 if name == "by_data" else STEPS)
        train(model, chain, rank, steps)
        single = adapted()
        other = ChainLoRAOptimizer(single, 1e-2, **{"knots": Every(3), "link_lr": Flat(warmup=2), **options})
        train(single, other, None, steps)
        found[name] = {"together": facts(chain), "alone": facts(other)}
    return found


def half_precision(rank: int) -> dict:
    """A bf16 base: each rank keeps the rounding errors of its own rows, and a saved state those of all."""
    model = sharded(adapted(dtype=torch.bfloat16))
    chain = chain_of(model)
    train(model, chain, rank)
    chain.save(OUT / "half")
    dist.barrier()
    document = torch.load(OUT / "half" / "chain.pt", weights_only=True)["fwlora"]
    # The same links merged into the whole weight.
    replayed = chain_of(adapted(dtype=torch.bfloat16))
    replayed.load(OUT / "half")
    residuals = {name: value.clone() for name, value in replayed._residuals.items()}
    name = "model.layers.0.self_attn.q_proj.weight"
    return {
        "facts": facts(chain),
        "replayed": facts(replayed),
        "local": tuple(chain._residuals[name].shape),
        "device": chain._residuals[name].device.type,
        "saved": document["residuals"],
        "residuals": residuals,
        "norm": float(replayed.chain.norm("model.layers.0.self_attn.q_proj")),
    }


def mixed_precision(rank: int) -> dict:
    """Computed in bf16 by FSDP2's policy; weights and factors stay float32."""
    model = sharded(adapted(), mp_policy=MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32))
    chain = chain_of(model)
    train(model, chain, rank)
    name = "model.layers.0.self_attn.q_proj"
    return {"norm": chain.chain.norm(name), "facts": facts(chain), "dtype": str(chain.sites[name].B.dtype)}


def checkpointed(rank: int) -> dict:
    """Torch's distributed checkpoint with `save()` beside it, and `save()` alone on the pristine base."""
    model = sharded(adapted())
    chain = chain_of(model)
    train(model, chain, rank, range(4))
    weights, moments = get_state_dict(model, chain)
    dcp.save({"model": weights, "optimizer": moments}, checkpoint_id=OUT / "dcp")
    chain.save(OUT / "whole")
    saved = facts(chain)
    dist.barrier()
    rest = train(model, chain, rank, range(4, STEPS))

    found = {"rest": rest, "end": facts(chain), "saved": saved}
    for name in ("dcp", "alone"):
        fresh = sharded(adapted())
        resumed = chain_of(fresh)
        if name == "dcp":
            weights, moments = get_state_dict(fresh, resumed)
            state = {"model": weights, "optimizer": moments}
            dcp.load(state, checkpoint_id=OUT / "dcp")
            set_state_dict(fresh, resumed, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
            found["awaits"] = refusal(resumed.tie_knot)
        resumed.load(OUT / "whole")
        loaded = facts(resumed)
        found[name] = {"loaded": loaded, "rest": train(fresh, resumed, rank, range(4, STEPS)), "end": facts(resumed)}
    return found


def states_of_ranks(rank: int) -> dict:
    """`state_dict()` asks nobody; it holds this rank's shards and goes back to this rank alone."""
    model = sharded(adapted())
    chain = chain_of(model)
    train(model, chain, rank, range(4))
    if rank == 0:
        chain.state_dict()  # the other rank does not answer
    state = copy.deepcopy(chain.state_dict())
    train(model, chain, rank, range(4, 6))
    end = facts(chain)
    fresh = sharded(adapted())
    resumed = chain_of(fresh)
    resumed.load_state_dict(state)
    train(fresh, resumed, rank, range(4, 6))
    states: list = [None, None]
    dist.all_gather_object(states, state["fwlora"]["shard"])
    other = seal({**state, "fwlora": {**state["fwlora"], "shard": states[1 - rank]}}, "fwlora")
    single = chain_of(adapted())
    return {
        "end": end,
        "resumed": facts(resumed),
        "of_the_other": refusal(lambda: resumed.load_state_dict(other)),
        "of_a_shard": refusal(lambda: single.load_state_dict(state)),
    }


def from_one_process(rank: int) -> dict:
    """The state of a chain that was never sharded."""
    plain = adapted()
    chain = chain_of(plain)
    train(plain, chain, None, range(4))
    resumed = chain_of(sharded(adapted()))
    resumed.load_state_dict(chain.state_dict())
    return {"saved": facts(chain), "loaded": facts(resumed)}


def ways_out(rank: int) -> dict:
    """The export, rollback and the plain model."""
    model = sharded(adapted())
    chain = chain_of(model)
    train(model, chain, rank, range(8))
    report = chain.export_adapter(OUT / f"adapter-of-rank-{rank}")
    ids = tokens(99, 0)
    with torch.no_grad():
        logits = model(input_ids=ids).logits
    # The forward pass has left whole parameters; a knot must not merge into those.
    chain.tie_knot()
    with torch.no_grad():
        after_knot = model(input_ids=ids).logits
    chain.rollback(1, original=llama().state_dict())
    rolled = facts(chain)
    train(model, chain, rank, range(3, 8))
    with torch.no_grad():
        before = model(input_ids=ids).logits
    plain = chain.merge_and_unload()
    with torch.no_grad():
        after = model(input_ids=ids).logits  # called through the module that was sharded last
    return {
        "report": str(report),
        "logits": logits,
        "after_knot": after_knot,
        "rolled": rolled,
        "before": before,
        "after": after,
        "plain": [name for name, _ in plain.named_parameters() if "lora" in name],
    }


def other_seed(rank: int) -> dict:
    """Each rank draws its rows from a draw of its own."""
    model = sharded(adapted())
    chain = chain_of(model, seed=rank)
    train(model, chain, rank, range(2))
    return {"error": refusal(lambda: train(model, chain, rank, range(2, 3)))}


def nonfinite(rank: int) -> dict:
    """One rank's rows are poisoned: no rank ties, and nothing changes."""
    model = sharded(adapted())
    chain = chain_of(model)
    train(model, chain, rank, range(2))
    if rank == 1:
        with torch.no_grad():
            chain.sites["model.layers.1.self_attn.q_proj"].B.to_local()[0, 0] = torch.nan
    before = facts(chain)
    return {"error": refusal(chain.tie_knot), "before": before, "after": facts(chain)}


def cut_off(rank: int) -> dict:
    """A knot that fails on one rank at its second site raises on both, and both complete it."""
    model = sharded(adapted())
    chain = chain_of(model)
    train(model, chain, rank, range(2))
    site = list(chain.sites.values())[1]
    reset = site.reset_

    def fail(fresh: Tensor) -> None:
        site.reset_ = reset  # type: ignore[method-assign]
        raise torch.OutOfMemoryError("injected")

    if rank == 1:
        site.reset_ = fail  # type: ignore[method-assign]
    error = state = ""
    try:
        train(model, chain, rank, range(2, 3))
    except (torch.OutOfMemoryError, KnotError) as raised:
        error, state = str(raised), refusal(chain.state_dict)
    recorded = len(chain.ledger)
    chain.complete_knot()
    chain.zero_grad()
    train(model, chain, rank, range(3, STEPS))
    return {"error": error, "state": state, "recorded": recorded, "together": facts(chain), "alone": alone()}


def wrong_orders(rank: int) -> dict:
    """The optimizer before the shards, and shards before the adapters."""
    stale = adapted()
    chain = chain_of(stale)
    sharded(stale)
    first = refusal(lambda: train(stale, chain, rank, range(1)))
    plain = sharded(llama())
    without = refusal(lambda: ChainLoRAOptimizer(plain, target_modules=TARGETS))
    untouched = not any("lora" in name for name, _ in plain.named_parameters())
    return {"first": first, "without": without, "untouched": untouched}


def swapped(rank: int) -> dict:
    """What accelerate's `prepare` does: the shards take the place of the parameters in the groups."""
    model = adapted()
    chain = chain_of(model)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    sharded(model)
    shards = dict(model.named_parameters())
    for group in chain.param_groups:
        group["params"] = [shards[names[id(parameter)]] for parameter in group["params"]]
    train(model, chain, rank)
    return {"together": facts(chain), "alone": alone()}


def refused(rank: int) -> dict:
    """What shards do not allow says so."""
    model = sharded(adapted())
    chain = chain_of(model)
    hybrid = adapted()
    mesh = init_device_mesh("cpu", (2, 1), mesh_dim_names=("replicas", "shards"))
    fully_shard(hybrid, mesh=mesh)
    with resharding_off(chain, model):
        partly = refusal(chain.tie_knot)
    return {
        "gap": refusal(lambda: chain.measure_gap([tokens(0, rank)], lambda ids: ids.sum(), NuclearBall(1.0))),
        "compact": refusal(chain.compact),
        "aligned": refusal(lambda: chain_of(sharded(adapted()), reset=GradientAligned())),
        "blocks": refusal(lambda: chain_of(sharded(adapted()), blocks=Blocks(2))),
        "hybrid": refusal(lambda: chain_of(hybrid)),
        "partly": partly,
    }


@contextmanager
def resharding_off(chain: ChainLoRAOptimizer, model: nn.Module) -> Iterator[None]:
    """A model with whole parameters of which the optimizer does not know the module to ask."""
    attachment = chain._attachment
    with torch.no_grad():
        model(input_ids=tokens(0, 0))
    inner = chain._attachment.model.model.layers[0]
    inner.unshard()
    chain._attachment = attachment._replace(outermost=nn.Identity())
    try:
        yield
    finally:
        chain._attachment = attachment
        inner.reshard()


def elsewhere(rank: int) -> dict:
    """What two ranks have saved, on another number of ranks: on the pristine base, and on what the checkpoint holds."""
    folder = Path(sys.argv[4])
    found = {}
    for name in ("pristine", "dcp"):
        model = sharded(adapted())
        chain = chain_of(model)
        if name == "dcp":
            weights, moments = get_state_dict(model, chain)
            state = {"model": weights, "optimizer": moments}
            dcp.load(state, checkpoint_id=folder / "dcp")
            set_state_dict(model, chain, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
        chain.load(folder / "whole")
        loaded = facts(chain)
        # The same rows on every rank: the mean of equal gradients is that of the joint batch.
        found[name] = {"loaded": loaded, "rest": train(model, chain, None, range(4, STEPS)), "end": facts(chain)}
    return found


SCENARIOS = [
    trained,
    uneven,
    ways_to_train,
    half_precision,
    mixed_precision,
    checkpointed,
    states_of_ranks,
    from_one_process,
    ways_out,
    other_seed,
    nonfinite,
    cut_off,
    wrong_orders,
    swapped,
    refused,
]

if __name__ == "__main__":
    OUT = Path(sys.argv[3])
    run_scenarios([elsewhere] if len(sys.argv) > 4 else SCENARIOS)
