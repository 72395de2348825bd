"""Handwritten digits, turned by 90 degrees: a small real problem on which one LoRA of rank 1 is starved of rank.

The images come with scikit-learn. A 64-128-128-10 network without biases learns the first 600 upright digits; the task is to
adapt it to the remaining ones rotated: 500 for training, 250 for validation, 447 for the test.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional

from experiments.tasks.metric import ACCURACY, Metric
from experiments.tasks.order import Order

UPRIGHT, TRAIN, VALIDATION = 600, 500, 250


class Network(nn.Module):
    """Three linear maps and two rectifiers."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(64, 128, bias=False)
        self.second = nn.Linear(128, 128, bias=False)
        self.last = nn.Linear(128, 10, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of the ten classes."""
        return self.last(torch.relu(self.second(torch.relu(self.first(x)))))


@dataclass(frozen=True)
class Digits:
    """Adapt the network to rotated digits.

    Attributes:
        epochs: passes over the 500 training images.
        batch_size: images a step; an epoch's incomplete last batch is left out.
        split: "test", or "validation" for choosing learning rates.
    """

    epochs: int = 20
    batch_size: int = 16
    split: str = "test"
    name: str = "digits"
    metric: Metric = ACCURACY
    targets: tuple[str, ...] = ("first", "second", "last")
    watched: str = "second"

    @property
    def steps(self) -> int:
        """Optimizer steps of a run."""
        return self.epochs * (len(self.data("train")[1]) // self.batch_size)

    def model(self) -> nn.Module:
        """The network trained on upright digits, a fresh copy."""
        return copy.deepcopy(_base())

    def data(self, split: str) -> tuple[Tensor, Tensor]:
        """Images and labels of "train", "validation" or "test"."""
        return _rotated(split)

    def task(self, seed: int) -> DigitsTask:
        """Training data in the order of `seed`."""
        images, labels = self.data("train")
        return DigitsTask(images, labels, Order(len(labels), self.batch_size, seed, drop_last=True))

    def evaluate(self, model: nn.Module) -> float:
        """Accuracy in percent."""
        images, labels = self.data(self.split)
        return 100 * float((self.outputs(model, images).argmax(1) == labels).double().mean())

    def outputs(self, model: nn.Module, images: Tensor | None = None) -> Tensor:
        """Logits, on the split's images unless told otherwise."""
        model.eval()
        with torch.no_grad():
            return model(self.data(self.split)[0] if images is None else images)


@dataclass(frozen=True)
class DigitsTask:
    """Batches of digits and their cross-entropy."""

    images: Tensor
    labels: Tensor
    order: Order

    def batches(self, step: int) -> list[tuple[Tensor, Tensor]]:
        """One batch a step."""
        rows = self.order.rows_of(step)
        return [(self.images[rows], self.labels[rows])]

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Mean cross-entropy."""
        return functional.cross_entropy(model(batch[0]), batch[1])

    def targets(self, batch: tuple[Tensor, Tensor]) -> int:
        """Number of images."""
        return len(batch[1])


def pretrained(images: Tensor, labels: Tensor) -> nn.Module:
    """600 steps of AdamW from a fixed start: the same network in every process.

    Args:
        images: (n, 64).
        labels: (n,), of the ten classes.

    Returns:
        The network.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = Network()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=0.0)
    order = Order(len(labels), 32, seed=0)
    for step in range(600):
        rows = order.rows_of(step)
        functional.cross_entropy(network(images[rows]), labels[rows]).backward()
        optimizer.step()
        optimizer.zero_grad()
    return network


@lru_cache(maxsize=1)
def scans() -> tuple[np.ndarray, np.ndarray]:
    """All 1,797 images (n, 8, 8), of standard deviation 1, and their labels."""
    images, labels = load_digits(return_X_y=True)
    # One fixed shuffle: the file is ordered by writer, and the splits are to be alike.
    order = np.random.default_rng(0).permutation(len(labels))
    pixels = np.asarray(images)[order].reshape(-1, 8, 8).astype(np.float32)
    return pixels / pixels.std(), np.asarray(labels)[order]


@lru_cache(maxsize=3)
def _rotated(split: str) -> tuple[Tensor, Tensor]:
    images, labels = scans()
    ends = (UPRIGHT, UPRIGHT + TRAIN, UPRIGHT + TRAIN + VALIDATION, len(labels))
    start = ("train", "validation", "test").index(split)
    rows = slice(ends[start], ends[start + 1])
    turned = np.rot90(images[rows], axes=(1, 2)).reshape(-1, 64)
    return torch.from_numpy(turned.copy()), torch.from_numpy(labels[rows].copy())


@lru_cache(maxsize=1)
def _base() -> nn.Module:
    images, labels = scans()
    return pretrained(torch.from_numpy(images[:UPRIGHT].reshape(-1, 64).copy()), torch.from_numpy(labels[:UPRIGHT].copy()))
