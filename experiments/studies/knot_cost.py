"""What does a knot cost? Its time in steps of LoRA, its memory, and how much of a merge arrives in half precision."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from experiments.options import Flag

MERGES, RELATIVE = (1, 10, 30), (1e-4, 1e-3, 1e-2)


@dataclass(frozen=True)
class Config:
    """Tie knots, merge by PEFT and merge in place, in turns with steps of LoRA, on random weights and random tokens.

    Attributes:
        bases: llama-512, opt-512, llama-1024, opt-1024, llama-1b, small-llama, facebook/opt-1.3b, meta-llama/Llama-2-7b-hf, or
            folders with a config.json.
        dtypes: of the base's weights: fp32, bf16 or fp16.
        targets: sets of layers to adapt: all-linear, or names joined by +.
        batch_sizes: rows of a step of LoRA.
        rank: of the factors.
        knots: that each way ties, in as many rounds.
        firsts: chains whose first knot is timed, in which the original weights are fingerprinted.
        length: tokens of a row.
        device: cpu, cuda, or auto for CUDA where there is CUDA.
        autocast: let LoRA's step compute in bf16 whatever the weights' dtype.
        checkpointing: let LoRA's step recompute activations in the backward pass.
        size: of the square bf16 weight whose merges are held against float64.
        out: folder for records, figures and report.
    """

    bases: tuple[str, ...] = ("llama-512", "opt-512", "llama-1024", "opt-1024")
    dtypes: tuple[str, ...] = ("bf16", "fp32")
    targets: tuple[str, ...] = ("all-linear",)
    batch_sizes: tuple[int, ...] = (4,)
    rank: int = 8
    knots: int = 20
    firsts: int = 3
    length: int = 256
    device: str = "auto"
    autocast: Flag = False
    checkpointing: Flag = False
    size: int = 1024
    out: Path = Path("results/knot-cost")


PRESETS = {
    "smoke": Config(
        bases=("small-llama",), dtypes=("bf16",), batch_sizes=(2,), knots=3, firsts=1, length=16, device="cpu", size=64
    ),
    "opt-1.3b": Config(bases=("facebook/opt-1.3b",), dtypes=("bf16",), batch_sizes=(1, 16), device="cuda"),
    "llama-1b": Config(bases=("llama-1b",), dtypes=("bf16",), batch_sizes=(1, 16), device="cuda"),
    "llama-2-7b": Config(bases=("meta-llama/Llama-2-7b-hf",), dtypes=("bf16",), firsts=1, device="cuda"),
}


def run(config: Config) -> None:
    """Times and weighs, builds the report from the records and prints its tables.

    Args:
        config: sizes and places.

    Raises:
        UsageError: a size is too small, a name or device does not exist, or no case fits.
    """
    from experiments.errors import UsageError
    from experiments.starting import open_folder, prepare

    prepare(config)
    from experiments.accounting.bench import name_of
    from experiments.accounting.cases import cases_of
    from experiments.accounting.gains import gains
    from experiments.accounting.knotting import WARM_UP, obstacle, race
    from experiments.compare import one_thread
    from experiments.pages import knot_cost as page
    from experiments.progress import progress

    if config.size < config.rank:
        raise UsageError(f"--size {config.size}: give at least the rank, {config.rank}.")
    rounds = config.knots + WARM_UP
    cases = cases_of(config, steps=rounds)
    reasons = [obstacle(case.bench) for case in cases]
    if None not in reasons:
        raise UsageError(f"--bases {' '.join(config.bases)}: a model under LoRA beside one under a chain {reasons[0]}.")
    folder = open_folder(config)
    device = cases[0].bench.device
    folder.write_json("machine.json", {"device": device, "name": name_of(device)})
    folder.replace_rows("knots.jsonl", [])
    with progress(total=len(cases) * rounds, description="tying", unit="round") as bar, one_thread():
        folder.replace_rows("gains.jsonl", gains(config.size, config.rank, MERGES, RELATIVE))
        for case in cases:
            bar.set_postfix_str(case.label)
            for row in race(case.bench, config.knots, config.firsts, on_round=bar.update):
                folder.append("knots.jsonl", case.facts | row)
    page.build(folder)
    page.show(folder)
