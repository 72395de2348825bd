"""What the tests of Trainer have in common."""

from __future__ import annotations

import torch
from peft import LoraConfig, get_peft_model
from transformers import Trainer, TrainingArguments

from fwlora.integrations.transformers import ChainCallback

STEPS = 8


def begin(bench, kind, folder, *, callbacks=None, options=None, chain_options=None, config=None, dtype=torch.float32):
    """A fresh model object from the same pristine base, its chain and its Trainer."""
    model = bench.llama().to(dtype)
    if kind == "plain":
        chain = bench.chain(model, **(chain_options or {}))
    else:
        shape = {"r": 4, "lora_alpha": 8, "target_modules": bench.targets, "task_type": "CAUSAL_LM"}
        model = get_peft_model(model, LoraConfig(**shape, **(config or {})))
        chain = bench.adopt(model, **(chain_options or {}))
    arguments = TrainingArguments(**{
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
        **(options or {}),
    })
    data = [{"input_ids": row, "labels": row} for row in bench.tokens(0, rows=12)]
    trainer = Trainer(
        model,
        arguments,
        train_dataset=data,
        eval_dataset=data[:2],
        optimizers=(chain, None),
        callbacks=[ChainCallback()] if callbacks is None else callbacks,
    )
    return trainer, chain
