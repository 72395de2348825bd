"""Models and tokenizers from a folder or from the hub; where that fails, one line says what to give instead."""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from experiments.errors import UsageError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def load_config(model: str) -> Any:
    """A model's config; the hub is asked once a process.

    Args:
        model: its folder, or its name on the hub.

    Returns:
        The config.

    Raises:
        UsageError: there is no such model, or the hub cannot be reached.
    """
    _check_folder(model)
    found = _read_config(model) if Path(model).is_dir() else _hub_config(model)
    if isinstance(found, UsageError):
        raise found
    return found


def load_tokenizer(model: str, **options: Any) -> Any:
    """A model's tokenizer.

    Args:
        model: its folder, or its name on the hub.
        options: for transformers.

    Returns:
        The tokenizer.

    Raises:
        UsageError: it cannot be loaded.
    """
    from transformers import AutoTokenizer

    load_config(model)
    try:
        return AutoTokenizer.from_pretrained(model, **options)
    except Exception as error:
        raise _refusal(model, "its tokenizer", error) from error


def load_weights(kind: Any, model: str, dtype: torch.dtype, **options: Any) -> Any:
    """A model with its weights, on the CPU.

    Args:
        kind: an auto class of transformers, such as AutoModelForCausalLM.
        model: its folder, or its name on the hub.
        dtype: of the weights.
        options: for transformers.

    Returns:
        What `kind.from_pretrained` gives.

    Raises:
        UsageError: it cannot be loaded.
    """
    from transformers.utils import logging

    logging.disable_progress_bar()  # ours is the only bar
    load_config(model)
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # what is missing from a file is ours to judge
    try:
        return kind.from_pretrained(model, dtype=dtype, **options)
    except Exception as error:
        raise _refusal(model, "it", error) from error
    finally:
        logging.set_verbosity(verbosity)


def check_length(max_length: int, longest: int | None) -> None:
    """Refuses rows longer than a model's context.

    Args:
        max_length: tokens of the longest row.
        longest: tokens that the model reads; None where nothing limits them.

    Raises:
        UsageError: the rows are longer.
    """
    if longest is not None and max_length > longest:
        raise UsageError(f"--max-length {max_length}: this model reads at most {longest} tokens; give that or less.")


def device(name: str) -> torch.device:
    """Where to compute: "auto" is CUDA where there is one, else the CPU."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def one_line(error: BaseException) -> str:
    """An error's message without its line breaks, arguments as the options that they are here (`lora_bias=` is --lora-bias)."""
    message = " ".join(str(error).split()).rstrip(".") or type(error).__name__
    return re.sub(r"`([a-z_]+)=", lambda match: f"`--{match[1].replace('_', '-')}=", message)


@lru_cache(maxsize=4)
def _hub_config(model: str) -> Any:
    """The reason is kept too: asking an unreachable hub again takes as long as the first time."""
    return _read_config(model)


def _read_config(model: str) -> Any:
    """The config, or the reason why there is none."""
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(model)
    except Exception as error:
        return _refusal(model, "its config", error)


def _refusal(model: str, what: str, error: Exception) -> UsageError:
    # Whatever it is, from no network to a torn file, the remedy is one of these two.
    if Path(model).is_dir():
        return UsageError(f"--model {model}: {what} cannot be loaded ({one_line(error)}).")
    reason = one_line(error).split(". ")[0]
    return UsageError(
        f"--model {model}: no folder here, and {what} cannot be loaded from the hub ({reason}); "
        "give a folder that `save_pretrained` has written, or a connection."
    )


def _check_folder(model: str) -> None:
    """A name with a leading dot, slash or tilde can only be a folder; the hub's answer would mislead."""
    path = Path(model)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise UsageError(f"--model {model}: the folder has no config.json; give one that `save_pretrained` has written.")
    elif model.startswith((".", "/", "~")) or model.count("/") > 1 or path.exists():
        raise UsageError(f"--model {model}: there is no such folder; give a model's folder or its name on the hub.")
