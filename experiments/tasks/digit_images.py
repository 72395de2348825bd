"""The digits for a convolutional network: the same images, splits and tasks as for the fully connected one.

Two convolutions with pooling and two linear layers, 13,706 parameters with biases that no adapter trains. Upright digits (or
0 to 4) are learned first; the network is then adapted to digits turned by 90 degrees (or to 5 to 9).
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn import functional

from experiments.tasks.digits import UPRIGHT, Digits, DigitsTask, scans
from experiments.tasks.new_labels import KNOWN, NewLabels
from experiments.tasks.order import Order
from experiments.train import Setup, train

SIDE = 8
LAYERS = ("first", "second", "hidden", "last")


class Convolutions(nn.Module):
    """1 -> 16 -> 32 channels of 3 x 3, each halved in size by pooling, then 128 -> 64 -> 10."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 16, 3, padding=1)
        self.second = nn.Conv2d(16, 32, 3, padding=1)
        self.hidden = nn.Linear(128, 64)
        self.last = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of the ten classes for flat images."""
        x = x.view(-1, 1, SIDE, SIDE)
        for convolution in (self.first, self.second):
            x = functional.max_pool2d(torch.relu(convolution(x)), 2)
        return self.last(torch.relu(self.hidden(x.flatten(1))))


@dataclass(frozen=True)
class ConvolutionalDigits(Digits):
    """Adapt the convolutional network to rotated digits."""

    name: str = "cnn-rotated"
    targets: tuple[str, ...] = LAYERS
    watched: str = "hidden"

    def model(self) -> nn.Module:
        """The network trained on upright digits, a fresh copy."""
        return copy.deepcopy(_base(upright=True))


@dataclass(frozen=True)
class ConvolutionalNewLabels(NewLabels):
    """Adapt the convolutional network that knows 0 to 4 to the images of 5 to 9."""

    name: str = "cnn-new-labels"
    targets: tuple[str, ...] = LAYERS
    watched: str = "hidden"

    def model(self) -> nn.Module:
        """The network trained on the digits 0 to 4, a fresh copy."""
        return copy.deepcopy(_base(upright=False))


@lru_cache(maxsize=2)
def _base(upright: bool) -> nn.Module:
    """600 steps of AdamW from a fixed start: the same network in every process."""
    images, labels = scans()
    rows = slice(UPRIGHT) if upright else labels < KNOWN
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = Convolutions()
    parameters = list(network.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.0)
    known = torch.from_numpy(images[rows].reshape(-1, SIDE * SIDE).copy()), torch.from_numpy(labels[rows].copy())
    task = DigitsTask(*known, Order(len(known[1]), 32, seed=0))
    train(Setup(network, optimizer, parameters), task, steps=600)
    return network
