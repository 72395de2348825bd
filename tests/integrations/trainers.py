"""What the tests of Trainer and of SFTTrainer have in common."""

from __future__ import annotations

import torch
from datasets import Dataset
from datasets.utils.logging import disable_progress_bar
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast, Trainer, TrainerCallback, TrainingArguments
from trl import SFTConfig, SFTTrainer

from fwlora.integrations.transformers import ChainCallback

disable_progress_bar()

STEPS = 8
# TRL trains in bfloat16 unless told otherwise.
SFT = {"bf16": False}


class ScoreAt(TrainerCallback):
    """Makes the evaluation after a chosen step the best one."""

    def __init__(self, best: int) -> None:
        self.best = best

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        metrics["eval_score"] = float(state.global_step == self.best)


BEST = {
    "load_best_model_at_end": True,
    "metric_for_best_model": "score",
    "greater_is_better": True,
    "eval_strategy": "steps",
    "eval_steps": 1,
}


class Recorded:
    """Keeps each step's loss exactly; the log holds a rounded mean."""

    losses: list[float]

    def training_step(self, *args, **kwargs):
        """Adds a micro-batch's share to the loss of its step."""
        if not hasattr(self, "losses"):
            self.losses = []
        loss = super().training_step(*args, **kwargs)  # type: ignore[misc]
        step = self.state.global_step  # type: ignore[attr-defined]
        self.losses += [0.0] * (step + 1 - len(self.losses))
        self.losses[step] += float(loss)
        return loss


class RecordedTrainer(Recorded, Trainer):
    """transformers' own."""


class RecordedSFTTrainer(Recorded, SFTTrainer):
    """TRL's for supervised fine-tuning."""


class PlainLoss(RecordedSFTTrainer):
    """TRL's with the model's own loss instead of a fused one, which adds in another order."""

    compute_loss = Trainer.compute_loss


def tokenizer() -> PreTrainedTokenizerFast:
    """A word for each of the model's 64 tokens."""
    words = models.WordLevel({f"w{number}": number for number in range(64)}, unk_token="w0")
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(words), unk_token="w0", eos_token="w1", pad_token="w2")


def adapted(bench, kind, *, chain_options=None, config=None, dtype=torch.float32):
    """A fresh model object from the same pristine base, plain or a PeftModel, and its chain."""
    model = bench.llama().to(dtype)
    if kind == "plain":
        return model, bench.chain(model, **(chain_options or {}))
    shape = {"r": 4, "lora_alpha": 8, "target_modules": bench.targets, "task_type": "CAUSAL_LM"}
    model = get_peft_model(model, LoraConfig(**shape, **(config or {})))
    return model, bench.adopt(model, **(chain_options or {}))


def begin(
    bench,
    kind,
    folder,
    *,
    callbacks=None,
    options=None,
    chain_options=None,
    config=None,
    dtype=torch.float32,
    trainer=RecordedTrainer,
    rows=None,
    scheduler=None,
    collator=None,
):
    """A fresh model object from the same pristine base, its chain and its Trainer."""
    sft = issubclass(trainer, SFTTrainer)
    model, chain = adapted(bench, kind, chain_options=chain_options, config=config, dtype=dtype)
    arguments = (SFTConfig if sft else TrainingArguments)(**{
        "output_dir": str(folder),
        "max_steps": STEPS,
        "per_device_train_batch_size": 2,
        "save_strategy": "steps",
        "save_steps": 1,
        "logging_steps": 1,
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": True,
        "seed": 0,
        **(SFT if sft else {}),
        **(options or {}),
    })
    rows = [{"input_ids": row, "labels": row} for row in bench.tokens(0, rows=12)] if rows is None else rows
    if sft:
        rows = Dataset.from_list([{"input_ids": row["input_ids"].tolist()} for row in rows])
    made = trainer(
        model,
        arguments,
        train_dataset=rows,
        eval_dataset=rows.select(range(2)) if isinstance(rows, Dataset) else rows[:2],
        optimizers=(chain, None if scheduler is None else scheduler(chain)),
        callbacks=[ChainCallback()] if callbacks is None else callbacks,
        **({"processing_class": tokenizer()} if sft else {}),
        **({} if collator is None else {"data_collator": collator}),
    )
    return made, chain


def assert_at(bench, chain, folder, step):
    """The chain is where the checkpoint of this step left it."""
    document = torch.load(folder / f"checkpoint-{step}" / "optimizer.pt", weights_only=True)["fwlora"]
    progress = chain.progress
    assert (progress.step, progress.knot, progress.link_step) == (step, step // 3, step % 3)
    assert len(chain.chain) == len(document["links"]) == step // 3
    assert chain.ledger.column("step") == [3, 6][: step // 3]
    for name, factors in document["live"].items():
        assert torch.equal(chain.sites[name].A, factors["A"])
        assert torch.equal(chain.sites[name].B, factors["B"])
