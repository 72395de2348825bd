"""What every framework's callback tells a chain, and what it hears of one."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence

from fwlora.optimizer import ChainLoRAOptimizer
from fwlora.record.ledger import KnotRecord

logger = logging.getLogger(__name__)


def bind(chain: ChainLoRAOptimizer, done: int, total: int) -> None:
    """Tell the chain the length of a run, where nobody has.

    Args:
        chain: it may have trained before: its own count goes on.
        done: steps of this run that are over, more than 0 in one that was resumed.
        total: steps of this run.
    """
    # A resumed run may lack steps that a gradient scaler skipped; a length that the schedule brings stands then.
    if done == 0 or getattr(chain.knots, "total_steps", None) is None:
        chain.total_steps = chain.progress.step + total - done


def lines(records: Sequence[KnotRecord]) -> Iterator[dict[str, float]]:
    """Log knots, and give what a framework's own log should hold of them.

    Args:
        records: the ledger's latest.

    Yields:
        One line a knot that was tied.
    """
    for record in records:
        if record.refused is not None:
            logger.warning("knot refused at step %d: %s", record.step, record.refused)
            continue
        norm = sum(value**2 for value in record.link_norms.values()) ** 0.5
        logger.info("knot %d at step %d, link norm %.3g", record.knot + 1, record.step, norm)
        line = {"chain_knot": record.knot + 1, "chain_link_norm": norm}
        if record.gap is not None:
            line |= dict(zip(("chain_gap_lower", "chain_gap", "chain_gap_upper"), record.gap["total"]["gap"], strict=True))
        yield line
