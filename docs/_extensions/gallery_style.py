"""Figures of the gallery look like those of the results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

STYLE = Path(__file__).parents[1] / "gallery" / "house.mplstyle"


def apply(gallery_conf: dict[str, Any], fname: str) -> None:
    """Puts the style on: sphinx-gallery calls this after it has reset matplotlib.

    Args:
        gallery_conf: not used.
        fname: not used.
    """
    plt.style.use(STYLE)
