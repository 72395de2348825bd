"""The state document: what `state_dict()` adds under the key ``fwlora``. Parsed and checked here, applied elsewhere.

Rules come from the constructor, facts from the state. Tensors and plain containers only, so that
``torch.load(..., weights_only=True)`` reads it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from fwlora.errors import StateError
from fwlora.record.checks import (
    any_number,
    any_tensor,
    either,
    file_name,
    mapping,
    maybe,
    number,
    record,
    sequence,
    tensor,
    text,
    whole,
)
from fwlora.record.consistency import inconsistency
from fwlora.record.fingerprint import BINS, Fingerprint
from fwlora.record.ledger import RECORD
from fwlora.record.seal import CHECKSUM, check_seal

KEY = "fwlora"
VERSION = 3
SEALED = 3
"""The first version whose states hold a checksum."""
STEP, KNOT = "fw_step", "fw_knot"
"""Counters that ride in every param group, for torch's distributed checkpoint keeps nothing else of us."""

_FACTORS = record({"A": tensor(least=2), "B": tensor(least=2), "scale": number, "bias": maybe(tensor())})
_LINK = record({"sites": mapping(_FACTORS), "shrinks": mapping(number)}, sha256=text)
_FILE = record({"file": file_name, "sha256": text})
_MARKS = mapping(record({"exact": whole(-(2**63)), "sketch": tensor(torch.float64, shape=(BINS,))}))
_PHASE = record(
    {"of": whole(), "done": maybe(whole()), "sums": mapping(tensor()), "fallbacks": mapping(text)}, sites=sequence(text)
)
_FIELDS = {
    "version": whole(),
    "seed": whole(-(2**63)),
    "step": whole(),
    "link_step": whole(),
    "total_steps": maybe(whole(1)),
    "ranks": mapping(whole(1)),
    "scalings": mapping(number),
    "live": mapping(record({"A": tensor(least=2), "B": tensor(least=2)}, bias=tensor())),
    "trained": mapping(any_tensor),
    "links": sequence(either(lambda x: _FILE if isinstance(x, Mapping) and "file" in x else _LINK)),
    "ledger": sequence(RECORD),
    "residuals": maybe(mapping(tensor(torch.int8))),
    "originals": _MARKS,
    "merged": _MARKS,
    "history": mapping(sequence(any_number)),
    "alignment": maybe(_PHASE),
    "shard": maybe(record({"rank": whole(), "of": whole(1)})),
}
"""What each field of a document must be like."""


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
    def from_document(cls, document: Mapping[str, Any], key: str = KEY) -> State:
        """Parse what `state_dict()` wrote, checked field by field, then by its checksum.

        Args:
            document: the whole of it.
            key: of the entry that holds the state.

        Returns:
            The state.

        Raises:
            StateError: for another version, or a document that is no state of ours or is damaged.
        """
        entry = document[key]
        version = entry.get("version") if isinstance(entry, Mapping) else None
        if type(version) is not int or not 1 <= version <= VERSION:
            raise StateError(
                f"The state has format version {version!r} and this fwlora reads 1 to {VERSION}; upgrade fwlora, or give what "
                "`state_dict()` or `save()` wrote."
            )
        if version < SEALED and CHECKSUM in entry:
            raise StateError(f"The state is damaged: it says version {version}, which had no checksum, and has one.")
        values = _migrated(entry)
        wrong = record(_FIELDS, **{CHECKSUM: text})(values) or inconsistency(values)
        if wrong:
            raise StateError(f"The state is damaged: {key!r}{wrong}. Nothing was changed; load an earlier one.")
        if version >= SEALED:
            check_seal(document, key)
        for name in ("version", CHECKSUM):
            values.pop(name, None)
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


def _migrated(entry: Mapping[str, Any]) -> dict[str, Any]:
    """An entry of an older version in today's words: 1 knew neither shrinks nor alignment, 2 neither shards nor a checksum."""
    values = dict(entry)
    if entry["version"] == 1:
        links = entry.get("links")
        if isinstance(links, list):
            values["links"] = [{**x, "shrinks": {}} if isinstance(x, Mapping) and "sites" in x else x for x in links]
        values["alignment"] = None
    return values if entry["version"] == VERSION else {**values, "version": VERSION, "shard": None}


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[Any, ...]]:
    return {name: (*tensor.shape, tensor.dtype) for name, tensor in tensors.items()}
