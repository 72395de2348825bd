"""Finished runs in one SQLite file: what is in it survives whatever happens to the process that wrote it."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from experiments.errors import UsageError
from experiments.records import plain

TABLE = "CREATE TABLE IF NOT EXISTS runs (key TEXT PRIMARY KEY, config TEXT NOT NULL, row TEXT NOT NULL) WITHOUT ROWID"


class Store:
    """Rows of finished runs by the keys of their configs.

    Each row is a transaction of its own, on the disk when `add` returns: a kill in its middle leaves the file as it was before.
    Several processes may add to one file.

    Args:
        path: the file; made, with its folder, when missing.

    Raises:
        UsageError: the file is something else.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Store(Path(folder) / "runs.sqlite").add("a1", {"lr": 0.5}, {"value": 3.0})
        ...     Store(Path(folder) / "runs.sqlite").rows()
        {'a1': {'value': 3.0}}
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with closing(self._connect()) as connection, connection:
                connection.execute(TABLE)
        except sqlite3.DatabaseError as error:
            raise UsageError(
                f"{self.path}: not a file of finished runs ({error}); move it away, or choose another --out."
            ) from None

    def add(self, key: str, config: Mapping[str, Any], row: Mapping[str, Any]) -> None:
        """Keeps a finished run; one that is there already stays as it is.

        Args:
            key: of the run's config.
            config: what was run, for readers of the file.
            row: what came out, as JSON can say it.
        """
        with closing(self._connect()) as connection, connection:
            connection.execute(
                "INSERT OR IGNORE INTO runs VALUES (?, ?, ?)", (key, json.dumps(plain(config)), json.dumps(plain(row)))
            )

    def rows(self) -> dict[str, dict[str, Any]]:
        """Every finished run's row by its key."""
        with closing(self._connect()) as connection:
            return {key: json.loads(row) for key, row in connection.execute("SELECT key, row FROM runs")}

    def _connect(self) -> sqlite3.Connection:
        # Another process that writes at the same moment is waited for.
        return sqlite3.connect(self.path, timeout=60)
