"""The paper's table 1: methods, tasks, learning rates and seeds, the best rate by validation, the test reported."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from experiments.protocol import PRESETS as PROTOCOLS
from experiments.protocol import Names, ProtocolOptions

TITLE = "Table 1"
LEAD = "Chain of LoRA beside LoRA and others, on the tasks and by the protocol of arXiv 2401.04151."


@dataclass(frozen=True)
class Config:
    """Fine-tune by every method, at every rate, on every seed; finished runs are kept and never made twice.

    Attributes:
        protocol: model, data, budget and rates.
        methods: by name; LoRA is always there. A wrong name lists them all.
        out: folder for finished runs, figures and report.
    """

    protocol: ProtocolOptions = field(default_factory=ProtocolOptions)
    methods: Names = ("lora", "chain", "full")
    out: Path = Path("results/table1")


PRESETS = {name: Config(protocol) for name, protocol in PROTOCOLS.items()}


def run(config: Config) -> None:
    """Plans, runs what is not finished yet, builds the report from the records and prints its tables.

    Args:
        config: the protocol and the methods.

    Raises:
        UsageError: an option, a file or the model is not usable.
    """
    from experiments.paper import carry_out
    from experiments.paper_contenders import chosen, contenders

    carry_out(config, lambda options, _: chosen(contenders(options), config.methods, "--methods"), title=TITLE, lead=LEAD)
