"""A chain's adapter in a folder that is there whole or not at all, and goes whole: a killed run leaves nothing half."""

from __future__ import annotations

import logging
import os
import shutil
from dataclasses import replace
from pathlib import Path

from fwlora.optimizer import ChainLoRAOptimizer

logger = logging.getLogger(__name__)
CONFIG = "adapter_config.json"
LEDGER = "ledger.jsonl"


def publish(chain: ChainLoRAOptimizer, folder: Path, *, is_main: bool) -> None:
    """Write adapter and ledger beside `folder`, then give them its name.

    In a folder that exists other files stay, and ours are replaced one by one: without a configuration meanwhile, so that
    what is half old and half new does not load. Every rank calls, for of a sharded model each holds a part.

    Args:
        chain: what to export.
        folder: where to.
        is_main: whether this process writes.
    """
    folder = folder.resolve()
    if not is_main:
        if chain.is_sharded:
            chain.export_adapter(folder)
        return
    exists = folder.is_dir()
    scratch = folder / ".writing" if exists else folder.with_name(f".{folder.name}.writing")
    shutil.rmtree(scratch, ignore_errors=True)
    written = scratch / folder.name  # the model card names the folder
    report = chain.export_adapter(written)
    (written / LEDGER).write_text(chain.ledger.to_jsonl())
    if exists:
        (folder / CONFIG).unlink(missing_ok=True)
        for file in sorted(written.iterdir(), key=lambda file: file.name == CONFIG):
            os.replace(file, folder / file.name)
    else:
        os.rename(written, folder)
    shutil.rmtree(scratch)
    logger.info("%s", replace(report, directory=folder))


def discard(folder: Path) -> None:
    """Remove a folder that `publish` made: first its name, then its files."""
    gone = folder.with_name(f".{folder.name}.gone")
    shutil.rmtree(gone, ignore_errors=True)
    os.rename(folder, gone)
    shutil.rmtree(gone, ignore_errors=True)


def sweep(parent: Path, name: str) -> None:
    """Remove what a killed run was writing or discarding.

    Args:
        parent: the folder of published ones.
        name: a glob pattern for their names.
    """
    for ending in ("writing", "gone"):
        for leftover in parent.glob(f".{name}.{ending}"):
            shutil.rmtree(leftover, ignore_errors=True)
