"""A tiny language model on disk, as a user would have one."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

WORDS = ["the", "a", "cat", "dog", "bird", "sat", "ran", "flew", "on", "under", "mat", "tree", "and", "then", "it", "was"]
WORDS += ["red", "blue"]
SHARED = Path(__file__).parents[3] / "shared" / "data"


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random two-layer Llama and a tokenizer of whole words."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    vocabulary = {word: index for index, word in enumerate(["<unk>", "<s>", "</s>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])  # pyright: ignore
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>")
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(vocabulary), hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=32, initializer_range=0.3, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def sentences() -> list[str]:
    """Forty short sentences with a grammar to learn."""
    animals, verbs, places = ("cat", "dog", "bird"), ("sat", "ran", "flew"), ("on the mat", "under a tree")
    text = [f"the {a} {v} {p} and then it was {c}" for a in animals for v in verbs for p in places for c in ("red", "blue")]
    return text + [f"a {a} {v}" for a in animals for v in verbs][:4]


@pytest.fixture
def jsonl(tmp_path: Path) -> Callable[[str, list], Path]:
    """`jsonl(name, rows)`: a file with these rows; a row that is text is written as it is."""

    def write(name: str, rows: list) -> Path:
        path = tmp_path / name
        lines = (row if isinstance(row, str) else json.dumps(row) for row in rows)
        path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
        return path

    return write


@pytest.fixture(scope="session")
def stories() -> Path:
    """The folder of stories260K, a small pretrained Llama, where this checkout has one beside it."""
    folder = SHARED / "models" / "stories260K"
    if not folder.is_dir():
        pytest.skip("no ../shared/data/models/stories260K beside the repository")
    return folder


@pytest.fixture(scope="session")
def wikitext() -> Path:
    """A thousand paragraphs of WikiText, where this checkout has them beside it."""
    file = SHARED / "text" / "wikitext_1000.jsonl"
    if not file.is_file():
        pytest.skip("no ../shared/data/text/wikitext_1000.jsonl beside the repository")
    return file


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """GaLore's package brings another that speaks up wherever PEFT is imported, and is therefore no part of `make test`."""
    if importlib.util.find_spec("galore_torch") is None:
        missing = pytest.mark.skip(reason="galore-torch is not installed (dependency group peers)")
        for item in items:
            if "galore" in item.name.lower():
                item.add_marker(missing)
