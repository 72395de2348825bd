"""How long should a chain be? LoRA and chains of several lengths under one schedule, at equal steps."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from experiments.errors import UsageError
from experiments.options import Ints
from experiments.protocol import PRESETS as PROTOCOLS
from experiments.protocol import ProtocolOptions

TITLE = "Chain length"
LEAD = "LoRA and longer and longer chains at equal steps: figure 3 of arXiv 2401.04151."


@dataclass(frozen=True)
class Config:
    """Fine-tune by chains of every length; finished runs are kept and never made twice.

    Attributes:
        protocol: model, data, budget and rates.
        lengths: links of the chains; 1 is LoRA, which is always there.
        out: folder for finished runs, figures and report.
    """

    protocol: ProtocolOptions = field(default_factory=ProtocolOptions)
    lengths: Ints = (1, 2, 3, 5)
    out: Path = Path("results/chain-length")


PRESETS = {name: Config(protocol) for name, protocol in PROTOCOLS.items()}


def run(config: Config) -> None:
    """Plans, runs what is not finished yet, builds the report from the records and prints its tables.

    Args:
        config: the protocol and the lengths.

    Raises:
        UsageError: an option, a file or the model is not usable.
    """
    if not config.lengths or min(config.lengths) < 1:
        raise UsageError(f"--lengths {' '.join(map(str, config.lengths))}: give numbers of at least 1.")
    from experiments.paper import carry_out
    from experiments.paper_contenders import chains

    carry_out(config, lambda options, _: chains(options, config.lengths), title=TITLE, lead=LEAD)
