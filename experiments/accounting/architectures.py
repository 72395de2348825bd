"""Models by their sizes alone: published architectures and small ones, on shapes or with random weights."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, OPTConfig, PretrainedConfig

from experiments.errors import UsageError

SMALL, OPT, LLAMA, LLAMA_1B = "small-llama", "facebook/opt-1.3b", "meta-llama/Llama-2-7b-hf", "llama-1b"


def small_llama() -> PretrainedConfig:
    """Four layers of width 256: 3,426,560 parameters."""
    return LlamaConfig(
        vocab_size=1024, hidden_size=256, intermediate_size=688, num_hidden_layers=4, num_attention_heads=8,
        num_key_value_heads=4, max_position_embeddings=1024, use_cache=False,
    )  # fmt: skip


def opt() -> PretrainedConfig:
    """The published sizes of OPT-1.3B: 1,315,758,080 parameters, input and output embeddings being one."""
    return OPTConfig(
        vocab_size=50272, hidden_size=2048, word_embed_proj_dim=2048, ffn_dim=8192, num_hidden_layers=24,
        num_attention_heads=32, max_position_embeddings=2048, activation_function="relu", dropout=0.1,
        attention_dropout=0.0, layerdrop=0.0, bos_token_id=2, eos_token_id=2, pad_token_id=1, use_cache=False,
    )  # fmt: skip


def llama() -> PretrainedConfig:
    """The published sizes of Llama-2-7B: 6,738,415,616 parameters."""
    return LlamaConfig(
        vocab_size=32000, hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32,
        num_key_value_heads=32, max_position_embeddings=4096, rms_norm_eps=1e-5, bos_token_id=1, eos_token_id=2,
        use_cache=False,
    )  # fmt: skip


def llama_1b() -> PretrainedConfig:
    """The published sizes of Llama-3.2-1B: 1,235,814,400 parameters, input and output embeddings being one."""
    return LlamaConfig(
        vocab_size=128256, hidden_size=2048, intermediate_size=8192, num_hidden_layers=16, num_attention_heads=32,
        num_key_value_heads=8, head_dim=64, max_position_embeddings=131072, rms_norm_eps=1e-5, tie_word_embeddings=True,
        use_cache=False,
    )  # fmt: skip


def narrow_llama(width: int, inner: int, layers: int, heads: int) -> PretrainedConfig:
    """A few layers of a Llama for one core.

    Args:
        width: of the hidden states.
        inner: of the gated layers.
        layers: how many.
        heads: of attention, each with keys of its own.

    Returns:
        The config.
    """
    return LlamaConfig(
        vocab_size=2048, hidden_size=width, intermediate_size=inner, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=heads, max_position_embeddings=1024, use_cache=False,
    )  # fmt: skip


def narrow_opt(width: int, inner: int, layers: int, heads: int) -> PretrainedConfig:
    """A few layers of an OPT for one core, without dropout.

    Args:
        width: of the hidden states.
        inner: of the two-layer networks.
        layers: how many.
        heads: of attention.

    Returns:
        The config.
    """
    return OPTConfig(
        vocab_size=2048, hidden_size=width, word_embed_proj_dim=width, ffn_dim=inner, num_hidden_layers=layers,
        num_attention_heads=heads, max_position_embeddings=1024, activation_function="relu", dropout=0.0,
        attention_dropout=0.0, layerdrop=0.0, bos_token_id=2, eos_token_id=2, pad_token_id=1, use_cache=False,
    )  # fmt: skip


KNOWN = {
    SMALL: small_llama,
    OPT: opt,
    LLAMA: llama,
    LLAMA_1B: llama_1b,
    "llama-512": partial(narrow_llama, 512, 1376, 4, 8),
    "llama-1024": partial(narrow_llama, 1024, 2752, 2, 16),
    "opt-512": partial(narrow_opt, 512, 2048, 4, 8),
    "opt-1024": partial(narrow_opt, 1024, 4096, 2, 16),
}


def config_of(base: str) -> PretrainedConfig:
    """A model's sizes, without its weights and without a network.

    Args:
        base: a name of `KNOWN`, or a folder with a `config.json`.

    Returns:
        The config.

    Raises:
        UsageError: it is neither.
    """
    if base in KNOWN:
        return KNOWN[base]()
    if not (Path(base) / "config.json").is_file():
        raise UsageError(f"base {base!r} is no folder with a config.json: give one, or one of {', '.join(KNOWN)}.")
    try:
        return AutoConfig.from_pretrained(base, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise UsageError(f"{Path(base) / 'config.json'}: not a config that transformers reads ({_line(error)}).") from None


def skeleton(config: PretrainedConfig, dtype: torch.dtype = torch.float32) -> nn.Module:
    """The causal language model on the meta device: shapes and no data.

    Args:
        config: its sizes.
        dtype: of its weights.

    Returns:
        The model.
    """
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, dtype=dtype)


def linear_layers(model: nn.Module) -> tuple[str, ...]:
    """The last parts of the names of a model's linear layers, but for its output head."""
    head = getattr(model, "get_output_embeddings", lambda: None)()
    found = (name for name, module in model.named_modules() if isinstance(module, nn.Linear) and module is not head)
    return tuple(dict.fromkeys(name.rpartition(".")[2] for name in found))


def random_model(config: PretrainedConfig, dtype: torch.dtype, device: str = "cpu", seed: int = 0) -> nn.Module:
    """The causal language model with random weights, made where they are to lie.

    Args:
        config: its sizes.
        dtype: of its weights.
        device: where.
        seed: of the weights; the global generator is left as it was.

    Returns:
        The model.
    """
    cuda = torch.device(device).type == "cuda"
    with torch.random.fork_rng(devices=[torch.device(device)] if cuda else []), torch.device(device):
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(config, dtype=dtype)


def _line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
