"""The state document: what `state_dict()` adds under the key ``fwlora``. Parsed and checked here, applied elsewhere.

Rules come from the constructor, facts from the state. Tensors and plain containers only, so that
``torch.load(..., weights_only=True)`` reads it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from torch import Tensor

from fwlora.errors import StateError
from fwlora.record.fingerprint import Fingerprint

KEY = "fwlora"
VERSION = 3
STEP, KNOT = "fw_step", "fw_knot"
"""Counters that ride in every param group, for torch's distributed checkpoint keeps nothing else of us."""


@dataclass(frozen=True)
class State:
    """Everything that a chain is, beside its rules and the inner optimizer's own state.

    Attributes:
        seed: of the draws.
        step: optimizer steps taken.
        link_step: steps taken in the live link.
        total_steps: length of the run, where known.
        ranks: rank of the live link at each site.
        scalings: LoRA's scale at each site.
        live: A, B and bias of the live link at each site, as allocated.
        trained: parameters trained in full, by name.
        links: the chain's own document.
        ledger: the ledger's own document.
        residuals: int8 rounding errors by merged parameter; None where left out of the state.
        originals: fingerprint of each adapted parameter before the first merge.
        merged: fingerprint of each adapted parameter as it was when the state was made.
        history: what the knot schedule reads, step by step in the live link.
        alignment: the phase of a link that looks for its directions, and what came of the last one; None for neither.
        shard: of sharded parameters the rank whose rows these are, and of how many; None for all rows.
    """

    seed: int
    step: int
    link_step: int
    total_steps: int | None
    ranks: dict[str, int]
    scalings: dict[str, float]
    live: dict[str, dict[str, Tensor]]
    trained: dict[str, Tensor]
    links: list[dict[str, Any]]
    ledger: list[dict[str, Any]]
    residuals: dict[str, Tensor] | None
    originals: dict[str, Fingerprint]
    merged: dict[str, Fingerprint]
    history: dict[str, list[float]]
    alignment: dict[str, Any] | None
    shard: dict[str, int] | None

    def document(self) -> dict[str, Any]:
        """Tensors and plain containers, with the format's version."""
        document = {f.name: getattr(self, f.name) for f in fields(self)}
        for name in ("originals", "merged"):
            document[name] = {target: mark._asdict() for target, mark in document[name].items()}
        return {"version": VERSION, **document}

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> State:
        """Parse what `document` wrote.

        Args:
            document: the entry under ``fwlora``.

        Returns:
            The state.

        Raises:
            StateError: for another version or a document that is no state of ours.
        """
        values = _migrated(document)
        version = values.pop("version", None)
        if version != VERSION:
            raise StateError(f"The state has format version {version!r} and this fwlora reads up to {VERSION}; upgrade fwlora.")
        missing = {f.name for f in fields(cls)} ^ set(values)
        if missing:
            raise StateError(f"The state's {KEY!r} entry is damaged: unknown or missing fields {sorted(missing)}.")
        for name in ("originals", "merged"):
            values[name] = {target: Fingerprint(mark["exact"], mark["sketch"].cpu()) for target, mark in values[name].items()}
        return cls(**values)

    def check(
        self,
        seed: int,
        live: Mapping[str, Mapping[str, Tensor]],
        scalings: Mapping[str, float],
        trained: Mapping[str, Tensor],
    ) -> None:
        """Refuse a state of another seed, of other sites or of other factors.

        Args:
            seed: the optimizer's.
            live: its factors at each site.
            scalings: its LoRA scale at each site.
            trained: what it trains in full.

        Raises:
            StateError: naming what differs.
        """
        if seed != self.seed:
            raise StateError(
                f"The state was made with seed={self.seed} and this optimizer has `seed={seed}`; later links would be drawn "
                "differently. Give the same seed."
            )
        differing = sorted(set(live) ^ set(self.live))
        if differing:
            raise StateError(
                f"The state and this model differ in {len(differing)} site(s), e.g. {differing[0]!r}; give the same model, "
                "`target_modules=` and `lora_config=` as when the state was made."
            )
        for name, factors in self.live.items():
            if _shapes(factors) != _shapes(live[name]):
                raise StateError(
                    f"At site {name!r} the state's factors are {_shapes(factors)} and this optimizer's {_shapes(live[name])}; "
                    "give the same `rank=`, `lora_bias=` or `lora_config=` as when the state was made."
                )
            if not math.isclose(self.scalings[name], scalings[name], rel_tol=1e-9):  # compact() divides anew
                raise StateError(
                    f"At site {name!r} the state's scale is {self.scalings[name]} and this optimizer's {scalings[name]}; give "
                    "the same `alpha=` or `lora_config=` as when the state was made."
                )
        if _shapes(self.trained) != _shapes(trained):
            raise StateError(
                f"The state trains {_shapes(self.trained)} in full and this optimizer {_shapes(trained)}; give the same model "
                "and `train_modules=`."
            )


def _migrated(document: Mapping[str, Any]) -> dict[str, Any]:
    """A document of an older version in today's words: 1 knew neither shrinks nor alignment, 2 no shards."""
    if document.get("version") not in (1, 2):
        return dict(document)
    if document["version"] == 2:
        return {**document, "version": VERSION, "shard": None}
    links = [entry | {"shrinks": {}} if "sites" in entry else entry for entry in document.get("links", [])]
    return {**document, "version": VERSION, "links": links, "alignment": None, "shard": None}


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}
