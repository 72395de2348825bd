"""What each of two gloo ranks does: started as a program by test_ddp.py, one process a rank.

Every scenario returns tensors and plain data, which the test compares across the ranks. A scenario must take the same
collective steps on both ranks.
"""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import torch
import torch.distributed as dist
from peft import LoraConfig, PeftModel, get_peft_model
from torch.nn.parallel import DistributedDataParallel
from transformers import LlamaForCausalLM, Trainer, TrainingArguments

from fwlora import (
    ChainLoRAOptimizer,
    Evenly,
    Every,
    Flat,
    FrankWolfe,
    GapBelow,
    GradientAligned,
    OpenLoop,
    Plateau,
    SupportBall,
)
from fwlora.errors import FwloraError, KnotError, RefusedKnotWarning
from fwlora.integrations.transformers import ChainCallback
from tests.distributed.launching import run_scenarios
from tests.tables import CASES

TARGETS = ["q_proj", "v_proj"]
STEPS = 10  # three knots and one step


def llama() -> LlamaForCausalLM:
    """The same weights on every rank and in every process."""
    return CASES["llama"].model()  # type: ignore[return-value]


def tokens(step: int, rank: int) -> torch.Tensor:
    """Different rows on each rank."""
    return torch.randint(3, 64, (4, 8), generator=torch.Generator().manual_seed(1000 * rank + step))


def chain_of(model, **options) -> ChainLoRAOptimizer:
    """Rank 4 on q_proj and v_proj, a knot every 3 steps."""
    shape = {} if options.pop("adopt", False) else {"rank": 4, "alpha": 8, "target_modules": TARGETS}
    return ChainLoRAOptimizer(model, 1e-2, **{**shape, "knots": Every(3), "link_lr": Flat(warmup=2), **options})


def step(model, chain, ids) -> None:
    """One step of the plain loop."""
    model(input_ids=ids, labels=ids).loss.backward()
    chain.step()
    chain.zero_grad()


def train(model, chain, rank: int, steps=range(STEPS)) -> None:
    """The plain loop on this rank's rows."""
    for k in steps:
        step(model, chain, tokens(k, rank))


def facts(chain) -> dict:
    """Every weight, factor, link and counter."""
    links = {
        f"link{i}.{name}.{letter}": getattr(factors, letter)
        for i, link in enumerate(chain.chain)
        for name, factors in link.factors.items()
        for letter in ("A", "B")
    }
    found = {**chain._attachment.model.state_dict(), **links}
    return {
        "tensors": {name: value.detach().clone() for name, value in found.items()},
        "sites": list(chain.sites),
        "knots": chain.ledger.column("step"),
        "refused": [record.refused for record in chain.ledger],
        "progress": (chain.progress.step, chain.progress.knot, chain.progress.link_step),
    }


def refusal(call) -> str:
    """The name and message of the error that fwlora raises, or ''."""
    try:
        call()
    except FwloraError as error:
        return f"{type(error).__name__}: {error}"
    return ""


# -- scenarios --------------------------------------------------------------------------------------------------------


def injected(rank: int) -> dict:
    """A chain first, DDP around it."""
    model = llama()
    chain = chain_of(model)
    train(DistributedDataParallel(model), chain, rank)
    return facts(chain)


def adopted_before_wrapping(rank: int) -> dict:
    """A PeftModel drawn from each rank's own stream, made equal by DDP, then adopted in its wrapper."""
    model = DistributedDataParallel(get_peft_model(llama(), LoraConfig(r=4, lora_alpha=8, target_modules=TARGETS)))
    chain = chain_of(model, adopt=True)
    train(model, chain, rank)
    return facts(chain)


def joint(rank: int) -> dict:
    """The run on both ranks, and what one process does with the rows of both."""
    # Adam divides by |g| + eps: with eps far above the rounding of g, the two runs differ by rounding only.
    together, alone = (chain_of(llama(), eps=1e-4) for _ in range(2))
    train(DistributedDataParallel(together._attachment.model), together, rank)
    # Not wrapped: its knots ask the other rank, which does the same, so the answers are its own.
    for k in range(STEPS):
        step(alone._attachment.model, alone, torch.cat([tokens(k, 0), tokens(k, 1)]))
    return {"together": facts(together), "alone": facts(alone)}


def nonfinite_by_hand(rank: int) -> dict:
    """One rank's factor is poisoned and tie_knot() is called on both."""
    model = llama()
    chain = chain_of(model)
    train(DistributedDataParallel(model), chain, rank, range(2))
    if rank == 1:
        with torch.no_grad():
            chain.sites["model.layers.1.self_attn.q_proj"].B[0, 0] = torch.nan
    before = facts(chain)
    error = refusal(chain.tie_knot)
    return {"before": before, "after": facts(chain), "error": error}


def nonfinite_scheduled(rank: int) -> dict:
    """One rank's factor is poisoned by the step that a knot is due after, and healed later."""
    model = llama()
    chain = chain_of(model)
    wrapped = DistributedDataParallel(model)
    train(wrapped, chain, rank, range(2))
    site = chain.sites["model.layers.0.self_attn.v_proj"]
    healthy = []

    def poison(*_) -> None:
        healthy.append(site.A[0, 0].item())
        if rank == 1:
            with torch.no_grad():
                site.A[0, 0] = torch.inf

    hook = chain.inner.register_step_post_hook(poison)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        train(wrapped, chain, rank, range(2, 3))
    hook.remove()
    refused = facts(chain)
    with torch.no_grad():
        site.A[0, 0] = healthy[0]
    train(wrapped, chain, rank, range(3, 7))
    return {
        "warned": [str(w.message) for w in caught if w.category is RefusedKnotWarning],
        "refused": refused,
        "later": facts(chain),
    }


def cut_off(rank: int) -> dict:
    """Rank 1 runs out of memory in the middle of a knot; both ranks go on, by a call that completes it or by the next step."""
    found = {}
    for way in ("by_call", "by_step"):
        model = llama()
        chain = chain_of(model)
        wrapped = DistributedDataParallel(model)
        train(wrapped, chain, rank, range(2))
        site = list(chain.sites.values())[1]
        reset = site.reset_

        def fail(fresh: torch.Tensor, site=site, reset=reset) -> None:
            site.reset_ = reset
            raise torch.OutOfMemoryError("injected")

        if rank == 1:
            site.reset_ = fail
        error = ""
        try:
            train(wrapped, chain, rank, range(2, 3))
        except (torch.OutOfMemoryError, KnotError) as raised:
            error = f"{type(raised).__name__}: {raised}"
        recorded = len(chain.ledger)
        chain.zero_grad()
        if way == "by_call":
            chain.complete_knot()
        else:
            chain.step()  # nothing to step with; the batch was the last one's
        train(wrapped, chain, rank, range(3, STEPS))
        found[way] = {"error": error, "recorded": recorded, "facts": facts(chain)}
    return found


def other_seed(rank: int) -> dict:
    """Each rank draws from its own seed; DDP makes the first factors equal, the knot does not."""
    model = llama()
    chain = chain_of(model, seed=rank)
    wrapped = DistributedDataParallel(model)
    train(wrapped, chain, rank, range(2))
    first = refusal(lambda: train(wrapped, chain, rank, range(2, 3)))
    again = refusal(lambda: train(wrapped, chain, rank, range(3, 4)))
    return {"first": first, "again": again, "progress": facts(chain)["progress"]}


def wrapped_without_adapters(rank: int) -> dict:
    """DDP first, the chain after: refused, and the model is as it was."""
    model = llama()
    wrapped = DistributedDataParallel(model)
    error = refusal(lambda: chain_of(wrapped))
    return {"error": error, "same": model.state_dict().keys() == llama().state_dict().keys()}


def state_of_one_rank(rank: int) -> dict:
    """state_dict() on rank 0 alone, save() on both, load() on both."""
    folder = Path(os.environ["RANKS_OUT"]) / "saved"
    model = llama()
    chain = chain_of(model)
    wrapped = DistributedDataParallel(model)
    train(wrapped, chain, rank, range(4))
    if rank == 0:
        chain.state_dict()
    chain.save(folder)
    dist.barrier()
    train(wrapped, chain, rank, range(4, STEPS))

    fresh = llama()
    resumed = chain_of(fresh)
    resumed.load(folder)
    train(DistributedDataParallel(fresh), resumed, rank, range(4, STEPS))
    return {"whole": facts(chain), "resumed": facts(resumed), "files": sorted(p.name for p in folder.iterdir())}


def bf16_base(rank: int) -> dict:
    """A half-precision base with its rounding errors kept: the ranks round alike."""
    model = llama().to(torch.bfloat16)
    chain = chain_of(model)
    wrapped = DistributedDataParallel(model)
    train(wrapped, chain, rank)
    found = facts(chain)
    found["tensors"] |= {f"residual.{name}": value.clone() for name, value in chain._residuals.items()}
    return found


def accumulated(rank: int) -> dict:
    """Two micro-batches a step, the first without synchronisation, and a schedule bound late."""
    model = llama()
    chain = chain_of(model, knots=Evenly(links=2))
    chain.total_steps = 4
    wrapped = DistributedDataParallel(model)
    for k in range(4):
        with wrapped.no_sync():
            ids = tokens(2 * k, rank)
            wrapped(input_ids=ids, labels=ids).loss.backward()
        step(wrapped, chain, tokens(2 * k + 1, rank))
    return facts(chain)


def aligned(rank: int) -> dict:
    """Links that look for their directions, on both ranks, and what one process does with the rows of both."""
    options = {"reset": GradientAligned(), "knots": Every(4), "eps": 1e-4}
    together, alone = (chain_of(llama(), **options) for _ in range(2))
    train(DistributedDataParallel(together._attachment.model), together, rank)
    for k in range(STEPS):
        step(alone._attachment.model, alone, torch.cat([tokens(k, 0), tokens(k, 1)]))
    return {"together": facts(together), "alone": facts(alone)}


def aligned_frozen(rank: int) -> dict:
    """A frozen A, whose gradient nobody would average."""
    return {"error": refusal(lambda: chain_of(llama(), reset=GradientAligned(), freeze_A=True))}


def measured(rank: int) -> dict:
    """The gap in the wrapped model, from four batches a rank, then two more steps; and from all eight on one process."""
    model = llama()
    chain = chain_of(model)
    wrapped = DistributedDataParallel(model)
    train(wrapped, chain, rank, range(4))
    mine = [tokens(100 + k, rank) for k in range(4)]
    before = facts(chain)["tensors"]
    ball = SupportBall(1.0, rank=2)
    # One label for all: a gradient that stands out of the noise of four rows.
    report = chain.measure_gap(mine, lambda ids: wrapped(input_ids=ids, labels=torch.full_like(ids, 7)).loss, ball)
    same = all(torch.equal(value, before[name]) for name, value in facts(chain)["tensors"].items())
    halves = [[tokens(100 + k, r) for r in (0, 1) for k in ks] for ks in ((0, 1), (2, 3))]
    all_rows = [*halves[0], *halves[1]]
    whole = chain.measure_gap(all_rows, lambda ids: model(input_ids=ids, labels=torch.full_like(ids, 7)).loss, ball)
    train(wrapped, chain, rank, range(4, 6))
    unmeasured = chain_of(llama())
    train(DistributedDataParallel(unmeasured._attachment.model), unmeasured, rank, range(6))
    later = {"later": facts(chain), "unmeasured": facts(unmeasured)}
    return {"report": report.document(), "whole": whole.document(), "same": same, **later}


def algorithm_2(rank: int) -> dict:
    """Coefficients that rank 1 would compute a little differently, as another machine might: it takes rank 0's."""
    model = llama()
    chain = chain_of(model, merge=FrankWolfe(SupportBall(0.5, rank=2), OpenLoop()))
    wrapped = DistributedDataParallel(model)
    norm = SupportBall.norm
    SupportBall.norm = lambda self, S: norm(self, S) * (1 + 1e-7 * rank)
    try:
        train(wrapped, chain, rank)
    finally:
        SupportBall.norm = norm
    return facts(chain)


def triggered(rank: int) -> dict:
    """Schedules that decide by data, each rank seeing losses of its own: rank 0's alone never flatten."""
    found = {}
    for name, knots in {
        "plateau": Plateau(window=2, patience=1, min_steps=4),
        "gap": GapBelow(fraction=0.9, window=2, patience=1, min_steps=4),
    }.items():
        model = llama()
        chain = chain_of(model, knots=knots)
        wrapped = DistributedDataParallel(model)
        for k in range(16):
            chain.observe(float(-k if rank == 0 and k < 8 else k))
            step(wrapped, chain, tokens(k, rank))
        found[name] = facts(chain)
    return found


def trainer(rank: int) -> dict:
    """Trainer on both ranks around a PeftModel, and the same resumed on fresh models from the checkpoint after a knot."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}  # the process group stands; nobody connects
    folder = Path(os.environ["RANKS_OUT"]) / "trainer"
    found = {}
    for name, checkpoint in [("whole", None), ("resumed", folder / "checkpoint-4")]:
        model = get_peft_model(llama(), LoraConfig(r=4, lora_alpha=8, target_modules=TARGETS))
        chain = chain_of(model, adopt=True)
        arguments = TrainingArguments(
            output_dir=str(folder),
            max_steps=8,
            per_device_train_batch_size=2,
            save_steps=4,
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
            ddp_backend="gloo",
        )
        data = [{"input_ids": row, "labels": row} for k in range(4) for row in tokens(k, 0)]
        runner = Trainer(model, arguments, train_dataset=data, optimizers=(chain, None), callbacks=[ChainCallback()])
        runner.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        found[name] = facts(chain) | {"wrapped": type(runner.model_wrapped).__name__}
    adapter = PeftModel.from_pretrained(llama(), str(folder / "chain_adapter"))
    with torch.no_grad():
        ids = tokens(99, 0)
        found["difference"] = float((adapter(input_ids=ids).logits - model.eval()(input_ids=ids).logits).abs().max())
    return found


SCENARIOS = [
    injected,
    adopted_before_wrapping,
    joint,
    nonfinite_by_hand,
    nonfinite_scheduled,
    cut_off,
    other_seed,
    wrapped_without_adapters,
    state_of_one_rank,
    bf16_base,
    accumulated,
    aligned,
    aligned_frozen,
    measured,
    algorithm_2,
    triggered,
    trainer,  # the last one, for it leaves accelerate's shared state behind
]


if __name__ == "__main__":
    run_scenarios(SCENARIOS)
