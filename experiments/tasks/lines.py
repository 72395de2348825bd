"""Files of JSON lines, one object a line; what is wrong with a line is said with its number."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from experiments.errors import UsageError


def read_objects(path: Path, option: str, wanted: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Reads the objects of a file one by one; blank lines are passed over.

    Args:
        path: the file.
        option: the option that named it, for messages.
        wanted: the fields that an object should have, for messages.

    Yields:
        Where an object stands, for messages, and the object.

    Raises:
        UsageError: the file is missing, unreadable or empty, or one of its lines is not an object.
    """
    if not path.is_file():
        raise UsageError(f"{option} {path}: there is no such file; give a file of JSON lines.")
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise UsageError(f"{option} {path}: not UTF-8 text ({error.reason} at byte {error.start}); convert the file.") from None
    except OSError as error:
        raise UsageError(f"{option} {path}: cannot be read ({error.strerror}); make it readable or give another.") from None
    empty = True
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{option} {path}, line {number}"
        row = _parsed(line, where)
        if not isinstance(row, dict):
            raise UsageError(f"{where}: {type(row).__name__} instead of an object; give {wanted}.")
        empty = False
        yield where, row
    if empty:
        raise UsageError(f"{option} {path}: the file has no rows; give one JSON object a line.")


def as_text(value: object, name: str, where: str) -> str:
    """A field's value, which must be text that UTF-8 can hold.

    Args:
        value: what the row has.
        name: the field's.
        where: the row's place.

    Returns:
        The value.

    Raises:
        UsageError: it is no such text.
    """
    if not isinstance(value, str):
        raise UsageError(f"{where}: {name!r} is of type {type(value).__name__}; give a string.")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise UsageError(f"{where}: {name!r} holds half of a surrogate pair, which is no text; repair the row.") from None
    return value


def _parsed(line: str, where: str) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        reason = f"{error.msg.removesuffix(' at')} at column {error.colno}"
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, brackets within brackets
        reason = str(error).split("\n", 1)[0]
    raise UsageError(f"{where}: not JSON ({reason}); each line must be one object.")
