"""How much memory does a method hold? Its tensors by kind beside LoRA's, and the peak of a process of its own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Config:
    """Weigh every method on random weights and random tokens, some steps with knots inside.

    Attributes:
        base: small-llama, facebook/opt-1.3b, meta-llama/Llama-2-7b-hf, or a folder with a config.json.
        methods: labels of the methods to weigh beside LoRA; none for all.
        targets: layers to adapt.
        rank: of the factors, of GaLore's subspace and of the bottlenecks.
        steps: of a run.
        knots: that a chain ties in them.
        batch_size: rows of a step.
        length: tokens of a row.
        dtype: of the base's weights: fp32, bf16 or fp16.
        device: cpu, cuda, or auto for CUDA where there is CUDA.
        in_process: weigh all methods in this process instead of each in its own; on a CPU, no peak is told then.
        out: folder for records, figure and report.
    """

    base: str = "small-llama"
    methods: tuple[str, ...] = ()
    targets: tuple[str, ...] = ("q_proj", "v_proj")
    rank: int = 8
    steps: int = 8
    knots: int = 3
    batch_size: int = 4
    length: int = 64
    dtype: str = "bf16"
    device: str = "auto"
    in_process: bool = False
    out: Path = Path("results/memory")


PRESETS = {
    "smoke": Config(methods=("chain", "full fine-tuning"), steps=4, batch_size=2, length=16, device="cpu", in_process=True),
    "opt-1.3b": Config(base="facebook/opt-1.3b", batch_size=8, length=256, steps=50, device="cuda"),
    "llama-2-7b": Config(base="meta-llama/Llama-2-7b-hf", batch_size=8, length=256, steps=50, device="cuda"),
}


def run(config: Config) -> None:
    """Weighs, builds the report from the records and prints its table.

    Args:
        config: sizes and places.

    Raises:
        UsageError: a size is too small, a name or device does not exist, or LoRA itself does not fit.
    """
    from experiments.errors import UsageError
    from experiments.starting import open_folder, prepare

    prepare(config)
    from experiments.accounting.bench import bench_of, name_of
    from experiments.accounting.weighing import isolated, weigh
    from experiments.pages import memory as page
    from experiments.progress import progress

    if config.steps <= config.knots:
        raise UsageError(f"--steps {config.steps}: {config.knots} knots need at least {config.knots + 1} steps.")
    bench = bench_of(config, config.steps)
    methods = bench.methods(config.methods)
    if (reason := bench.obstacle(methods[0])) is not None:
        raise UsageError(f"--base {config.base}: LoRA itself {reason}.")
    folder = open_folder(config)
    folder.write_json("machine.json", {"device": bench.device, "name": name_of(bench.device)})
    rows = []
    with progress(total=len(methods), description="weighing", unit="method") as bar:
        for method in methods:
            bar.set_postfix_str(method.label)
            row = weigh(bench, method) if config.in_process else isolated(bench, method)
            # The peak of a process that did other things before is no method's.
            rows.append(row | {"peak": None} if config.in_process and bench.device == "cpu" else row)
            bar.update()
    folder.replace_rows("weights.jsonl", rows)
    page.build(folder)
    rows = folder.rows("weights.jsonl")
    print(f"\n{page.table(rows).to_text()}\n", *page.findings(rows), f"\nReport: {folder.path / 'report.html'}", sep="\n")
