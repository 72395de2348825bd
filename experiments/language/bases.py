"""A pretrained model to start from, by its folder or its name on the hub; its files are read once a process."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from experiments.errors import UsageError
from experiments.language import heads, loading
from experiments.tasks.jsonl import digest

FILES = (".json", ".safetensors", ".bin", ".model", ".txt", ".jinja")


@dataclass(frozen=True)
class Base:
    """A language model, or an encoder with a head for some labels.

    Attributes:
        name: the model's folder, or its name on the hub.
        labels: of the head; None for a language model.
        seed: of what the files do not have of the head.
    """

    name: str
    labels: int | None = None
    seed: int = 0

    @property
    def longest(self) -> int | None:
        """Tokens that the model reads; None where nothing limits them."""
        places = (
            []
            if self.labels is None
            else [
                module
                for path, module in _skeleton(self).named_modules()
                if path.endswith("position_embeddings") and isinstance(module, nn.Embedding)
            ]
        )
        if places and places[0].padding_idx is not None:  # RoBERTa counts positions from the one after padding's
            return places[0].num_embeddings - places[0].padding_idx - 1
        return getattr(loading.load_config(self.name), "max_position_embeddings", None)

    @property
    def trained(self) -> tuple[str, ...]:
        """What is trained in full beside any adapter: the head, and what else the files do not have."""
        return () if self.labels is None else heads.new_modules(*_loaded(self, torch.float32))

    def skeleton(self, dtype: str) -> nn.Module:
        """Its layers on the meta device, to be counted: shapes and no data.

        Args:
            dtype: of `loading.DTYPES`.

        Returns:
            A copy of one's own.
        """
        return copy.deepcopy(_skeleton(self)).to(loading.DTYPES[dtype])

    def tokenizer(self) -> Any:
        """The model's; that of an encoder cuts a text at its beginning, since a prompt ends with what is asked."""
        return _tokenizer(self.name, encoder=self.labels is not None)

    def watched(self, targets: tuple[str, ...]) -> str:
        """The last layer that goes by the last of some names.

        Args:
            targets: the layers to adapt, by the end of their names.

        Returns:
            Its path.

        Raises:
            UsageError: the model has no layer of one of the names.
        """
        layers = self._layers()
        for target in targets:
            if not _called(layers, target):
                known = ", ".join(dict.fromkeys(path.rpartition(".")[2] for path in layers))
                raise UsageError(
                    f"--target-modules {' '.join(targets)}: {self.name} has no layer {target!r}; choose from {known}."
                )
        return _called(layers, targets[-1])[-1]

    def check_bias(self, targets: tuple[str, ...]) -> None:
        """Refuses layers that have no bias to train.

        Args:
            targets: the layers to adapt, by the end of their names.

        Raises:
            UsageError: one of them has none.
        """
        for target in targets:
            path = _called(self._layers(), target)[-1]
            if getattr(_skeleton(self).get_submodule(path), "bias", None) is None:
                raise UsageError(f"--lora-bias: {target} of {self.name} has no bias to train; leave the option out.")

    def copy(self, dtype: str, device: str) -> nn.Module:
        """A fresh copy.

        Args:
            dtype: of `loading.DTYPES`.
            device: where; "auto" for CUDA where there is one.

        Returns:
            The model, with nothing in common with other copies.
        """
        original, place = _loaded(self, loading.DTYPES[dtype])[0], loading.device(device)
        # As if they had been copied already, straight to where they go.
        moved: dict[int, Any] = {
            id(parameter): nn.Parameter(parameter.detach().to(place, copy=True), parameter.requires_grad)
            for parameter in original.parameters()
        }
        moved |= {id(buffer): buffer.detach().to(place, copy=True) for buffer in original.buffers()}
        return copy.deepcopy(original, moved)

    def identity(self) -> dict[str, str]:
        """Digests of the model's files, or the hub's revision."""
        folder = Path(self.name)
        if not folder.is_dir():
            return {"hub": self.name, "revision": str(getattr(loading.load_config(self.name), "_commit_hash", None))}
        paths = sorted(path for path in folder.iterdir() if path.is_file() and path.suffix in FILES)
        return {path.name: _digest(str(path), path.stat().st_mtime_ns, path.stat().st_size) for path in paths}

    def _layers(self) -> list[str]:
        """Paths of the linear layers but for the output head."""
        model = _skeleton(self)
        head = getattr(model, "get_output_embeddings", lambda: None)()
        return [
            path
            for path, module in model.named_modules()
            if (isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D") and module is not head
        ]


def is_decoder(name: str) -> bool:
    """Whether a model continues texts, rather than reads them whole.

    Args:
        name: its folder, or its name on the hub.

    Returns:
        True for a decoder, False for an encoder.

    Raises:
        UsageError: it is both.
    """
    from transformers.models.auto import modeling_auto as auto

    config = loading.load_config(name)
    kind = config.model_type
    if config.is_encoder_decoder:
        raise UsageError(f"--model {name}: {kind} is an encoder with a decoder; give a decoder, or an encoder alone.")
    written = getattr(config, "architectures", None) or []
    if kind in auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES:  # most of which can be told to be decoders
        return getattr(config, "is_decoder", False) and any(name.endswith(("ForCausalLM", "LMHeadModel")) for name in written)
    return kind in auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES


@lru_cache(maxsize=4)
def _skeleton(base: Base) -> nn.Module:
    """Its layers on the meta device: shapes and no data."""
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    config = copy.deepcopy(loading.load_config(base.name))
    kind = AutoModelForCausalLM
    if base.labels is not None:
        config.num_labels, kind = base.labels, AutoModelForSequenceClassification
    try:
        with torch.device("meta"):
            return kind.from_config(config)
    except ValueError as error:
        raise UsageError(
            f"--model {base.name}: no model for these tasks ({loading.one_line(error).split('. ')[0]})."
        ) from error


@lru_cache(maxsize=1)
def _loaded(base: Base, dtype: torch.dtype) -> tuple[nn.Module, tuple[str, ...]]:
    """The model, and the names of the parameters that its files do not have."""
    from transformers import AutoModelForCausalLM

    if base.labels is not None:
        return heads.load_classifier(base.name, base.labels, dtype, base.seed)
    model, report = loading.load_weights(AutoModelForCausalLM, base.name, dtype, output_loading_info=True)
    missing = sorted(report["missing_keys"])
    if missing:
        raise UsageError(f"--model {base.name}: its files have no weights for {missing[0]}; give a whole language model.")
    return model, ()


@lru_cache(maxsize=2)
def _tokenizer(name: str, *, encoder: bool) -> Any:
    return loading.load_tokenizer(name, **({"truncation_side": "left"} if encoder else {}))


@lru_cache(maxsize=64)
def _digest(path: str, changed: int, size: int) -> str:
    return digest(Path(path))


def _called(layers: list[str], name: str) -> list[str]:
    """As PEFT matches names."""
    return [path for path in layers if path == name or path.endswith(f".{name}")]
