"""Checkpoints that are whole or absent, and a resume that refuses another run's."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from experiments.errors import UsageError

NAME = re.compile(r"step-(\d{8})\.pt")


class Checkpoints:
    """A folder of checkpoints, one file each.

    Args:
        folder: where they lie; created at the first save.
        keep: how many of the newest to keep, at least 1.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder = folder
        self.keep = keep

    def save(self, step: int, document: Mapping[str, Any]) -> Path:
        """Writes a checkpoint under a temporary name and renames it when it is safely on disk.

        Args:
            step: optimizer steps done.
            document: tensors and plain containers.

        Returns:
            The file.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        target = self.folder / f"step-{step:08d}.pt"
        temporary = target.with_suffix(".tmp")
        with temporary.open("wb") as file:
            torch.save(dict(document), file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
        for old in self.files()[: -self.keep]:
            old.unlink()
        return target

    def files(self) -> list[Path]:
        """The checkpoints, oldest first; unfinished ones are not among them."""
        if not self.folder.is_dir():
            return []
        return sorted(file for file in self.folder.iterdir() if NAME.fullmatch(file.name))

    def newest(self) -> dict[str, Any]:
        """Reads the newest checkpoint.

        Returns:
            Its document.

        Raises:
            UsageError: there is none, or it cannot be read.
        """
        files = self.files()
        if not files:
            raise UsageError(f"--resume: there is no checkpoint in {self.folder}; leave --resume out to start a run there.")
        try:
            return torch.load(files[-1], map_location="cpu", weights_only=True)
        except (OSError, RuntimeError, EOFError, ValueError, UnpicklingError):
            raise UsageError(f"--resume: {files[-1]} cannot be read as a checkpoint; delete it to use an older one.") from None


def random_state() -> dict[str, Any]:
    """The states of torch's generators, from which dropout draws."""
    return {"cpu": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []}


def restore_random_state(state: Mapping[str, Any]) -> None:
    """Puts the generators back."""
    torch.set_rng_state(state["cpu"])
    if torch.cuda.is_available() and state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])


def check_same_run(saved: Mapping[str, Any], present: Mapping[str, Any]) -> None:
    """Refuses to go on with a run under other options than it was begun with.

    Args:
        saved: option names and values, from the checkpoint.
        present: the same, from the command line.

    Raises:
        UsageError: an option differs; the first one is named.
    """
    for option in [*saved, *(option for option in present if option not in saved)]:
        before, now = saved.get(option), present.get(option)
        if before != now:
            raise UsageError(
                f"--resume: the run was begun with {option} {_shown(before)} and is now given {_shown(now)}; "
                f"give {_shown(before)} again, or start a new run in another --out."
            )


def _shown(value: object) -> str:
    if isinstance(value, list | tuple):
        return " ".join(map(str, value)) or "nothing"
    return "nothing" if value is None else str(value)
