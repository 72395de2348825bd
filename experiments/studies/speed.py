"""How fast is a step? Each method beside LoRA in one process, a step of each in turn, with knots inside."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Config:
    """Time every method's step against LoRA's on random weights and random tokens.

    Attributes:
        base: small-llama, facebook/opt-1.3b, meta-llama/Llama-2-7b-hf, or a folder with a config.json.
        methods: labels of the methods to time beside LoRA; none for all.
        targets: layers to adapt.
        rank: of the factors, of GaLore's subspace and of the bottlenecks.
        steps: rounds, each of a step of the method between two of LoRA's.
        knots: that a chain ties in them.
        batch_size: rows of a step.
        length: tokens of a row.
        dtype: of the base's weights: fp32, bf16 or fp16.
        device: cpu, cuda, or auto for CUDA where there is CUDA.
        out: folder for records, figure and report.
    """

    base: str = "small-llama"
    methods: tuple[str, ...] = ()
    targets: tuple[str, ...] = ("q_proj", "v_proj")
    rank: int = 8
    steps: int = 50
    knots: int = 3
    batch_size: int = 4
    length: int = 64
    dtype: str = "fp32"
    device: str = "auto"
    out: Path = Path("results/speed")


PRESETS = {
    "smoke": Config(methods=("chain", "full fine-tuning"), steps=7, batch_size=2, length=16, device="cpu"),
    "opt-1.3b": Config(base="facebook/opt-1.3b", batch_size=8, length=256, dtype="bf16", device="cuda"),
    "llama-2-7b": Config(base="meta-llama/Llama-2-7b-hf", batch_size=8, length=256, dtype="bf16", device="cuda"),
}


def run(config: Config) -> None:
    """Times, builds the report from the records and prints its table.

    Args:
        config: sizes and places.

    Raises:
        UsageError: a size is too small, a name or device does not exist, or LoRA itself does not fit.
    """
    from experiments.errors import UsageError
    from experiments.starting import open_folder, prepare

    prepare(config)
    from experiments.accounting.bench import bench_of, name_of
    from experiments.accounting.timing import WARM_UP, race
    from experiments.compare import one_thread
    from experiments.pages import speed as page
    from experiments.progress import progress

    if config.steps <= WARM_UP * config.knots:
        raise UsageError(f"--steps {config.steps}: {config.knots} knots need at least {WARM_UP * config.knots + 1} steps.")
    bench = bench_of(config, config.steps)
    lora, *others = bench.methods(config.methods)
    if (reason := bench.obstacle(lora, beside=2 * bench.bytes(lora).total)) is not None:
        raise UsageError(f"--base {config.base}: three models under LoRA do not fit; one beside two others {reason}.")
    folder = open_folder(config)
    folder.write_json("machine.json", {"device": bench.device, "name": name_of(bench.device)})
    rows = []
    with progress(total=(1 + len(others)) * config.steps, description="racing", unit="round") as bar, one_thread():
        for method in (lora, *others):
            bar.set_postfix_str(method.label)
            rows.append(race(bench, lora, method, on_round=bar.update))
    folder.replace_rows("races.jsonl", rows)
    page.build(folder)
    results = page.collect(folder)
    print(f"\n{page.table(results).to_text()}\n", *page.findings(results), f"\nReport: {folder.path / 'report.html'}", sep="\n")
