"""What the tests run over: one row a thing. To serve a new layer kind, model or rule is to add its row here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    ViTConfig,
    ViTModel,
)

from fwlora import (
    Add,
    AllSites,
    At,
    Blocks,
    Centred,
    Constant,
    Decay,
    Evenly,
    Every,
    Fixed,
    Flat,
    FrankWolfe,
    GapBelow,
    Gaussian,
    GradientAligned,
    Kaiming,
    Never,
    NuclearBall,
    OpenLoop,
    Orthogonal,
    Plateau,
    ShortStep,
    StepDown,
    SupportBall,
)
from tests.quantising import KINDS, quantised

# Relative error that one merge may put on a forward pass: a few last places of the weights' storage.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-6, torch.float16: 2e-3, torch.bfloat16: 1.2e-2}

KNOTS = [Every(3), Evenly(3), Evenly(2, total_steps=9), At([2, 5]), Never()]
RANKS = [Constant(2), StepDown([3, 2, 1])]
LINK_LRS = [Flat(warmup=0), Flat(warmup=2), Decay(warmup=1)]
RESETS = [Kaiming(), Gaussian(std=0.1), Orthogonal(), GradientAligned()]
TRIGGERS = [Plateau(min_steps=3), GapBelow(min_steps=3)]
SETS = [NuclearBall(2.0), SupportBall(2.0, rank=2)]
STEP_SIZES = [Fixed(0.5), OpenLoop(), Centred(1.0, 2.0, 3), ShortStep(1.0)]
MERGES = [Add(), FrankWolfe(NuclearBall(2.0), 0.5), FrankWolfe(SupportBall(2.0, rank=2), OpenLoop())]
BLOCKS = [AllSites(), Blocks(2)]
INNERS = [
    (torch.optim.AdamW, {}),
    (torch.optim.SGD, {"momentum": 0.9}),
    (torch.optim.SGD, {"momentum": 0.9, "dampening": 0.5}),
    (torch.optim.Adafactor, {}),
    (torch.optim.RMSprop, {"momentum": 0.5}),
    (torch.optim.RAdam, {}),
    (torch.optim.NAdam, {}),
    (torch.optim.Muon, {}),
]


@dataclass(frozen=True)
class Case:
    """A model, what to give it, and the layers to adapt."""

    build: Callable[[], nn.Module]
    batch: Callable[[], dict[str, Tensor]]
    targets: list[str] | str | None = None
    options: dict[str, Any] = field(default_factory=dict)

    def model(self, dtype: torch.dtype = torch.float32) -> nn.Module:
        """A fresh model, always the same one; no dropout, so that forward passes compare."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return self.build().to(dtype).eval()


def output(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """The model's main output, in the model's precision."""
    dtype = next(p.dtype for p in model.parameters() if p.is_floating_point())
    out = model(**{k: v.to(dtype) if v.is_floating_point() else v for k, v in batch.items()})
    return out if isinstance(out, Tensor) else out[0]


def loss_of(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Squared distance to fixed random numbers: gradients at every site, also behind a layer norm."""
    out = output(model, batch).float()
    return (out - torch.randn(out.shape, generator=torch.Generator().manual_seed(2))).square().mean()


class _Net(nn.Module):
    """A stack of layers called by keyword, as transformers models are."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class _TrainingNet(_Net):
    """One that never evaluates: there an int8 layer rounds what comes in too, and forward passes do not compare."""

    def train(self, mode: bool = True) -> nn.Module:
        return super().train()


def _quantised_net(kind: str) -> nn.Module:
    return _TrainingNet(
        quantised(nn.Linear(16, 24), kind), nn.Tanh(), quantised(nn.Linear(24, 8, bias=False), kind), nn.Tanh(),
        quantised(nn.Linear(8, 8), kind)
    )  # fmt: skip


def _draw(*shape: int) -> Callable[[], dict[str, Tensor]]:
    return lambda: {"x": torch.randn(*shape, generator=torch.Generator().manual_seed(1))}


def _tokens(name: str, vocab: int, *shape: int) -> Callable[[], dict[str, Tensor]]:
    return lambda: {name: torch.randint(vocab, shape, generator=torch.Generator().manual_seed(1))}


def tiny_llama(**options: Any) -> LlamaForCausalLM:
    """Two layers of width 32; untied unless told otherwise."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=64, bos_token_id=1, eos_token_id=2, pad_token_id=0, **options,
        )
    )  # fmt: skip


CASES = {
    "linear": Case(lambda: _Net(nn.Linear(6, 7), nn.Tanh(), nn.Linear(7, 3, bias=False)), _draw(5, 6)),
    "conv1d": Case(lambda: _Net(nn.Conv1d(4, 6, 3, padding=1)), _draw(2, 4, 9)),
    "conv2d": Case(
        lambda: _Net(nn.Conv2d(3, 5, 3, stride=2), nn.Tanh(), nn.Conv2d(5, 4, 1), nn.Flatten(), nn.Linear(36, 3)),
        _draw(2, 3, 8, 8),
    ),
    "conv3d": Case(lambda: _Net(nn.Conv3d(2, 3, 2)), _draw(1, 2, 4, 4, 4)),
    "embedding": Case(
        lambda: _Net(nn.Embedding(11, 6), nn.Linear(6, 4)), _tokens("x", 11, 3, 5), ["layers.0", "layers.1"]
    ),
    "llama": Case(tiny_llama, _tokens("input_ids", 64, 2, 8)),
    "opt": Case(
        lambda: OPTForCausalLM(
            OPTConfig(
                vocab_size=64, hidden_size=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=4,
                max_position_embeddings=64, word_embed_proj_dim=32,
            )
        ),
        _tokens("input_ids", 64, 2, 8),
        options={"lora_bias": True},
    ),
    "gpt2": Case(
        lambda: GPT2LMHeadModel(GPT2Config(vocab_size=64, n_positions=64, n_embd=32, n_layer=2, n_head=4)),
        _tokens("input_ids", 64, 2, 8),
        ["c_attn", "c_proj"],
    ),
    "bert": Case(
        lambda: BertModel(
            BertConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48)
        ),
        _tokens("input_ids", 64, 2, 8),
    ),
    "vit": Case(
        lambda: ViTModel(
            ViTConfig(
                image_size=16, patch_size=8, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
                intermediate_size=48,
            )
        ),
        lambda: {"pixel_values": torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))},
        ["q_proj", "v_proj", "fc1"],
    ),
}  # fmt: skip

# Served otherwise than what is merged into: by tests of their own.
QUANTISED = {kind: Case(partial(_quantised_net, kind), _draw(5, 16)) for kind in KINDS}
