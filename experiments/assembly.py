"""From a run's options to the objects that they name: model, tokenizer, rules, optimizer, schedule."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from experiments.errors import UsageError
from experiments.language import loading
from experiments.language.loading import one_line
from experiments.options import ChainOptions, FinetuneOptions
from experiments.schedules import Cosine, Linear, Schedule, Steady
from fwlora import (
    At,
    ChainLoRAOptimizer,
    Decay,
    Evenly,
    Every,
    Flat,
    Gaussian,
    GradientAligned,
    Kaiming,
    KnotSchedule,
    LinkLR,
    Never,
    Orthogonal,
    ResetRule,
    StepDown,
)
from fwlora.errors import FwloraError

INNER = {
    "adamw": torch.optim.AdamW,
    "sgd": torch.optim.SGD,
    "rmsprop": torch.optim.RMSprop,
    "adafactor": torch.optim.Adafactor,
    "radam": torch.optim.RAdam,
    "nadam": torch.optim.NAdam,
}


def check(options: FinetuneOptions) -> None:
    """Refuses values that no run can have, before anything is loaded.

    Args:
        options: the run's options.

    Raises:
        UsageError: the first such value.
    """
    chain, training, keeping = options.chain, options.training, options.keeping
    at_least_one = {
        "--links": chain.links, "--knot-every": chain.knot_every, "--rank": min(chain.rank, default=0),
        "--max-steps": training.max_steps, "--batch-size": training.batch_size, "--accumulate": training.accumulate,
        "--keep-checkpoints": keeping.keep_checkpoints, "--stop-after": keeping.stop_after,
        "--export-max-rank": keeping.export_max_rank,
    }  # fmt: skip
    for option, value in at_least_one.items():
        if value is not None and value < 1:
            raise UsageError(f"{option} {value}: give a number of at least 1.")
    not_negative = {
        "--warmup": training.warmup, "--link-warmup": chain.link_warmup, "--max-grad-norm": training.max_grad_norm,
        "--checkpoint-every": keeping.checkpoint_every, "--eval-every": keeping.eval_every, "--lr": training.lr,
    }  # fmt: skip
    for option, value in not_negative.items():
        if not value >= 0:
            raise UsageError(f"{option} {value}: give a number of at least 0.")
    finite = {
        "--lr": training.lr, "--lr-ratio": chain.lr_ratio, "--weight-decay": chain.weight_decay, "--epochs": training.epochs,
    }  # fmt: skip
    for option, value in finite.items():
        if not math.isfinite(value):
            raise UsageError(f"{option} {value}: give a finite number.")
    if not 0 <= training.seed < 2**63:
        raise UsageError(f"--seed {training.seed}: give a number from 0 to 2**63 - 1.")
    if keeping.export_tolerance is not None and not 0 <= keeping.export_tolerance < 1:
        raise UsageError(f"--export-tolerance {keeping.export_tolerance}: give a relative error from 0 to below 1.")
    if training.max_length < 2:
        raise UsageError(f"--max-length {training.max_length}: give at least 2, a token to read and one to predict.")
    if training.max_steps is None and not training.epochs > 0:
        raise UsageError(f"--epochs {training.epochs}: give a number above 0, or --max-steps.")
    if not 0 <= chain.dropout < 1:
        raise UsageError(f"--dropout {chain.dropout}: give a number from 0 to below 1.")
    given = [f"--links {chain.links}"] if chain.links is not None else []
    given += [f"--knot-every {chain.knot_every}"] if chain.knot_every is not None else []
    given += [f"--knots-at {' '.join(map(str, chain.knots_at))}"] if chain.knots_at else []
    if len(given) > 1:
        raise UsageError(f"{' and '.join(given)} contradict each other: give one of them.")
    if options.out.exists() and not options.out.is_dir():
        raise UsageError(f"--out {options.out}: this is a file; give a folder, which is made if it is missing.")
    if keeping.eval_every and options.eval is None:
        raise UsageError(f"--eval-every {keeping.eval_every} needs rows to evaluate on: give --eval FILE.jsonl.")
    if training.device == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda: torch finds no CUDA device here; leave the option out to use the CPU.")


def knots(chain: ChainOptions) -> KnotSchedule:
    """When to tie."""
    if chain.knot_every is not None:
        return Every(chain.knot_every)
    if chain.knots_at:
        return At(chain.knots_at)
    links = 3 if chain.links is None else chain.links
    return Never() if links == 1 else Evenly(links)


def link_lr(chain: ChainOptions) -> LinkLR:
    """How fast a link learns."""
    return Decay(chain.link_warmup) if chain.link_lr == "decay" else Flat(chain.link_warmup)


def reset(chain: ChainOptions) -> ResetRule:
    """Where a link starts."""
    return {
        "kaiming": Kaiming(),
        "gaussian": Gaussian(chain.reset_std),
        "orthogonal": Orthogonal(),
        "gradient-aligned": GradientAligned(),
    }[chain.reset]


def schedule(options: FinetuneOptions) -> Schedule:
    """The learning rate over the whole run."""
    kind, warmup = options.training.schedule, options.training.warmup
    if kind == "auto":
        kind = "constant" if options.chain.link_lr == "decay" else "linear"
    return {"linear": Linear(warmup), "cosine": Cosine(warmup), "constant": Steady(warmup)}[kind]


def build_optimizer(model: nn.Module, options: FinetuneOptions, steps: int) -> ChainLoRAOptimizer:
    """The chain on the model, which gets its LoRA layers in place.

    Args:
        model: a plain model.
        options: the run's options.
        steps: optimizer steps of the whole run.

    Returns:
        The optimizer.

    Raises:
        UsageError: the library refuses an option; its own words say why.
    """
    chain, training = options.chain, options.training
    inner_options: dict[str, Any] = {}
    if chain.betas is not None:
        inner_options["betas"] = chain.betas
    if chain.momentum is not None:
        inner_options["momentum"] = chain.momentum
    try:
        rank = chain.rank[0] if len(chain.rank) == 1 else StepDown(chain.rank)
        optimizer = ChainLoRAOptimizer(
            model,
            lr=training.lr,
            knots=knots(chain),
            link_lr=link_lr(chain),
            reset=reset(chain),
            freeze_A=chain.freeze_A,
            lora_bias=chain.lora_bias,
            train_modules=chain.train_modules,
            inner=INNER[chain.inner],
            lr_ratio=chain.lr_ratio,
            weight_decay=chain.weight_decay,
            fast_layers=not chain.peft_layers,
            chain_dir=chain.chain_dir,
            residual_in_state=not chain.light_checkpoints,
            seed=training.seed,
            **_width(chain, rank),
            **inner_options,
        )
        optimizer.total_steps = steps
        return optimizer
    except (FwloraError, TypeError, ValueError) as error:
        raise UsageError(one_line(error)) from error


def load_tokenizer(options: FinetuneOptions) -> Any:
    """The model's tokenizer."""
    return loading.load_tokenizer(options.model)


def load_model(options: FinetuneOptions) -> nn.Module:
    """The base model in its dtype and on its device, with gradient checkpointing if asked for."""
    from transformers import AutoModelForCausalLM

    training = options.training
    model = loading.load_weights(AutoModelForCausalLM, options.model, loading.DTYPES[training.dtype])
    loading.check_length(training.max_length, getattr(model.config, "max_position_embeddings", None))
    if training.gradient_checkpointing:
        try:
            model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
        except ValueError as error:
            raise UsageError(f"--gradient-checkpointing: {one_line(error)}; leave the option out.") from error
    return nn.Module.to(model, loading.device(training.device))


def _width(chain: ChainOptions, rank: int | StepDown) -> dict[str, Any]:
    """Rank, alpha and targets as arguments: dropout is something that only PEFT's own config can say."""
    # A single name may be a keyword of PEFT's, like all-linear.
    targets = "all-linear" if list(chain.target_modules) == ["all-linear"] else list(chain.target_modules) or None
    if not chain.dropout:
        return {"rank": rank, "alpha": chain.alpha, "target_modules": targets}
    from peft import LoraConfig

    alpha = 2 * chain.rank[0] if chain.alpha is None else chain.alpha
    config = LoraConfig(r=chain.rank[0], lora_alpha=alpha, target_modules=targets, lora_dropout=chain.dropout)  # type: ignore[arg-type]
    return {"lora_config": config, **({} if isinstance(rank, int) else {"rank": rank})}
