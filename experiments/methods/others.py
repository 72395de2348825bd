"""Adapters that act on activations: prefix tuning and bottlenecks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from peft import PrefixTuningConfig, TaskType, get_peft_model
from torch import Tensor, nn

from experiments.errors import UsageError
from experiments.methods.method import Plain, called, unfreeze
from experiments.schedules import Linear, Schedule, scheduler
from experiments.train import Setup


@dataclass(frozen=True)
class PrefixTuning(Plain):
    """Trained keys and values in front of every layer's own (arXiv 2101.00190), by PEFT; for decoder models.

    Attention is shared with the prefix from the first step on, so that training does not start from the base's function.

    Attributes:
        label: the name in tables and figures.
        lr: peak learning rate.
        virtual_tokens: length of the prefix.
        schedule: over the whole run.
        spread: standard deviation of the draw. With PEFT's own, 1, the prefix takes over attention: it set a pretrained
            Llama of 260K parameters back from 4.74 to 7.03 nats a token of WikiText (.1: to 5.12), and after 150 steps it
            stood at 3.93 (.1: at 3.62), each at the best of three rates.
    """

    label: str
    lr: float
    virtual_tokens: int = 20
    schedule: Schedule = field(default_factory=Linear)
    spread: float = 0.1

    def prepare(self, model: nn.Module, targets: Sequence[str], *, steps: int, seed: int, trained: Sequence[str] = ()) -> Setup:
        """PEFT draws the prefix from torch's global generator, which is seeded for it and put back."""
        return _setup(self._inject(model, trained, seed), self, steps)

    def inject(self, model: nn.Module, targets: Sequence[str], *, trained: Sequence[str] = ()) -> nn.Module:
        """A PeftModel around the model; `targets` has no say."""
        return self._inject(model, trained, seed=0)

    def _inject(self, model: nn.Module, trained: Sequence[str], seed: int) -> nn.Module:
        decodes = getattr(model, "can_generate", lambda: False)()
        if not decodes or cast(Any, model).config.is_encoder_decoder:
            raise UsageError(
                f"{self.label}: prefix tuning needs a decoder that takes past keys and values, and this is a "
                f"{type(model).__name__}; leave the method out for this model."
            )
        config = PrefixTuningConfig(task_type=TaskType.CAUSAL_LM, num_virtual_tokens=self.virtual_tokens)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            prefixed = get_peft_model(cast(Any, model), config)
        with torch.no_grad():
            cast(Any, prefixed).prompt_encoder["default"].embedding.weight.mul_(self.spread)
        unfreeze(model, trained)
        return prefixed


@dataclass(frozen=True)
class BottleneckAdapters(Plain):
    """A small network with a residual connection behind each target (arXiv 1902.00751): ``h + up(relu(down(h)))``.

    Written here because PEFT 0.21.2 offers none: PEANuT's non-linearity acts on the frozen weight and leaves a static update,
    AdaptionPrompt adds a prefix, and Shadow runs a second network beside the whole model.

    Attributes:
        label: the name in tables and figures.
        lr: peak learning rate.
        width: of the bottleneck.
        schedule: over the whole run.
        behind: the layers whose outputs are adapted, by name, such as those that end a sub-layer; empty for the targets.
    """

    label: str
    lr: float
    width: int
    schedule: Schedule = field(default_factory=Linear)
    behind: tuple[str, ...] = ()

    def prepare(self, model: nn.Module, targets: Sequence[str], *, steps: int, seed: int, trained: Sequence[str] = ()) -> Setup:
        """The down-projections are drawn, the up-projections start at zero."""
        return _setup(self._inject(model, targets, trained, seed), self, steps)

    def inject(self, model: nn.Module, targets: Sequence[str], *, trained: Sequence[str] = ()) -> nn.Module:
        """A module `bottleneck` in each layer, which a hook applies to its output."""
        return self._inject(model, targets, trained, seed=0)

    def _inject(self, model: nn.Module, targets: Sequence[str], trained: Sequence[str], seed: int) -> nn.Module:
        names = self.behind or tuple(targets)
        layers = called(model, names)
        if not layers:
            raise UsageError(f"{self.label}: the model has no layer called {', '.join(names)}; name layers that it has.")
        features = [self._features(path, layer) for path, layer in layers]
        model.requires_grad_(False)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for (_, layer), size in zip(layers, features, strict=True):
                layer.bottleneck = Bottleneck(size, self.width).to(cast(Tensor, layer.weight).device)
                layer.register_forward_hook(_apply_bottleneck)
        unfreeze(model, trained)
        return model

    def _features(self, path: str, layer: nn.Module) -> int:
        features = getattr(layer, "out_features", getattr(layer, "nf", None))  # nf: GPT-2's
        if features is None or cast(Tensor, layer.weight).ndim != 2:
            raise UsageError(
                f"{self.label}: {path!r} is a {type(layer).__name__}, and a bottleneck goes behind a linear layer; name those."
            )
        return features


class Bottleneck(nn.Module):
    """``h + up(relu(down(h)))``, the identity at the start; float32 whatever it stands behind."""

    def __init__(self, features: int, width: int) -> None:
        super().__init__()
        self.down = nn.Linear(features, width)
        self.up = nn.Linear(width, features)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        """The adapted activations."""
        change = self.up(torch.relu(self.down(hidden.to(self.down.weight.dtype))))
        return hidden + change.to(hidden.dtype)


def _apply_bottleneck(layer: nn.Module, inputs: tuple, output: Tensor) -> Tensor:
    return cast(nn.Module, layer.bottleneck)(output)


def _setup(model: nn.Module, method: PrefixTuning | BottleneckAdapters, steps: int) -> Setup:
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=method.lr, weight_decay=0.0)
    return Setup(model, optimizer, parameters, scheduler(optimizer, method.schedule, steps))
