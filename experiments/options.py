"""The options of a fine-tuning run: plain frozen dataclasses for the command line. Importing them loads no heavy library.

`experiments.assembly` turns them into the objects that they name.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

# An option that may be left out: the help says in words what happens then, and shows no "None".
Int = Annotated[int | None, tyro.conf.arg(metavar="INT", help_behavior_hint="")]
Float = Annotated[float | None, tyro.conf.arg(metavar="FLOAT", help_behavior_hint="")]
Floats = Annotated[tuple[float, float] | None, tyro.conf.arg(metavar="FLOAT FLOAT", help_behavior_hint="")]
File = Annotated[Path | None, tyro.conf.arg(metavar="PATH", help_behavior_hint="")]
Ints = Annotated[tuple[int, ...], tyro.conf.arg(metavar="INT ...")]
SomeInts = Annotated[tuple[int, ...], tyro.conf.arg(metavar="INT ...", help_behavior_hint="")]
Names = Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME ...", help_behavior_hint="")]
Flag = Annotated[bool, tyro.conf.arg(help_behavior_hint="")]


@dataclass(frozen=True)
class ChainOptions:
    """When to tie a knot, how wide a link is, how fast it learns and where it starts.

    Attributes:
        links: links of equal length over the run; 1 is LoRA. Without any knot option: 3.
        knot_every: tie a knot every so many optimizer steps instead.
        knots_at: tie knots after these optimizer steps instead.
        rank: rank of a link; several numbers step down from link to link, the last one repeats (8 8 4 2).
        alpha: LoRA's alpha; by default twice the first rank.
        target_modules: layers to adapt, by the end of their names; by default PEFT's choice for the architecture.
        dropout: LoRA's dropout.
        link_lr: within a link, "flat" follows --schedule, "decay" falls linearly to zero and starts afresh at each knot.
        link_warmup: warm-up steps after each knot.
        reset: how A is drawn after a knot; "gradient-aligned" spends a link's first two steps on finding it.
        reset_std: standard deviation of the gaussian reset.
        freeze_A: train B only; A is drawn anew at each knot.
        lora_bias: train a bias with B; the adapted layers must have one.
        train_modules: modules to train in full beside the factors, by name.
        inner: optimizer of the factors.
        betas: AdamW's, RAdam's and NAdam's; by default the optimizer's own.
        momentum: SGD's and RMSprop's.
        lr_ratio: learning rate of B over that of A (LoRA+).
        weight_decay: the inner optimizer's.
        chain_dir: keep retired links in this folder instead of in memory.
        light_checkpoints: leave the rounding errors of a bf16 base out of checkpoints (1 byte a weight less).
        peft_layers: run PEFT's own LoRA forward, never the library's faster one.
    """

    links: Int = None
    knot_every: Int = None
    knots_at: SomeInts = ()
    rank: Ints = (8,)
    alpha: Float = None
    target_modules: Names = ()
    dropout: float = 0.0
    link_lr: Literal["flat", "decay"] = "flat"
    link_warmup: int = 10
    reset: Literal["kaiming", "gaussian", "orthogonal", "gradient-aligned"] = "kaiming"
    reset_std: float = 0.02
    freeze_A: Flag = False
    lora_bias: Flag = False
    train_modules: Names = ()
    inner: Literal["adamw", "sgd", "rmsprop", "adafactor", "radam", "nadam"] = "adamw"
    betas: Floats = None
    momentum: Float = None
    lr_ratio: float = 1.0
    weight_decay: float = 0.0
    chain_dir: File = None
    light_checkpoints: Flag = False
    peft_layers: Flag = False


@dataclass(frozen=True)
class TrainingOptions:
    """How long, on how much at a time, and how fast.

    Attributes:
        epochs: passes over the training rows.
        max_steps: optimizer steps; overrides --epochs.
        batch_size: rows a forward pass.
        accumulate: forward passes an optimizer step.
        max_length: longest row in tokens; a longer text loses its end, a longer prompt its beginning.
        end_texts: end "text" rows with the end-of-text token, as completions always are.
        lr: peak learning rate.
        schedule: over the whole run; "auto" is linear, and constant where --link-lr decay does the decaying.
        warmup: warm-up steps of the schedule.
        max_grad_norm: clip the gradient's norm; 0 does not.
        dtype: of the base model; factors are fp32.
        gradient_checkpointing: compute activations twice and store fewer (non-reentrant).
        device: "auto" is CUDA where there is one, else the CPU.
        seed: of data order, draws and dropout.
    """

    epochs: float = 3.0
    max_steps: Int = None
    batch_size: int = 8
    accumulate: int = 1
    max_length: int = 512
    end_texts: Flag = False
    lr: float = 2e-4
    schedule: Literal["auto", "linear", "cosine", "constant"] = "auto"
    warmup: int = 0
    max_grad_norm: float = 1.0
    dtype: Literal["fp32", "bf16"] = "fp32"
    gradient_checkpointing: Flag = False
    device: Literal["auto", "cpu", "cuda"] = "auto"
    seed: int = 0


@dataclass(frozen=True)
class KeepingOptions:
    """What is written, and when.

    Attributes:
        checkpoint_every: write a checkpoint every so many optimizer steps; 0 writes one at the end only.
        keep_checkpoints: how many to keep.
        resume: go on from the newest checkpoint in --out; the result is bitwise that of the uninterrupted run.
        stop_after: stop with a checkpoint after so many optimizer steps of this call, for machines with a time limit.
        eval_every: evaluate every so many optimizer steps too; 0 evaluates before and after only.
        export_max_rank: compress the exported adapter to this rank; by default it is exact.
        export_tolerance: compress the exported adapter up to this relative error.
    """

    checkpoint_every: int = 200
    keep_checkpoints: int = 2
    resume: Flag = False
    stop_after: Int = None
    eval_every: int = 0
    export_max_rank: Int = None
    export_tolerance: Float = None


@dataclass(frozen=True)
class FinetuneOptions:
    """The whole of a fine-tuning run.

    Attributes:
        model: folder of a causal language model, or its name on the Hugging Face hub.
        train: JSON lines with "text", or with "prompt" and "completion" (the loss is then on the completion alone).
        out: folder for the adapter, the ledger, metrics, checkpoints and the report.
        eval: JSON lines held out, for the perplexity before and after.
        chain: when to tie a knot, how wide a link is, how fast it learns and where it starts.
        training: how long, on how much at a time, and how fast.
        keeping: what is written, and when.
    """

    model: str
    train: Path
    out: Path
    eval: File = None
    chain: ChainOptions = field(default_factory=ChainOptions)
    training: TrainingOptions = field(default_factory=TrainingOptions)
    keeping: KeepingOptions = field(default_factory=KeepingOptions)
