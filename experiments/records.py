"""Results on disk: a folder with the config, the environment and rows of JSON lines."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import os
import platform
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "peft", "transformers", "numpy", "scipy", "scikit-learn", "copt", "PEPit", "cvxpy", "clarabel")


class RunFolder:
    """One run's folder: whole documents are replaced atomically, rows are appended.

    Args:
        path: the folder; created when missing.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self.path.mkdir(parents=True, exist_ok=True)

    def write_json(self, name: str, document: Any) -> Path:
        """Replaces `name` by `document`, never leaving half a file behind."""
        return self.write_text(name, json.dumps(plain(document), indent=2) + "\n")

    def write_text(self, name: str, text: str) -> Path:
        """Replaces `name` by `text`, never leaving half a file behind."""
        return self.write_bytes(name, text.encode("utf-8"))

    def write_bytes(self, name: str, content: bytes) -> Path:
        """Replaces `name` by `content`, never leaving half a file behind."""
        target = self.path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(target.name + ".tmp")
        temporary.write_bytes(content)
        os.replace(temporary, target)
        return target

    def read_json(self, name: str) -> Any:
        """The document of `name`."""
        return json.loads((self.path / name).read_text(encoding="utf-8"))

    def append(self, name: str, row: Mapping[str, Any]) -> None:
        """Adds one row to the JSON lines of `name`."""
        with (self.path / name).open("a", encoding="utf-8") as file:
            file.write(json.dumps(plain(row)) + "\n")

    def rows(self, name: str) -> list[dict[str, Any]]:
        """The rows of `name`, none when there is no such file; a last line that a crash has torn is no row."""
        file = self.path / name
        if not file.exists():
            return []
        # What comes after the last line break was not written to its end.
        return [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n")[:-1] if line]

    def replace_rows(self, name: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """Replaces the JSON lines of `name`."""
        self.write_text(name, "".join(json.dumps(plain(row)) + "\n" for row in rows))


def plain(value: Any) -> Any:
    """`value` in what JSON can say: dataclasses as mappings, paths and the rest as text."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return str(value)


def environment() -> dict[str, Any]:
    """What a reader needs to repeat a run: versions, processor, threads, revision."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
        "threads": os.environ.get("OMP_NUM_THREADS"),
        "packages": versions,
        "revision": revision(),
    }


def revision() -> str | None:
    """The git commit of this checkout, with "+changes" where the tree differs from it; None outside a repository."""
    here = Path(__file__).parent
    try:
        commit = _git(here, "rev-parse", "HEAD")
        return commit + ("+changes" if _git(here, "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(folder: Path, *arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=folder, check=True, capture_output=True, text=True).stdout.strip()
