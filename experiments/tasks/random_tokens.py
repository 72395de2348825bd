"""Random tokens: nothing to learn, and a batch of any size for measuring time and memory."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True)
class RandomTokens:
    """One batch of full rows a step, drawn from the step's number.

    Attributes:
        vocabulary: tokens to draw from.
        rows: of a batch.
        length: tokens of a row.
        device: where the batch is made.
        autocast: compute in bf16 whatever the weights' dtype.
        padded: mask one token, as a batch of text that is padded; without any, attention takes another path.
    """

    vocabulary: int
    rows: int
    length: int
    device: str = "cpu"
    autocast: bool = False
    padded: bool = True

    def batches(self, step: int) -> list[Tensor]:
        """The tokens of step `step`."""
        generator = torch.Generator().manual_seed(step)
        return [torch.randint(self.vocabulary, (self.rows, self.length), generator=generator).to(self.device)]

    def loss(self, model: nn.Module, batch: Tensor) -> Tensor:
        """Mean nats per next token."""
        return next_token_loss(self.logits(model, batch), batch)

    def logits(self, model: nn.Module, batch: Tensor) -> Tensor:
        """The model's."""
        mask = torch.ones_like(batch) if self.padded else None
        if mask is not None:
            mask[0, 0] = 0
        with torch.autocast(batch.device.type, torch.bfloat16, enabled=self.autocast):
            return model(input_ids=batch, attention_mask=mask).logits

    def targets(self, batch: Tensor) -> int:
        """Tokens predicted."""
        return batch[:, 1:].numel()


def next_token_loss(logits: Tensor, ids: Tensor) -> Tensor:
    """Cross-entropy in float32, as transformers takes it."""
    return functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten())
