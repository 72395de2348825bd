"""How fast is a step? Every method in one process, a step of each in every round, beside LoRA and the frozen model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from experiments.options import Flag


@dataclass(frozen=True)
class Config:
    """Time a step of every method on random weights and random tokens; each base with each dtype and each set of targets.

    Attributes:
        bases: llama-512, opt-512, llama-1024, opt-1024, llama-1b, small-llama, facebook/opt-1.3b, meta-llama/Llama-2-7b-hf, or
            folders with a config.json.
        dtypes: of the base's weights: fp32, bf16 or fp16.
        targets: sets of layers to adapt: all-linear, or names joined by +.
        batch_sizes: rows of a step.
        methods: labels of the methods to time beside the frozen floor and LoRA; none for few in every case and most in the
            first.
        rank: of the factors, of GaLore's subspace and of the bottlenecks.
        rounds: of a case, each of a step of every method.
        knots: that a chain ties in them.
        length: tokens of a row.
        device: cpu, cuda, or auto for CUDA where there is CUDA.
        autocast: compute in bf16 whatever the weights' dtype.
        checkpointing: recompute activations in the backward pass.
        tf32: let a CUDA device multiply float32 matrices in TF32.
        out: folder for records, figures and report.
    """

    bases: tuple[str, ...] = ("llama-512", "opt-512", "llama-1024", "opt-1024")
    dtypes: tuple[str, ...] = ("bf16", "fp32")
    targets: tuple[str, ...] = ("all-linear", "q_proj+v_proj")
    batch_sizes: tuple[int, ...] = (4,)
    methods: tuple[str, ...] = ()
    rank: int = 8
    rounds: int = 18
    knots: int = 3
    length: int = 256
    device: str = "auto"
    autocast: Flag = False
    checkpointing: Flag = False
    tf32: Flag = False
    out: Path = Path("results/speed")


# Four rounds for each of the model's layers: a chain by blocks has a link for each, whose last step ties a knot.
PRESETS = {
    "smoke": Config(
        bases=("small-llama",), dtypes=("bf16",), targets=("q_proj+v_proj",), batch_sizes=(2,),
        methods=("chain", "full fine-tuning"), rounds=7, length=16, device="cpu",
    ),
    "opt-1.3b": Config(
        bases=("facebook/opt-1.3b",), dtypes=("bf16",), batch_sizes=(1, 16, 64), rounds=96, device="cuda"
    ),
    "llama-1b": Config(bases=("llama-1b",), dtypes=("bf16",), batch_sizes=(1, 16, 64), rounds=64, device="cuda"),
    "llama-2-7b": Config(
        bases=("meta-llama/Llama-2-7b-hf",), dtypes=("bf16",), methods=("chain",), rounds=30, device="cuda"
    ),
}  # fmt: skip


def run(config: Config) -> None:
    """Times, builds the report from the records and prints its tables.

    Args:
        config: sizes and places.

    Raises:
        UsageError: a size is too small, a name or device does not exist, or LoRA itself does not fit.
    """
    from experiments.errors import UsageError
    from experiments.starting import open_folder, prepare

    prepare(config)
    from experiments.accounting.bench import name_of, tf32
    from experiments.accounting.cases import cases_of, check_room
    from experiments.accounting.gradients import accuracy
    from experiments.accounting.timing import WARM_UP, race
    from experiments.compare import one_thread
    from experiments.pages import speed as page
    from experiments.progress import progress

    if config.rounds <= WARM_UP * config.knots:
        least = WARM_UP * config.knots + 1
        raise UsageError(f"--rounds {config.rounds}: {config.knots} knots need at least {least} rounds.")
    cases = cases_of(config, steps=config.rounds + WARM_UP)
    if config.tf32 and cases[0].bench.device == "cpu":
        raise UsageError("--tf32: a CPU has no TF32; leave it out, or give --device cuda.")
    check_room(cases)
    work = [(case, case.methods(config.methods, first=place == 0)) for place, case in enumerate(cases)]
    folder = open_folder(config)
    folder.write_json("machine.json", {"device": cases[0].bench.device, "name": name_of(cases[0].bench.device)})
    folder.replace_rows("laps.jsonl", [])
    folder.replace_rows("gradients.jsonl", [])
    total = len(cases) * (config.rounds + WARM_UP)
    with progress(total=total, description="racing", unit="round") as bar, one_thread():
        for case, methods in work:
            bar.set_postfix_str(case.label)
            folder.append("gradients.jsonl", case.facts | accuracy(case.bench))
            with tf32(config.tf32):
                rows = race(case.bench, methods, config.rounds, on_round=bar.update)
            for row in rows:
                folder.append("laps.jsonl", case.facts | row)
    page.build(folder)
    page.show(folder)
