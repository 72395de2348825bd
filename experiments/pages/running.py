"""What a page says of the run that it is built from: its sizes, and what repeats it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from experiments.records import plain

# In the order in which they are named, by option.
EXTRAS = {"autocast": "autocast", "checkpointing": "gradient checkpointing", "tf32": "TF32"}


def sizes(config: Mapping[str, Any]) -> str:
    """What was run, in words."""
    batches = " or ".join(str(size) for size in config["batch_sizes"])
    extra = [word for option, word in EXTRAS.items() if config.get(option)]
    return ", ".join([f"{batches} rows of {config['length']} tokens, rank {config['rank']}, no dropout", *extra])


def command_of(study: str, config: Mapping[str, Any], usual: Any) -> str:
    """What repeats a run: every option that is not as it comes, but for the folder.

    Args:
        study: its name.
        config: of the run.
        usual: the study's config as it comes.

    Returns:
        A line for a shell.
    """
    default, said = plain(usual), [f"python -m experiments {study}"]
    for name, value in config.items():
        if name == "out" or value == default[name]:
            continue
        words = [f'"{item}"' if " " in str(item) else str(item) for item in (value if isinstance(value, list) else [value])]
        said.append(f"--{name.replace('_', '-')}" + ("" if value is True else f" {' '.join(words)}"))
    return " ".join(said)
