"""One plain record a knot, append-only."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, overload

from fwlora.errors import StateError
from fwlora.record.checks import any_number, anything, mapping, maybe, one_of, record, sequence, text, whole


@dataclass(frozen=True)
class KnotRecord:
    """What happened at a knot, or why a scheduled one was refused.

    Attributes:
        knot: knots tied before this one, which is the index of the link that it retired.
        step: optimizer steps taken.
        link_steps: steps of the retired link.
        ranks: rank of the retired link at each site.
        link_norms: Frobenius norm of ``s B A`` at each site.
        relative_updates: ``|dW| / |W|`` at each site.
        gains: ``<realised, asked> / |asked|^2`` of the merge at each site that is stored in half precision, else None.
        eta: Algorithm 2's step size; None where earlier links do not shrink.
        norms: norm of the chain's sum at each site after the knot, in the merge rule's set; empty without a set.
        gap: what was measured before the knot, as `GapReport.document()` has it; None where nothing was.
        fallbacks: why the retired link had started from its draw, at sites where it was to be aligned.
        refused: why the knot was not tied; None for a knot.
        replay: ``"exact"`` or ``"close"`` where this link was merged by replaying a saved chain, else None.
        seconds: wall time of the knot, outside equality and state.
    """

    knot: int
    step: int
    link_steps: int
    ranks: dict[str, int] = field(default_factory=dict)
    link_norms: dict[str, float] = field(default_factory=dict)
    relative_updates: dict[str, float] = field(default_factory=dict)
    gains: dict[str, float | None] = field(default_factory=dict)
    eta: float | None = None
    norms: dict[str, float] = field(default_factory=dict)
    gap: dict[str, Any] | None = None
    fallbacks: dict[str, str] = field(default_factory=dict)
    refused: str | None = None
    replay: str | None = None
    seconds: float = field(default=0.0, compare=False)

    def document(self) -> dict[str, Any]:
        """Plain containers, without `seconds`."""
        document = asdict(self)
        del document["seconds"]
        return document


RECORD = record(
    {"knot": whole(), "step": whole(), "link_steps": whole()},
    ranks=mapping(whole(1)),
    link_norms=mapping(any_number),
    relative_updates=mapping(any_number),
    gains=mapping(maybe(any_number)),
    eta=maybe(any_number),
    norms=mapping(any_number),
    gap=maybe(mapping(anything)),
    fallbacks=mapping(text),
    refused=maybe(text),
    replay=one_of(None, "exact", "close"),
    seconds=any_number,
)
"""What a record's document must be like; what it lacks is as a fresh record has it."""


class Ledger(Sequence[KnotRecord]):
    """The records in order.

    Example:
        >>> ledger = Ledger([KnotRecord(knot=0, step=100, link_steps=100)])
        >>> Ledger.from_jsonl(ledger.to_jsonl()) == ledger
        True
    """

    def __init__(self, records: Iterable[KnotRecord] = ()) -> None:
        self._records = list(records)

    def append(self, record: KnotRecord) -> None:
        """Write one record."""
        self._records.append(record)

    def column(self, name: str) -> list[Any]:
        """One field of every knot that was tied, in order."""
        return [getattr(record, name) for record in self if record.refused is None]

    def before(self, knot: int) -> Ledger:
        """The ledger as it was when `knot` knots had been tied."""
        ends = [i for i, record in enumerate(self) if record.refused is None and record.knot == knot - 1]
        return Ledger(self._records[: ends[0] + 1] if ends else [])

    def replayed(self, replay: str | None) -> Ledger:
        """The same knots, marked as merged by replaying a saved chain: ``"exact"``, ``"close"``, or None for not."""
        return Ledger(record if record.refused else replace(record, replay=replay) for record in self)

    def to_jsonl(self) -> str:
        """One JSON object a line, `seconds` included."""
        return "".join(json.dumps(asdict(record)) + "\n" for record in self)

    @classmethod
    def from_jsonl(cls, text: str) -> Ledger:
        """The ledger that `to_jsonl` wrote."""
        return cls.from_document([json.loads(line) for line in text.splitlines()])

    def document(self) -> list[dict[str, Any]]:
        """Plain containers for the state."""
        return [record.document() for record in self]

    @classmethod
    def from_document(cls, document: list[dict[str, Any]]) -> Ledger:
        """The ledger of a state.

        Returns:
            The ledger.

        Raises:
            StateError: for records that are none.
        """
        wrong = sequence(RECORD)(document)
        if wrong:
            raise StateError(f"The ledger{wrong}; is fwlora up to date?")
        return cls(KnotRecord(**entry) for entry in document)

    @overload
    def __getitem__(self, index: int) -> KnotRecord: ...
    @overload
    def __getitem__(self, index: slice) -> list[KnotRecord]: ...
    def __getitem__(self, index: int | slice) -> KnotRecord | list[KnotRecord]:
        return self._records[index]

    def __len__(self) -> int:
        return len(self._records)

    def __iter__(self) -> Iterator[KnotRecord]:
        return iter(self._records)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Ledger) and self._records == other._records

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Ledger({len(self)} records)"
