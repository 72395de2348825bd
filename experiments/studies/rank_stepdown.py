"""May the rank fall? A first link at full rank for three fifths of the run, and a second one that is narrower."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

from experiments.errors import UsageError
from experiments.options import Ints
from experiments.protocol import PRESETS as PROTOCOLS
from experiments.protocol import ProtocolOptions

TITLE = "Rank step-down"
LEAD = "Rank 8 for three of five epochs, then 2, 4, 6 or 8: section 5.3 of arXiv 2401.04151."
FIRST = 3 / 5  # of the run


@dataclass(frozen=True)
class Config:
    """Fine-tune by chains of two links; finished runs are kept and never made twice.

    Attributes:
        protocol: model, data, budget and rates; its rank is the first link's.
        ranks: of the second link.
        out: folder for finished runs, figures and report.
    """

    protocol: ProtocolOptions = field(default_factory=ProtocolOptions)
    ranks: Ints = (2, 4, 6, 8)
    out: Path = Path("results/rank-stepdown")


PRESETS = {name: Config(protocol) for name, protocol in PROTOCOLS.items()} | {
    "smoke": Config(PROTOCOLS["smoke"], ranks=(1, 2)),
}  # fmt: skip


def run(config: Config) -> None:
    """Plans, runs what is not finished yet, builds the report from the records and prints its tables.

    Args:
        config: the protocol and the ranks.

    Raises:
        UsageError: an option, a file or the model is not usable.
    """
    first = config.protocol.rank
    if not config.ranks or not 1 <= min(config.ranks) <= max(config.ranks) <= first:
        raise UsageError(
            f"--ranks {' '.join(map(str, config.ranks))}: give numbers from 1 to --rank {first}; ranks may only fall."
        )
    from experiments.paper import carry_out
    from experiments.paper_contenders import step_downs

    carry_out(
        config, lambda options, steps: step_downs(options, config.ranks, math.ceil(FIRST * steps)), title=TITLE, lead=LEAD
    )  # fmt: skip
