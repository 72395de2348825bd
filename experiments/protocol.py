"""The paper's protocol as options: what is fine-tuned on what, for how long, at which rates. No heavy library is loaded.

Table 1, chain length and rank step-down share it; `PRESETS` are its known settings.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from experiments.errors import UsageError
from experiments.options import File, Flag, Float, Int

Three = Annotated[tuple[int, int, int], tyro.conf.arg(metavar="TRAIN DEV TEST")]
Rates = Annotated[tuple[float, ...], tyro.conf.arg(metavar="FLOAT ...")]
Names = Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME ...")]
Address = Annotated[str | None, tyro.conf.arg(metavar="ADDRESS", help_behavior_hint="")]

SEVEN = ("SST-2", "WSC", "CB", "WiC", "BoolQ", "MultiRC", "RTE")


@dataclass(frozen=True)
class ProtocolOptions:
    """What every method of a study shares: model, data, budget and the rates to choose from.

    Attributes:
        model: a model's folder, also one below --data-dir, or its name on the Hugging Face hub.
        data_dir: folder with <task>/train.jsonl and <task>/validation.jsonl in the official form; by default the hub.
        tasks: the paper's seven, or folders of --data-dir with prompt/completion or question/choices/answer rows.
        examples: training and validation examples from the train split, test examples from the validation split, at most.
        examples_cb: the same for CB, whose train split has 250.
        examples_wsc: the same for WSC, whose train split has 554.
        lrs: learning rates of AdamW to choose from by validation; a method of another scale multiplies them.
        seeds: of the sample, the order and the draws, paired over methods.
        epochs: passes over the training examples.
        max_steps: optimizer steps instead of --epochs.
        batch_size: examples a step.
        max_length: tokens of a prompt with its answer; a longer prompt loses its beginning.
        max_new_tokens: that are written at most, where a task asks for completions.
        rank: of LoRA and of a chain's first link.
        alpha: LoRA's alpha.
        lora_bias: train a bias with B, for models whose layers have one.
        target_modules: layers to adapt, by the end of their names.
        links: of the chains; the paper's 3.
        link_warmup: warm-up steps after each knot.
        dtype: of the base model; factors are fp32.
        device: "auto" is CUDA where there is one, else the CPU.
        memory_gb: of the device, for what cannot fit; by default the device's own.
        workers: processes that train at the same time; the results do not depend on it.
        scheduler: address of a Dask scheduler whose workers train instead, such as tcp://host:8786.
        dry_run: print what would be run, with FLOPs and memory, and stop.
    """

    model: str = "facebook/opt-1.3b"
    data_dir: File = None
    tasks: Names = SEVEN
    examples: Three = (1000, 500, 1000)
    examples_cb: Three = (150, 100, 1000)
    examples_wsc: Three = (54, 500, 1000)
    lrs: Rates = (1e-3, 8e-4, 5e-4, 1e-4, 5e-5)
    seeds: int = 5
    epochs: int = 5
    max_steps: Int = None
    batch_size: int = 8
    max_length: int = 2048
    max_new_tokens: int = 64
    rank: int = 8
    alpha: float = 16.0
    lora_bias: Flag = False
    target_modules: Names = ("q_proj", "v_proj")
    links: int = 3
    link_warmup: int = 5
    dtype: Literal["fp32", "bf16", "fp16"] = "fp32"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    memory_gb: Float = None
    workers: int = 1
    scheduler: Address = None
    dry_run: Flag = False


PRESETS = {
    # Both were measured by the paper on one 80 GB card; LoRA's bias is trained for OPT, whose projections have one.
    "opt-1.3b": ProtocolOptions(lora_bias=True, dtype="bf16", device="cuda", memory_gb=80.0),
    "llama-2-7b": ProtocolOptions(model="meta-llama/Llama-2-7b-hf", dtype="bf16", device="cuda", memory_gb=80.0),
    "tiny": ProtocolOptions(
        model="models/stories260K", tasks=("SST-2", "RTE", "CB", "BoolQ"), examples=(240, 100, 200),
        examples_cb=(150, 100, 1000), lrs=(1e-3,), seeds=2, max_steps=60, batch_size=4, max_length=512, device="cpu", workers=2,
    ),
    "smoke": ProtocolOptions(
        model="models/stories260K", tasks=("SST-2", "CB"), examples=(8, 4, 4), examples_cb=(8, 4, 4), lrs=(1e-3,), seeds=2,
        max_steps=6, batch_size=2, max_length=32, rank=2, alpha=4.0, link_warmup=1, device="cpu",
    ),
}  # fmt: skip


def resolve(options: ProtocolOptions) -> str:
    """The model's folder, where there is one of that name here or below --data-dir, else its name on the hub."""
    beside = None if options.data_dir is None else Path(options.data_dir) / options.model
    if not Path(options.model).is_dir() and beside is not None and beside.is_dir():
        return str(beside)
    return options.model


def check(options: ProtocolOptions) -> None:
    """Refuses values that no study can have, before anything is loaded.

    Args:
        options: the protocol's.

    Raises:
        UsageError: the first such value.
    """
    sizes = {
        "--seeds": options.seeds, "--epochs": options.epochs, "--max-steps": options.max_steps,
        "--batch-size": options.batch_size, "--rank": options.rank, "--links": options.links, "--workers": options.workers,
        "--max-new-tokens": options.max_new_tokens, "--examples": min(options.examples),
        "--examples-cb": min(options.examples_cb), "--examples-wsc": min(options.examples_wsc),
    }  # fmt: skip
    for option, value in sizes.items():
        if value is not None and value < 1:
            raise UsageError(f"{option} {value}: give a number of at least 1.")
    for option, values in {"--tasks": options.tasks, "--lrs": options.lrs, "--target-modules": options.target_modules}.items():
        if not values or len(set(values)) < len(values):
            raise UsageError(f"{option} {' '.join(map(str, values))}: give one or more, each once.")
    positive = [*(("--lrs", rate) for rate in options.lrs), ("--alpha", options.alpha), ("--memory-gb", options.memory_gb)]
    for option, value in positive:
        if value is not None and not 0 < value < float("inf"):
            raise UsageError(f"{option} {value}: give a finite number above 0.")
    if options.link_warmup < 0:
        raise UsageError(f"--link-warmup {options.link_warmup}: give a number of at least 0.")
    if options.max_length < 8:
        raise UsageError(f"--max-length {options.max_length}: no prompt with an answer is that short; give at least 8.")
