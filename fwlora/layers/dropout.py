"""LoRA's own dropout, off for a while."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

from torch import nn

from fwlora.layers.sites import Site


class Muted:
    """While this object lives and until it is lifted, the sites' lora_dropout drops nothing.

    Whoever forgets the object (an optimizer that is thrown away between two steps) gets the dropout back too.

    Args:
        sites: whose dropout.
    """

    def __init__(self, sites: Iterable[Site]) -> None:
        self._kept = [(module, module.p) for site in sites for module in site.dropouts()]
        self._mute()

    def lift(self) -> None:
        """Put every probability back."""
        self._restore()

    def _mute(self) -> None:
        for module, _ in self._kept:
            module.p = 0.0
        self._restore = weakref.finalize(self, _put_back, self._kept)

    def __getstate__(self) -> dict[str, Any]:
        return {"_kept": self._kept}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._kept = state["_kept"]
        self._mute()


def _put_back(kept: list[tuple[nn.Dropout, float]]) -> None:
    for module, p in kept:
        module.p = p
