"""Tiny random models of several architectures, and words for them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import nn
from transformers import (
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForMaskedLM,
)

WORDS = [
    "<unk>", "<s>", "</s>", "<pad>", "the", "a", "cat", "dog", "bird", "sat", "ran", "flew", "on", "under", "mat", "tree",
    "yes", "no", "maybe", "is", "it", "so",
]  # fmt: skip
SIZES: dict[str, Any] = {"vocab_size": len(WORDS), "initializer_range": 0.3, "bos_token_id": 1, "eos_token_id": 2}
WIDE: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 32}

CONFIGS: dict[str, Callable[[], Any]] = {
    "llama": lambda: LlamaConfig(**SIZES, **WIDE, intermediate_size=32, num_key_value_heads=1),
    "opt": lambda: OPTConfig(
        **{k: v for k, v in SIZES.items() if k != "initializer_range"}, **WIDE, init_std=0.3, ffn_dim=32,
        word_embed_proj_dim=16, pad_token_id=3, dropout=0.0,
    ),
    "gpt2": lambda: GPT2Config(**SIZES, n_embd=16, n_layer=2, n_head=2, n_positions=32),
    "gpt-neox": lambda: GPTNeoXConfig(**SIZES, **WIDE, intermediate_size=32),
}  # fmt: skip
CLASSES = {"llama": LlamaForCausalLM, "opt": OPTForCausalLM, "gpt2": GPT2LMHeadModel, "gpt-neox": GPTNeoXForCausalLM}
TARGETS = {
    "llama": ("q_proj", "v_proj"), "opt": ("q_proj", "v_proj"), "gpt2": ("c_attn",), "gpt-neox": ("query_key_value",),
}  # fmt: skip


def decoder(kind: str, dtype: torch.dtype = torch.float32) -> nn.Module:
    """The same random weights each time."""
    torch.manual_seed(0)
    return CLASSES[kind](CONFIGS[kind]()).to(dtype).eval()


def words(*, begins: bool, ends: bool = False) -> PreTrainedTokenizerFast:
    """A tokenizer of whole words, with or without tokens around a text."""
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()  # pyright: ignore[reportAttributeAccessIssue]
    around = [("<s>", 1)] * begins + [("</s>", 2)] * ends
    if around:
        single = ("<s> " if begins else "") + "$A" + (" </s>" if ends else "")
        tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=around)  # pyright: ignore
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )


def on_disk(folder: Path, kind: str) -> str:
    """A decoder with its tokenizer; GPT-2's begins no text."""
    words(begins=kind != "gpt2").save_pretrained(folder)
    decoder(kind).save_pretrained(folder)  # pyright: ignore[reportCallIssue]
    return str(folder)


def encoder_on_disk(folder: Path, kind: str = "bert") -> str:
    """A BERT or RoBERTa as masked language modelling leaves it: without a pooler or a head."""
    words(begins=True, ends=True).save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {**SIZES, **WIDE, "intermediate_size": 32, "pad_token_id": 3, "hidden_dropout_prob": 0.0}
    model = BertForMaskedLM(BertConfig(**sizes)) if kind == "bert" else RobertaForMaskedLM(RobertaConfig(**sizes))
    model.save_pretrained(folder)
    return str(folder)


def write_task(folder: Path, name: str, train: list[dict], validation: list[dict]) -> str:
    """A task's folder below a data folder, which is returned."""
    for split, rows in (("train", train), ("validation", validation)):
        path = folder / name / f"{split}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(folder)
