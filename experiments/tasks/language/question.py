"""What the rows of a language task become."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Question:
    """A prompt with the answers to choose from.

    Blanks around a prompt are dropped, but not newlines: a tokenizer that reads " great" as one token wants no blank before it.

    Attributes:
        prompt: what the model reads; the answer follows it directly.
        candidates: the answers as they follow the prompt, with their leading blank where there is one.
        answer: which candidate is right.

    Example:
        >>> Question("a fine film It was ", (" terrible", " great"), answer=1).prompt
        'a fine film It was'
    """

    prompt: str
    candidates: tuple[str, ...]
    answer: int

    def __post_init__(self):
        object.__setattr__(self, "prompt", self.prompt.strip(" "))


@dataclass(frozen=True)
class Completion:
    """A prompt and the text that should follow it.

    Attributes:
        prompt: what the model reads.
        completion: what it should write, as it follows the prompt.
    """

    prompt: str
    completion: str


def as_question(text: str) -> str:
    """A question with a capital and a question mark.

    Example:
        >>> as_question("is Paris in France")
        'Is Paris in France?'
    """
    return text[:1].upper() + text[1:] + ("" if text.endswith("?") else "?")
