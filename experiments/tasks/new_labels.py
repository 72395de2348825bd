"""Handwritten digits that the network has not seen: it knows 0 to 4 and is to learn 5 to 9, which needs new directions.

The network and the images are those of the rotated digits. It learns all 901 images of the digits 0 to 4; of the other 896,
400 are for training, 200 for validation, 296 for the test. The ten logits are there from the start, five of them unused.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor, nn

from experiments.tasks.digits import Digits, pretrained, scans

KNOWN = 5  # digits below this one are the base's
TRAIN, VALIDATION = 400, 200


@dataclass(frozen=True)
class NewLabels(Digits):
    """Adapt the network that knows 0 to 4 to the images of 5 to 9."""

    name: str = "new-labels"

    def model(self) -> nn.Module:
        """The network trained on the digits 0 to 4, a fresh copy."""
        return copy.deepcopy(_base())

    def data(self, split: str) -> tuple[Tensor, Tensor]:
        """Images and labels of 5 to 9, for "train", "validation" or "test"."""
        images, labels = _digits(known=False)
        part = ("train", "validation", "test").index(split)
        sizes = (TRAIN, VALIDATION, len(labels) - TRAIN - VALIDATION)
        return images.split(sizes)[part], labels.split(sizes)[part]


@lru_cache(maxsize=2)
def _digits(known: bool) -> tuple[Tensor, Tensor]:
    images, labels = scans()
    rows = (labels < KNOWN) == known
    return torch.from_numpy(images[rows].reshape(-1, 64)), torch.from_numpy(labels[rows])


@lru_cache(maxsize=1)
def _base() -> nn.Module:
    return pretrained(*_digits(known=True))
