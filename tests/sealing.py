"""Giving an edited state document the checksums that it would have had."""

from __future__ import annotations

from typing import Any

from fwlora.record.seal import digest, seal


def resealed(document: dict[str, Any]) -> dict[str, Any]:
    """The document as somebody would make it who knows how checksums are made."""
    links = [
        {**link, "sha256": digest({"sites": link["sites"], "shrinks": link["shrinks"]})}
        if isinstance(link, dict) and "sites" in link
        else link
        for link in document["fwlora"]["links"]
    ]
    return seal({**document, "fwlora": {**document["fwlora"], "links": links}}, "fwlora")
