"""Files that are there whole or not at all, and are read whole or not at all.

A file is written under another name, brought to the disk and renamed, so that a kill at any moment leaves the old one or the
new one. A document is a zip archive, as `torch.save` makes it, whose comment is the checksum of all that stands before; plain
`torch.load` reads it too.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import torch

from fwlora.errors import StateError

try:
    import fcntl
except ImportError:  # Windows, which itself keeps others from a file that is open
    fcntl = None

UNFINISHED = ".partial"
_MARK = b"fwlora sha256 "
_COMMENT = len(_MARK) + 2 * hashlib.sha256().digest_size
# A zip ends with a record that begins so, is 22 bytes long and ends with the comment's length; the comment follows.
_END, _END_LENGTH = b"PK\5\6", 22


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file that is there whole or not at all."""
    with _replacing(path) as file:
        file.write(data)


def write_checked(path: Path, document: dict[str, Any]) -> None:
    """Write a document with its checksum, whole or not at all, and clear away what a killed process left of it.

    Args:
        path: where; folders are made.
        document: what `torch.save` takes.

    Raises:
        OSError: where it cannot be written; what was there before still is.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "state.pt"
        >>> write_checked(path, {"step": 3})
        >>> read_checked(path) == torch.load(path) == {"step": 3}
        True
    """
    clear_unfinished(path.parent)
    with _replacing(path) as file:
        _save(document, file)
        file.seek(-2, os.SEEK_END)
        file.write(struct.pack("<H", _COMMENT))
        digest = _sha256(file, file.tell())
        file.write(_MARK + digest)


def read_checked(path: Path) -> dict[str, Any]:
    """Read what `write_checked` wrote, or a document from before there were checksums; no code in it is run.

    Args:
        path: the file.

    Returns:
        The document.

    Raises:
        StateError: for a file that is damaged or is no document.
    """
    way_out = "Nothing was changed; give a folder of an earlier `optimizer.save()`, or copy this one anew."
    with open(path, "rb") as file:
        if not _is_whole(file):
            raise StateError(f"{str(path)!r} is damaged: it is not, byte for byte, what `optimizer.save()` wrote. {way_out}")
        file.seek(0)
        try:
            document = torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # of many kinds, by what stands in its place
            raise StateError(
                f"{str(path)!r} is no state: it holds something else than tensors and plain data, none of which was run "
                f"({type(error).__name__}). {way_out}"
            ) from error
    if not isinstance(document, dict):
        raise StateError(f"{str(path)!r} holds a {type(document).__name__} where a state is a dict. {way_out}")
    return document


def clear_unfinished(folder: Path) -> None:
    """Delete what killed processes left of files they were writing to a folder; those of living ones are left alone."""
    for path in folder.glob(f".*{UNFINISHED}"):
        # Of another process, or gone by now: not ours.
        with contextlib.suppress(OSError), open(path, "r+b") as file:
            if fcntl is not None:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[IO[bytes]]:
    """A file to fill, which takes the place of `path` at the end, or none after an exception."""
    _make(path.parent)
    file, unfinished = _begin(path)
    try:
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            if fcntl is None:
                file.close()  # Windows renames no open file; elsewhere the lock is held to the end
            os.replace(unfinished, path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
    _sync(path.parent)


def _begin(path: Path) -> tuple[IO[bytes], Path]:
    """A new file beside `path`, locked as long as it is open: a lock goes with its process, so that no kill leaves one."""
    while True:
        unfinished = path.with_name(f".{path.name}.{secrets.token_hex(4)}{UNFINISHED}")
        file = open(unfinished, "x+b")  # noqa: SIM115 - the caller closes it
        if fcntl is not None:
            with contextlib.suppress(OSError):  # a file system without locks, where nobody can clear away either
                fcntl.flock(file, fcntl.LOCK_EX)
        if unfinished.exists():  # not cleared away before it was locked
            return file, unfinished
        file.close()


def _save(document: dict[str, Any], file: IO[bytes]) -> None:
    try:
        torch.save(document, file)
    except RuntimeError as error:
        if isinstance(error.__context__, OSError):  # of a full disk torch tells that a position is unexpected
            raise error.__context__ from None
        raise


def _make(folder: Path) -> None:
    """Make a folder that outlives a loss of power."""
    if not folder.is_dir():
        _make(folder.parent)
        folder.mkdir(exist_ok=True)
        _sync(folder.parent)


def _sync(folder: Path) -> None:
    """Bring names to the disk, where the system can."""
    if hasattr(os, "O_DIRECTORY"):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            with contextlib.suppress(OSError):  # not every network file system can
                os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _is_whole(file: IO[bytes]) -> bool:
    """Whether the checksum matches; of an older file, which has none, those that every zip has."""
    size = file.seek(0, os.SEEK_END)
    file.seek(-min(size, _COMMENT), os.SEEK_END)
    tail = file.read()
    if tail.startswith(_MARK):
        return tail == _MARK + _sha256(file, size - _COMMENT)
    if not (tail[-_END_LENGTH:].startswith(_END) and tail.endswith(b"\0\0")):
        return False
    try:
        return zipfile.ZipFile(file).testzip() is None
    except Exception:  # what reads a zip fails in many ways where it is none
        return False


def _sha256(file: IO[bytes], length: int) -> bytes:
    """Of the first `length` bytes, in hexadecimal digits; the file is left standing after them."""
    file.seek(0)
    sha256 = hashlib.sha256()
    while length > 0 and (piece := file.read(min(length, 2**20))):
        sha256.update(piece)
        length -= len(piece)
    return sha256.hexdigest().encode()
