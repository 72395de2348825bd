"""Two kinds of real text that every Python installation has: English from its manual, and its own source.

A tiny Llama learns the English of `pydoc_data.topics` character by character and is then adapted to the standard library's
source: another domain in the same alphabet.
"""

from __future__ import annotations

import re
import sysconfig
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM

from experiments.schedules import Linear, scheduler
from experiments.tasks.metric import NATS, Metric
from experiments.train import Setup, StepRecord, train

ALPHABET = 128  # ASCII; anything else is read as "?"
HELD_OUT = 8  # every eighth block of a text is kept for evaluation
BLOCK = 2048
MODULES = ("argparse", "ast", "asyncio/base_events", "configparser", "dataclasses", "difflib", "doctest", "inspect", "pathlib",
           "pickle", "subprocess", "tarfile", "threading", "typing")  # fmt: skip


def llama() -> LlamaConfig:
    """Two layers of width 96: about 240,000 parameters."""
    return LlamaConfig(
        vocab_size=ALPHABET,
        hidden_size=96,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=128,
        bos_token_id=None,
        eos_token_id=None,
        use_cache=False,
    )


@dataclass(frozen=True)
class Windows:
    """Random windows of a text, the batch of a step being drawn from (seed, step).

    Attributes:
        text: "english" or "source".
        seed: of the draws.
        batch_size: windows a step.
        length: characters predicted in a window.
    """

    text: str
    seed: int
    batch_size: int = 32
    length: int = 64

    def batches(self, step: int) -> list[Tensor]:
        """One batch of `length` + 1 characters a row."""
        ids = _ids(self.text)[0]
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
        starts = torch.randint(len(ids) - self.length - 1, (self.batch_size, 1), generator=generator)
        return [ids[starts + torch.arange(self.length + 1)]]

    def loss(self, model: nn.Module, batch: Tensor) -> Tensor:
        """Mean nats per character."""
        logits = model(input_ids=batch[:, :-1]).logits
        return functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())

    def targets(self, batch: Tensor) -> int:
        """Characters predicted."""
        return batch[:, 1:].numel()


@dataclass(frozen=True)
class Source:
    """Adapt the tiny Llama from English to Python source.

    Attributes:
        base: the file that `pretrain` wrote.
        steps: optimizer steps.
        batch_size: windows a step.
        evaluated: windows of the held-out source.
        split: "test", or "validation" for choosing learning rates: windows halfway between the test's.
    """

    base: str
    steps: int = 400
    batch_size: int = 16
    evaluated: int = 256
    split: str = "test"
    name: str = "source"
    metric: Metric = NATS
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    watched: str = "model.layers.1.mlp.down_proj"

    def model(self) -> nn.Module:
        """The model as it left pretraining, read from its file."""
        model = LlamaForCausalLM(llama())
        model.load_state_dict(torch.load(self.base, weights_only=True))
        return model

    def task(self, seed: int) -> Windows:
        """Training windows drawn from `seed`."""
        return Windows("source", seed, batch_size=self.batch_size)

    def evaluate(self, model: nn.Module) -> float:
        """Mean nats per character on the held-out source."""
        windows = self._held_out("source")
        model.eval()
        with torch.no_grad():
            losses = [float(Windows("source", 0).loss(model, part)) * len(part) for part in windows.split(64)]
        return sum(losses) / len(windows)

    def outputs(self, model: nn.Module) -> Tensor:
        """Logits on a few held-out windows."""
        model.eval()
        with torch.no_grad():
            return model(input_ids=self._held_out("source")[:16, :-1]).logits

    def _held_out(self, text: str) -> Tensor:
        ids = _ids(text)[1]
        starts = torch.linspace(0, len(ids) - 66, self.evaluated // 64 * 64).long()
        if self.split == "validation":
            starts = (starts[:-1] + starts[1:]) // 2
        return ids[starts[:, None] + torch.arange(65)]


def pretrain(path: Path, *, steps: int, on_step: Callable[[StepRecord], None] = lambda record: None) -> list[float]:
    """Trains the tiny Llama on English from a random start and writes its weights.

    Args:
        path: the file to write.
        steps: optimizer steps.
        on_step: called after each, with its `StepRecord`.

    Returns:
        The training loss of each step.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlamaForCausalLM(llama())
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=3e-3, weight_decay=0.0)
    setup = Setup(model, optimizer, parameters, scheduler(optimizer, Linear(warmup=20), steps))
    losses = train(setup, Windows("english", 0), steps=steps, max_grad_norm=1.0, on_step=on_step)
    torch.save(model.state_dict(), path)
    return losses


@lru_cache(maxsize=2)
def _ids(text: str) -> tuple[Tensor, Tensor]:
    """A text's characters for training and for evaluation."""
    content = _english() if text == "english" else _source()
    ids = torch.tensor([code if code < ALPHABET else ord("?") for code in map(ord, content)])
    blocks = ids.split(BLOCK)
    train_blocks = [block for number, block in enumerate(blocks) if number % HELD_OUT]
    return torch.cat(train_blocks), torch.cat(blocks[::HELD_OUT])


def _english() -> str:
    from pydoc_data.topics import topics

    return "\n\n".join(topics[name] for name in sorted(topics))


def _source() -> str:
    folder = Path(sysconfig.get_paths()["stdlib"])
    files = (folder / f"{name}.py" for name in MODULES)
    content = "\n".join(file.read_text(encoding="utf-8") for file in files if file.exists())
    # Comments and docstrings are English again; without them the new domain is as far from the old one as it looks.
    content = re.sub(r'""".*?"""', '""" """', content, flags=re.DOTALL)
    return re.sub(r"^\s*#.*\n", "", content, flags=re.MULTILINE)
