"""How much memory does a method hold? Its tensors by kind beside LoRA's, and the peak of a process of its own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from experiments.options import Flag


@dataclass(frozen=True)
class Config:
    """Weigh every method on random weights and random tokens; each base with each dtype and each set of targets.

    Attributes:
        bases: llama-512, opt-512, llama-1024, opt-1024, llama-1b, small-llama, facebook/opt-1.3b, meta-llama/Llama-2-7b-hf, or
            folders with a config.json.
        dtypes: of the base's weights: fp32, bf16 or fp16.
        targets: sets of layers to adapt: all-linear, or names joined by +.
        batch_sizes: rows of a step.
        methods: labels of the methods to weigh beside the frozen floor and LoRA; none for most in the first case and few in
            the others. Compiled ones are weighed where they are named.
        rank: of the factors, of GaLore's subspace and of the bottlenecks.
        steps: of a run; twice as many as the base has layers show BAdam's every block, and a chain's.
        knots: that a chain ties in them.
        length: tokens of a row.
        device: cpu, cuda, or auto for CUDA where there is CUDA.
        autocast: compute in bf16 whatever the weights' dtype.
        checkpointing: recompute activations in the backward pass.
        in_process: weigh all methods in this process instead of each in its own; on a CPU, no peak is told then.
        out: folder for records, figures and report.
    """

    bases: tuple[str, ...] = ("llama-512", "opt-512", "llama-1024")
    dtypes: tuple[str, ...] = ("bf16", "fp32")
    targets: tuple[str, ...] = ("all-linear", "q_proj+v_proj")
    batch_sizes: tuple[int, ...] = (4,)
    methods: tuple[str, ...] = ()
    rank: int = 8
    steps: int = 8
    knots: int = 3
    length: int = 256
    device: str = "auto"
    autocast: Flag = False
    checkpointing: Flag = False
    in_process: Flag = False
    out: Path = Path("results/memory")


PRESETS = {
    "smoke": Config(
        bases=("small-llama",), dtypes=("bf16",), targets=("q_proj+v_proj",), batch_sizes=(2,),
        methods=("chain", "full fine-tuning"), steps=4, length=16, device="cpu", in_process=True,
    ),
    "opt-1.3b": Config(
        bases=("facebook/opt-1.3b",), dtypes=("bf16",), batch_sizes=(1, 16, 64), steps=48, device="cuda"
    ),
    "llama-1b": Config(bases=("llama-1b",), dtypes=("bf16",), batch_sizes=(1, 16, 64), steps=32, device="cuda"),
    "llama-2-7b": Config(
        bases=("meta-llama/Llama-2-7b-hf",), dtypes=("bf16",), batch_sizes=(1, 8), steps=64, device="cuda"
    ),
}  # fmt: skip


def run(config: Config) -> None:
    """Weighs, builds the report from the records and prints its tables.

    Args:
        config: sizes and places.

    Raises:
        UsageError: a size is too small, a name or device does not exist, or LoRA itself fits in no case.
    """
    from experiments.errors import UsageError
    from experiments.starting import open_folder, prepare

    prepare(config)
    from experiments.accounting.bench import name_of
    from experiments.accounting.cases import cases_of, check_room
    from experiments.accounting.weighing import isolated, weigh, weighed
    from experiments.pages import memory as page
    from experiments.progress import progress

    if config.steps <= config.knots:
        raise UsageError(f"--steps {config.steps}: {config.knots} knots need at least {config.knots + 1} steps.")
    cases = cases_of(config, config.steps)
    check_room(cases)
    work = [(case, method) for place, case in enumerate(cases) for method in weighed(case, config.methods, first=place == 0)]
    folder = open_folder(config)
    device = cases[0].bench.device
    folder.write_json("machine.json", {"device": device, "name": name_of(device)})
    folder.replace_rows("weights.jsonl", [])
    with progress(total=len(work), description="weighing", unit="method") as bar:
        for case, method in work:
            bar.set_postfix_str(f"{case.label}: {method.label}")
            row = case.facts | (weigh if config.in_process else isolated)(case.bench, method)
            # The peak of a process that did other things before is no method's.
            folder.append("weights.jsonl", row | {"peak": None} if config.in_process and device == "cpu" else row)
            bar.update()
    page.build(folder)
    page.show(folder)
