"""What does training cost? FLOPs and memory of every method, counted from a model's shapes, without its weights."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from experiments.methods import Method


@dataclass(frozen=True)
class Config:
    """Count a step and a whole run of each method, and check the count with torch's own counter on a small model.

    Attributes:
        bases: facebook/opt-1.3b, meta-llama/Llama-2-7b-hf, small-llama, or folders with a config.json.
        methods: labels of the methods to count beside LoRA; none for all.
        targets: layers to adapt.
        rank: of the factors, of GaLore's subspace and of the bottlenecks.
        knots: that a chain ties.
        examples: of an epoch.
        epochs: of a run.
        batch_size: examples of a step.
        length: tokens of an example.
        dtype: of the base's weights: fp32, bf16 or fp16.
        memory_gb: of the device that the methods are to fit on.
        out: folder for records and report.
    """

    bases: tuple[str, ...] = ("facebook/opt-1.3b", "meta-llama/Llama-2-7b-hf")
    methods: tuple[str, ...] = ()
    targets: tuple[str, ...] = ("q_proj", "v_proj")
    rank: int = 8
    knots: int = 2
    examples: int = 1000
    epochs: int = 5
    batch_size: int = 8
    length: int = 256
    dtype: str = "bf16"
    memory_gb: float = 80.0
    out: Path = Path("results/flops")


PRESETS = {
    "smoke": Config(bases=("small-llama",), methods=("chain", "full fine-tuning", "GaLore"), length=64),
    "opt-1.3b": Config(bases=("facebook/opt-1.3b",)),
    "llama-2-7b": Config(bases=("meta-llama/Llama-2-7b-hf",)),
}


def run(config: Config) -> None:
    """Counts, checks, builds the report from the records and prints its tables.

    Args:
        config: sizes and places.

    Raises:
        UsageError: a size is too small, or a base, a layer or a method does not exist.
    """
    from experiments.errors import UsageError
    from experiments.starting import open_folder, prepare

    prepare(config)
    from experiments.accounting.bench import Bench
    from experiments.pages import flops as page
    from experiments.progress import progress

    if not config.bases:
        raise UsageError("--bases: give at least one.")
    if not config.memory_gb > 0:
        raise UsageError(f"--memory-gb {config.memory_gb}: give a number above 0.")
    steps = config.epochs * -(-config.examples // config.batch_size)
    benches = [
        Bench(
            base, config.dtype, "cpu", config.batch_size, config.length, config.targets, config.rank, config.knots, steps
        )
        for base in config.bases
    ]  # fmt: skip
    for bench in benches:
        bench.check()
    work = [(bench, method) for bench in benches for method in bench.methods(config.methods)]
    folder = open_folder(config)
    rows = []
    with progress(total=len(work), description="counting", unit="method") as bar:
        for bench, method in work:
            bar.set_postfix_str(method.label)
            rows.append(account(bench, method, config))
            bar.update()
    folder.replace_rows("costs.jsonl", rows)
    folder.replace_rows("check.jsonl", check(config))
    page.build(folder)
    show(folder)


def account(bench, method: Method, config: Config) -> dict[str, Any]:
    """One method on one base.

    Args:
        bench: the base and the batch.
        method: how it is adapted.
        config: the run's sizes.

    Returns:
        One row of plain data; FLOPs of a step's passes, of a run, and of what a run computes beside its passes.
    """
    from dataclasses import asdict, replace

    from experiments.accounting.flops import Reading, cost_of, run_flops
    from experiments.accounting.memory import fits

    cost = cost_of(method, bench.skeleton(), bench.targets)
    batch, whole = (Reading.of(rows, bench.length) for rows in (bench.rows, config.examples * config.epochs))
    run = run_flops(method, cost, whole, bench.steps)
    needed = bench.bytes(method)
    # What the factors would cost at a quarter of the rank, as after a step-down that computed with the active rows alone.
    narrow = run
    if bench.rank >= 4 and method.label == "LoRA":
        narrower = replace(method, rank=bench.rank // 4)  # pyright: ignore[reportArgumentType, reportCallIssue]
        narrow = run_flops(method, cost_of(narrower, bench.skeleton(), bench.targets), whole, bench.steps)
    return {
        "base": bench.base,
        "method": method.label,
        "parameters": cost.parameters,
        "step": cost.flops(batch.examples, batch.tokens, batch.squares),
        "run": run,
        "beside": run - cost.flops(whole.examples, whole.tokens, whole.squares, passes=bench.steps),
        "narrow": narrow,
        "steps": bench.steps,
        "knots": len(method.planned_knots(bench.steps)),
        "bytes": asdict(needed),
        "reason": fits(needed, config.memory_gb),
    }


def check(config: Config) -> Iterator[dict[str, Any]]:
    """Counts every method on a small Llama and has torch count a real step of it.

    Args:
        config: methods and rank.

    Yields:
        One row a method.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from experiments.accounting import architectures
    from experiments.accounting.contenders import chosen, contenders
    from experiments.accounting.flops import count
    from experiments.tasks.random_tokens import RandomTokens

    sizes = architectures.config_of(architectures.SMALL)
    sizes._attn_implementation = "eager"  # torch's counter does not know the CPU's attention kernel
    task = RandomTokens(sizes.vocab_size, rows=3, length=16)
    for method in chosen(contenders(config.rank, 2, 10), config.methods):
        model = method.inject(architectures.random_model(sizes, torch.float32), ("q_proj", "v_proj"))
        with FlopCounterMode(display=False) as counter:
            task.loss(model, task.batches(0)[0]).backward()
        yield {"method": method.label, "ours": count(model, task.rows, task.length), "torch": counter.get_total_flops()}


def show(folder) -> None:
    """Prints the tables and where the report lies."""
    from experiments.pages import flops as page

    rows = folder.rows("costs.jsonl")
    for base in dict.fromkeys(row["base"] for row in rows):
        print(f"\n{base}\n{page.table(rows, base).to_text()}")
    print(f"\nChecked on a small Llama\n{page.check_table(folder.rows('check.jsonl')).to_text()}\n")
    print(*page.findings(folder), f"\nReport: {folder.path / 'report.html'}", sep="\n")
