"""How a study starts: sizes checked, nothing downloaded, a folder that says how to repeat it, and a small base model."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.errors import UsageError
from experiments.records import RunFolder, environment


def prepare(config: Any, least: Mapping[str, int] | None = None, *, hub: bool = False) -> None:
    """Check every whole number of a config, and see to it that nothing is downloaded; before anything heavy is imported.

    Args:
        config: a study's.
        least: the smallest value of an option, by its name in the config; 1 where nothing stands.
        hub: whether the study may ask the hub for what it is told to.

    Raises:
        UsageError: a size is too small, or the folder is a file.
    """
    for name, value in vars(config).items():
        floor = (least or {}).get(name, 1)
        if isinstance(value, int) and not isinstance(value, bool) and value < floor:
            raise UsageError(f"--{name.replace('_', '-')} {value}: give a number of at least {floor}.")
    out = getattr(config, "out", None)
    if out is not None and out.exists() and not out.is_dir():
        raise UsageError(f"--out {out}: this is a file; give a folder, which is made if it is missing.")
    os.environ.update(HF_HUB_DISABLE_TELEMETRY="1", TOKENIZERS_PARALLELISM="false")
    if not hub:
        # Whatever would try is to fail at once.
        os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1")


def open_folder(config: Any) -> RunFolder:
    """The folder ``config.out``, with the config and the environment in it."""
    folder = RunFolder(config.out)
    folder.write_json("config.json", config)
    folder.write_json("environment.json", environment())
    return folder


def english_llama(path: Path, steps: int) -> list[float]:
    """The tiny Llama trained on English, on one thread and with a bar.

    Args:
        path: where its weights go.
        steps: optimizer steps.

    Returns:
        The training loss of each step.
    """
    from experiments.compare import one_thread
    from experiments.progress import progress
    from experiments.tasks.pydoc_text import pretrain

    with progress(total=steps, description="tiny Llama on English", unit="step") as bar, one_thread():

        def advance(record) -> None:
            bar.update()
            bar.set_postfix_str(f"loss {record.loss:.2f}", refresh=False)

        return pretrain(path, steps=steps, on_step=advance)
