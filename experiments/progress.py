"""One look for every progress bar."""

from __future__ import annotations

import sys

from tqdm import tqdm


def progress(*, total: int, description: str, unit: str, done: int = 0) -> tqdm:
    """A bar on standard error: lively in a terminal, one line every few seconds in a log file.

    Args:
        total: units of the whole.
        description: what is being done.
        unit: the unit's name.
        done: units that were done before.

    Returns:
        The bar.
    """
    lively = sys.stderr.isatty()
    return tqdm(total=total, initial=done, desc=description, unit=unit, dynamic_ncols=True, mininterval=0.1 if lively else 5.0)
