"""Training as a user writes it: started again after a kill, it goes on from the last save and knows of nothing."""

from __future__ import annotations

import json
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fwlora import ChainLoRAOptimizer, Every, Flat, FrankWolfe, NuclearBall, OpenLoop
from fwlora.errors import ShortLinkWarning

# What is adapted, and how; links are on the disk where the last is true.
VARIANTS: dict[str, tuple[torch.dtype, dict[str, Any], bool]] = {
    "links on disk": (torch.float32, {}, True),
    "half precision": (torch.bfloat16, {"train_modules": ["3"]}, False),
    "Algorithm 2": (torch.float16, {"merge": FrankWolfe(NuclearBall(2.0), OpenLoop())}, True),
}


def main(folder: Path, variant: str, steps: int) -> None:
    """Train for so many steps in all, and leave losses and weights."""
    dtype, options, on_disk = VARIANTS[variant]
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(24, 32), nn.Tanh(), nn.Linear(32, 16), nn.LayerNorm(16)).to(dtype)
    optimizer = ChainLoRAOptimizer(
        model, 0.01, rank=2, knots=Every(3), link_lr=Flat(2), chain_dir=folder / "links" if on_disk else None, **options
    )
    state, losses = folder / "state", []
    if (state / "chain.pt").exists():
        optimizer.load(state)
        losses = json.loads((state / "losses.json").read_text())[: optimizer.progress.step]
    while (step := optimizer.progress.step) < steps:
        x = torch.randn(8, 24, generator=torch.Generator().manual_seed(step)).to(dtype)
        optimizer.zero_grad()
        loss = (model(x).float() - x[:, :16].float()).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        if step % 2 == 1 or step + 1 == steps:
            write(state / "losses.json", json.dumps(losses))
            optimizer.save(state)
    torch.save(model.state_dict(), folder / "model.pt")


def write(path: Path, text: str) -> None:
    """Under another name first, for this script is killed too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".new").write_text(text)
    os.replace(path.with_suffix(".new"), path)


if __name__ == "__main__":
    warnings.simplefilter("ignore", ShortLinkWarning)
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
