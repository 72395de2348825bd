"""A checksum within a state: whatever way the document took, what is loaded is what was saved.

It covers what a chain is, the entry under ``fwlora``, and the inner optimizer's moments; parameter groups are the user's to
edit.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fwlora.errors import StateError
from fwlora.sharding import local

CHECKSUM = "checksum"
LINK = frozenset({"sites", "shrinks", "sha256"})
"""Keys of a link's document. It holds its own digest, which is computed once, for a link never changes."""


def digest(value: Any) -> str:
    """Sha256 of a document of tensors and plain data: of structure, keys, types and every bit, whatever memory it lies in.

    Args:
        value: the document; of a sharded tensor this rank's rows count.

    Returns:
        64 hexadecimal digits.

    Raises:
        StateError: for something else in it.

    Example:
        >>> x = torch.arange(6.0).view(2, 3)
        >>> digest({"a": x, "b": 1}) == digest({"b": 1, "a": x.mT.contiguous().mT}), digest({"b": 1}) == digest({"b": 1.0})
        (True, False)
    """
    sha256 = hashlib.sha256()
    _walk(value, sha256)
    return sha256.hexdigest()


def seal(document: dict[str, Any], key: str) -> dict[str, Any]:
    """The document with its checksum under `key`."""
    return {**document, key: {**document[key], CHECKSUM: _checksum(document, key)}}


def check_seal(document: Mapping[str, Any], key: str) -> None:
    """Refuse a document that is not what was sealed.

    Args:
        document: of a version that has a checksum.
        key: where it has one.

    Raises:
        StateError: for a document that was changed, or that lacks its checksum.
    """
    try:
        links = [link for link in document[key]["links"] if _is_link(link)]
        is_whole = all(link["sha256"] == digest({"sites": link["sites"], "shrinks": link["shrinks"]}) for link in links)
        is_whole = is_whole and document[key].get(CHECKSUM) == _checksum(document, key)
    except RecursionError:
        is_whole = False
    if not is_whole:
        raise StateError(
            "The state is damaged, or was edited after it was saved: its checksum does not match. Nothing was changed; load an "
            "earlier one. (Only `param_groups` may be edited, e.g. the lr.)"
        )


def _checksum(document: Mapping[str, Any], key: str) -> str:
    entry = {name: value for name, value in document[key].items() if name != CHECKSUM}
    return digest({key: entry, "state": document.get("state")})


def _is_link(value: Any) -> bool:
    return isinstance(value, Mapping) and set(value) == LINK


def _walk(value: Any, sha256: Any) -> None:
    if isinstance(value, Tensor) and (value.layout is not torch.strided or value.is_nested or value.is_meta):
        raise StateError("A state holds tensors with all their numbers, and this one has one that is sparse, nested or empty.")
    if isinstance(value, Tensor):
        own = local(value).cpu().contiguous()
        sha256.update(f"T{own.dtype}{tuple(value.shape)}{tuple(own.shape)}".encode())
        sha256.update(own.flatten().view(torch.uint8).numpy())
    elif _is_link(value):
        sha256.update(f"K{value['sha256']}".encode())
    elif isinstance(value, Mapping):
        sha256.update(f"M{len(value)}".encode())
        for key in sorted(value, key=lambda key: (type(key).__name__, repr(key))):
            _walk(key, sha256)
            _walk(value[key], sha256)
    elif isinstance(value, list | tuple):
        sha256.update(f"L{len(value)}".encode())
        for entry in value:
            _walk(entry, sha256)
    elif type(value) is float:
        sha256.update(b"F" + struct.pack("<d", value))
    elif value is None or type(value) in (bool, int, str):
        told = str(value).encode(errors="surrogatepass")
        sha256.update(f"{type(value).__name__}{len(told)}:".encode() + told)
    else:
        raise StateError(f"A state holds tensors and plain data, and this one a {type(value).__name__}; it cannot be kept.")
