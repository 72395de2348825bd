"""A training script as users write it, started by a launcher (test_launchers.py): one process a rank.

Each scenario returns plain data and tensors, and writes what a run leaves behind to a folder of its rank's own, so that the
test sees which rank wrote.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterable
from pathlib import Path

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback, TrainingArguments

from fwlora import ChainLoRAOptimizer, unwrap
from fwlora.errors import SaveModelWarning, ShortLinkWarning
from fwlora.integrations.transformers import ChainCallback
from fwlora.sharding import whole
from tests.distributed import shards
from tests.distributed.ranks import STEPS, TARGETS, chain_of, facts, llama, tokens, train

# Adam divides by |g| + eps: with eps far above the rounding of g, runs on one and on two processes differ by rounding only.
EPS = 1e-4
LAYER = "LlamaDecoderLayer"


def joint(k: int) -> torch.Tensor:
    """The rows of both ranks at step k."""
    return torch.cat([tokens(k, 0), tokens(k, 1)])


def model_for(scenario: str) -> nn.Module:
    """A plain model, or one with an adapter: its factors come from the global stream, which the ranks have of their own."""
    if "peft" not in scenario:
        return llama()
    torch.manual_seed(5)
    return get_peft_model(llama(), LoraConfig(r=4, lora_alpha=8, target_modules=TARGETS))


def chain_for(model: nn.Module) -> ChainLoRAOptimizer:
    """A knot every 3 steps."""
    return chain_of(model, eps=EPS, adopt=isinstance(model, PeftModel))


def rows() -> list[torch.Tensor]:
    """The rows of all steps, as a data loader deals them out: a batch to rank 0, a batch to rank 1."""
    return [row for k in range(STEPS) for row in joint(k)]


def outcome(chain: ChainLoRAOptimizer) -> dict:
    """Every weight, factor, link, record and counter, in all rows."""
    found = facts(chain)
    found["tensors"] = {name: whole(value) for name, value in found["tensors"].items()}
    ledger = [(record.knot, record.step, record.link_norms) for record in chain.ledger]
    return found | {"ledger": ledger, "replay": chain.ledger.column("replay")}


def left_behind(chain: ChainLoRAOptimizer, name: str, rank: int) -> dict:
    """The outcome, and what the export says that it wrote."""
    out = Path(os.environ["LAUNCHED_OUT"])
    report = chain.export_adapter(out / f"{name}-adapter-{rank}")
    chain.save(out / f"{name}-state-{rank}")
    return outcome(chain) | {"ranks": report.ranks, "errors": report.errors}


def switch_on(accelerator: Accelerator, plugin: FullyShardedDataParallelPlugin) -> None:
    """Accelerate's FSDP2 needs no GPU; its switch asks for one, so it is turned by hand before anything is prepared."""
    for state in (AcceleratorState, PartialState):
        state._shared_state["distributed_type"] = DistributedType.FSDP
    accelerator.state.fsdp_plugin = plugin
    assert accelerator.is_fsdp2


# -- scenarios --------------------------------------------------------------------------------------------------------


def ddp(rank: int) -> dict:
    """DistributedDataParallel in a plain loop."""
    model = llama()
    chain = chain_for(model)
    train(DistributedDataParallel(model), chain, rank)
    return left_behind(chain, "ddp", rank)


def peft_fully_sharded(rank: int) -> dict:
    """FSDP2 in a plain loop: adapters first, then `fully_shard`, then the chain."""
    model = shards.sharded(model_for("peft"))
    chain = chain_of(model, eps=EPS, adopt=True)
    train(model, chain, rank)
    return left_behind(chain, "peft_fully_sharded", rank)


def accelerated(rank: int) -> dict:
    """Accelerate's loop: it wraps model and optimizer and deals the rows out."""
    accelerator = Accelerator(cpu=True)
    model = llama()
    chain = chain_for(model)
    model, optimizer, data = accelerator.prepare(model, chain, DataLoader(rows(), batch_size=4))
    for ids in data:
        accelerator.backward(model(input_ids=ids, labels=ids).loss)
        optimizer.step()
        optimizer.zero_grad()
    return left_behind(chain, "accelerated", rank) | {"wrapped": type(model).__name__}


def lit(rank: int) -> dict:
    """Lightning's loop, which wraps the module; its callback exports from all ranks."""
    from lightning import pytorch as lightning

    from fwlora.integrations.lightning import ChainCallback as LightningCallback

    class Tuned(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = llama().train()
            self.chain = chain_for(self.model)

        def training_step(self, ids, _index):
            self.wrapped = type(self.trainer.strategy.model).__name__
            return self.model(input_ids=ids, labels=ids).loss

        def configure_optimizers(self):
            return self.chain

    folder = Path(os.environ["LAUNCHED_OUT"], "lit-runs")
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    where = {"accelerator": "cpu", "devices": 2, "strategy": "ddp", "use_distributed_sampler": False}
    trainer = lightning.Trainer(default_root_dir=folder, max_epochs=1, callbacks=[LightningCallback()], **where, **quiet)
    module = Tuned()
    trainer.fit(module, DataLoader([tokens(k, rank) for k in range(STEPS)], batch_size=None))
    return left_behind(module.chain, "lit", rank) | {"wrapped": module.wrapped}


def sharded(rank: int) -> dict:
    """FSDP2 through accelerate: it swaps the optimizer's parameters, and saves what torch's distributed checkpoint keeps."""
    folder = str(Path(os.environ["LAUNCHED_OUT"], "fsdp2"))

    def begin(**options):
        AcceleratorState._reset_state(reset_partial_state=True)
        plugin = FullyShardedDataParallelPlugin(fsdp_version=2, transformer_cls_names_to_wrap=[LAYER], **options)
        accelerator = Accelerator(cpu=True, fsdp_plugin=plugin)
        switch_on(accelerator, plugin)
        model = llama()
        model, optimizer = accelerator.prepare(model, chain_for(model))
        # What the README says: accelerate's own checkpoint has no room for links.
        chain = unwrap(optimizer)
        accelerator.register_save_state_pre_hook(lambda models, weights, to: chain.save(f"{to}/chain"))
        accelerator.register_load_state_pre_hook(lambda models, source: chain.load(f"{source}/chain"))
        return accelerator, model, optimizer

    def loop(run, steps: Iterable[int]) -> None:
        accelerator, model, optimizer = run
        for k in steps:
            ids = tokens(k, rank)
            accelerator.backward(model(input_ids=ids, labels=ids).loss)
            accelerator.clip_grad_norm_(unwrap(optimizer).parameters(), 1e3)
            optimizer.step()
            optimizer.zero_grad()

    run = begin()
    chain = unwrap(run[2])
    is_cut = all(isinstance(parameter, DTensor) for parameter in chain.parameters())
    own = {id(parameter) for parameter in run[1].parameters()}
    is_adopted = {id(parameter) for parameter in chain.parameters()} <= own
    loop(run, range(4))
    run[0].save_state(folder)
    loop(run, range(4, STEPS))
    found = left_behind(chain, "sharded", rank)

    again = begin(cpu_ram_efficient_loading=True)  # by way of the meta device, which makes the model's parameters new twice
    again[0].load_state(folder)
    loop(again, range(4, STEPS))
    return found | {"is_cut": is_cut, "is_adopted": is_adopted, "resumed": outcome(unwrap(again[2]))}


class ChainTrainer(Trainer):
    """The recipe where Trainer takes no `optimizers=`."""

    def create_optimizer(self, model=None):
        """Once: a second training goes on with the same chain."""
        if self.optimizer is None:
            self.optimizer = chain_for(self.model if model is None else model)
        return self.optimizer


class ShardedTrainer(ChainTrainer):
    """Under FSDP2."""

    def create_accelerator_and_postprocess(self):
        """Switches it on."""
        super().create_accelerator_and_postprocess()
        switch_on(self.accelerator, FullyShardedDataParallelPlugin(**self.args.fsdp_plugin_args))
        self.is_fsdp_enabled = True


class ScoreAt4(TrainerCallback):
    """Makes the model of step 4 the best one."""

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        """Scores it."""
        metrics["eval_score"] = float(state.global_step == 4)


def by_trainer(kind: type[Trainer], name: str, **options) -> ChainTrainer:
    """A trainer of the joint run, with a checkpoint after every fourth step."""
    AcceleratorState._reset_state(reset_partial_state=True)
    arguments = TrainingArguments(
        output_dir=str(Path(os.environ["LAUNCHED_OUT"], f"{name}-runs")),
        max_steps=STEPS,
        per_device_train_batch_size=4,
        save_steps=4,
        train_sampling_strategy="sequential",
        lr_scheduler_type="constant",
        max_grad_norm=1e3,
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        ddp_backend="gloo",
        **options,
    )
    data = [{"input_ids": row, "labels": row} for row in rows()]
    return kind(model_for(name), arguments, train_dataset=data, eval_dataset=data[:8], callbacks=[ScoreAt4(), ChainCallback()])


def whole_and_resumed(kind: type[Trainer], name: str, rank: int, **options) -> dict:
    """A run of Trainer, and the same resumed on a fresh model from the checkpoint after a knot."""
    trainer = by_trainer(kind, name, **options)
    trainer.train()
    found = left_behind(unwrap(trainer.optimizer), name, rank) | {"wrapped": type(trainer.model_wrapped).__name__}
    again = by_trainer(kind, name, **options)
    again.train(resume_from_checkpoint=str(Path(again.args.output_dir, "checkpoint-4")))
    return found | {"resumed": outcome(unwrap(again.optimizer))}


def created(rank: int) -> dict:
    """Trainer makes the optimizer and wraps the model in DistributedDataParallel."""
    return whole_and_resumed(ChainTrainer, "created", rank)


def fsdp(**options) -> dict:
    """Arguments that turn FSDP2 on."""
    return {"fsdp": True, "fsdp_config": {"transformer_layer_cls_to_wrap": [LAYER], **options}}


def created_sharded(rank: int) -> dict:
    """Trainer makes the optimizer and has the model sharded by FSDP2, where it takes none."""
    return whole_and_resumed(ShardedTrainer, "created_sharded", rank, **fsdp())


def peft_sharded(rank: int) -> dict:
    """A PeftModel in shards, whose checkpoints hold the adapter alone."""
    return whole_and_resumed(ShardedTrainer, "peft_sharded", rank, **fsdp(state_dict_type="SHARDED_STATE_DICT"))


def best_sharded(rank: int) -> dict:
    """`load_best_model_at_end` under FSDP2."""
    best = {"load_best_model_at_end": True, "metric_for_best_model": "score", "eval_strategy": "steps", "eval_steps": 4}
    trainer = by_trainer(ShardedTrainer, "best_sharded", **best, **fsdp())
    trainer.train()
    return outcome(unwrap(trainer.optimizer))


SCENARIOS = {
    "torchrun": [ddp, peft_fully_sharded, created, lit],
    "accelerate": [accelerated, sharded, created_sharded, peft_sharded, best_sharded],
}


def main(launcher: str) -> None:
    """Run the launcher's scenarios and write what each returned."""
    warnings.simplefilter("ignore", ShortLinkWarning)
    warnings.simplefilter("ignore", SaveModelWarning)
    torch.set_num_threads(1)
    rank = int(os.environ["RANK"])
    if launcher == "torchrun":
        dist.init_process_group("gloo")
    outcomes = {}
    for scenario in SCENARIOS[launcher]:
        # Each rank has its own global stream, which no draw of a chain may depend on.
        torch.manual_seed(100 + rank)
        outcomes[scenario.__name__] = scenario(rank)
    torch.save(outcomes, Path(os.environ["LAUNCHED_OUT"], f"rank{rank}.pt"))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
