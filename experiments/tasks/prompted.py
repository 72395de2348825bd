"""Which problem a language task is: by the rows' kind and by the model's."""

from __future__ import annotations

from typing import Any

from experiments.errors import UsageError
from experiments.language.bases import is_decoder
from experiments.tasks.answering import Answering
from experiments.tasks.labelling import Labelling
from experiments.tasks.language import source
from experiments.tasks.language.question import Completion
from experiments.tasks.language.source import Sampling
from experiments.tasks.pretrained import Pretrained
from experiments.tasks.writing import Writing


def problem(
    task: str, *, base: str, data_dir: str | None, sampling: Sampling, draw: int, max_new_tokens: int = 64, **fields: Any
) -> Pretrained:
    """A task as a problem for a model.

    Questions are scored by a decoder and labelled by an encoder; completions are written by a decoder.

    Args:
        task: its name, or a folder below `data_dir`.
        base: the model's folder, or its name on the hub.
        data_dir: folder of the tasks' folders; None for the hub.
        sampling: how many examples.
        draw: seed of the sample.
        max_new_tokens: that are written, where completions are.
        fields: further ones of `Pretrained`.

    Returns:
        The problem, which has been checked against the data and the model's config.

    Raises:
        UsageError: the data cannot be read, or the model does not suit them.
    """
    examples = source.draw(task, data_dir, sampling, draw).train
    arguments: dict[str, Any] = {
        "name": task, "base": base, "data_dir": data_dir, "sampling": sampling, "draw": draw, **fields,
    }  # fmt: skip
    found: Pretrained
    if isinstance(examples[0], Completion):
        if not is_decoder(base):
            raise UsageError(
                f"--tasks {task}: its rows are completions, which {base} as an encoder cannot write; give a decoder."
            )
        found = Writing(**arguments, max_new_tokens=max_new_tokens)
    else:
        found = (Answering if is_decoder(base) else Labelling)(**arguments)
    found.check()
    return found
