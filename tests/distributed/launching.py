"""Starting a program once a rank; the ranks meet at a file of their own, so that parallel test runs never do."""

from __future__ import annotations

import os
import subprocess
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

import fwlora
from fwlora.errors import ShortLinkWarning


class Ranks:
    """What the ranks returned from each scenario."""

    def __init__(self, outcomes: list[dict], logs: list[str]) -> None:
        self.outcomes, self.logs = outcomes, logs

    def __call__(self, scenario: str) -> list:
        found = [outcome.get(scenario, "the rank stopped before this scenario") for outcome in self.outcomes]
        for rank, outcome in enumerate(found):
            assert not isinstance(outcome, str), f"rank {rank}, {scenario}:\n{outcome}\n{self.logs[rank][-4000:]}"
        return found


def environment(**more: str) -> dict[str, str]:
    """What a process of a launch gets: one thread, no GPU, no hub, and nothing of a launch around this one."""
    found = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(Path(fwlora.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "CUDA_VISIBLE_DEVICES": "",
        **more,
    }
    if sys.platform == "linux":
        found["GLOO_SOCKET_IFNAME"] = "lo"
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        found.pop(name, None)
    return found


def launch(program: str, out: Path, *arguments: str, world_size: int = 2) -> Ranks:
    """Run a program of this folder as `world_size` ranks, which call `run_scenarios`."""
    command = [sys.executable, str(Path(__file__).parent / program)]
    processes = [
        subprocess.Popen(
            [*command, str(rank), str(world_size), str(out), *arguments],
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(world_size)
    ]
    try:
        logs = [process.communicate(timeout=240)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    files = [out / f"rank{rank}.pt" for rank in range(world_size)]
    assert all(file.is_file() for file in files), "\n".join(logs)
    return Ranks([torch.load(file, weights_only=True) for file in files], logs)


def run_scenarios(scenarios: Sequence[Callable[[int], dict]]) -> None:
    """Be one rank: run every scenario and write what each returned."""
    rank, world_size, out = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    warnings.simplefilter("ignore", ShortLinkWarning)
    torch.set_num_threads(1)
    os.environ["RANKS_OUT"] = str(out)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{out / 'rendezvous'}",
        rank=rank,
        world_size=world_size,
        timeout=timedelta(seconds=60),
    )
    outcomes = {}
    for scenario in scenarios:
        # Each rank has its own global stream, which no draw of a chain may depend on.
        torch.manual_seed(100 + rank)
        try:
            outcomes[scenario.__name__] = scenario(rank)
        except Exception:
            outcomes[scenario.__name__] = traceback.format_exc()
            break  # another rank may wait in a collective that this one never enters
    torch.save(outcomes, out / f"rank{rank}.pt")
    dist.destroy_process_group()


def differences(one: dict, other: dict) -> dict[str, float]:
    """How far every tensor of two runs lies apart, which must have counted alike and have tensors of the same shapes."""
    assert one["progress"] == other["progress"]
    mine, theirs = ({name: tensor.shape for name, tensor in run["tensors"].items()} for run in (one, other))
    assert mine == theirs
    pairs = {name: (tensor.double(), other["tensors"][name].double()) for name, tensor in one["tensors"].items()}
    return {name: float((a - b).abs().max()) for name, (a, b) in pairs.items()}


def assert_same(one: dict, other: dict) -> None:
    """The same ledger, and the same bits."""
    assert one["ledger"] == other["ledger"]
    differing = [name for name, difference in differences(one, other).items() if difference != 0]
    assert not differing, differing
