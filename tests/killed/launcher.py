"""A process that has imported everything, starts the script afresh by a fork, and kills it; it tells what it did as JSON.

A fork takes milliseconds where an interpreter takes seconds; the child is a process of its own, and its kill is a real one.
"""

from __future__ import annotations

import json
import mmap
import os
import random
import resource
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from functools import wraps
from pathlib import Path

import torch
from tqdm import tqdm

from fwlora import ChainLoRAOptimizer
from fwlora.errors import ShortLinkWarning
from tests.killed.script import main

# What a child is doing stands in a byte that it shares with its parent, and whether its loop has begun in the next one.
PHASES = {"start": 0, "step": 1, "knot": 2, "save": 3, "load": 4}
METHODS = {"tie_knot": "knot", "save": "save", "load": "load"}
STARTS = 0.25  # of the kills are aimed at the start, the others come after it


class Killer:
    """Runs the script in children, and kills them.

    Args:
        folder: where the run is that is killed, and the one that is not.
        variant: of the script.
        steps: of either run.
    """

    def __init__(self, folder: Path, variant: str, steps: int) -> None:
        self.variant, self._folder = variant, folder / "killed"
        self._undisturbed = lambda: main(folder / "undisturbed", variant, steps)
        self._killed = lambda: main(folder / "killed", variant, steps)
        self._shared = mmap.mmap(-1, 2)
        _mark_phases(self._shared)

    def finish(self, *, undisturbed: bool) -> float:
        """Let a child run to the end, and tell how long it took."""
        began = time.perf_counter()
        status = _wait(_fork(self._undisturbed if undisturbed else self._killed))
        assert status == 0, f"the child ended with status {status}"
        return time.perf_counter() - began

    def at_calls(self, calls: int) -> int:
        """Kill once before and once after each of so many of the system's calls that make a file count."""
        for call in range(calls):
            status = _wait(_fork(lambda call=call: (_die_at(call), self._killed())))
            assert os.WTERMSIG(status) == signal.SIGKILL, "the run ended before the call"
        return calls

    def at_bytes(self, limits: list[int]) -> int:
        """Let the system itself kill where a file has so many bytes."""
        for limit in limits:
            status = _wait(_fork(lambda limit=limit: (_die_beyond(limit), self._killed())))
            assert os.WTERMSIG(status) == signal.SIGXFSZ, "no file grew so long"
        return len(limits)

    def at_random(self, kills: int, mean: float, seed: int) -> dict[str, int]:
        """Kill at random moments, in the start and as long again as `mean` on average after it.

        Args:
            kills: how many.
            mean: seconds.
            seed: of the moments.

        Returns:
            How many kills fell into each phase.
        """
        moments, starting = random.Random(seed), 0.02
        counts = dict.fromkeys(PHASES, 0)
        progress = tqdm(total=kills, desc=self.variant, disable=kills < 100)
        ended = 0
        while sum(counts.values()) < kills:
            self._shared[:] = bytes(2)
            began = time.perf_counter()
            child = _fork(self._killed)
            if moments.random() < STARTS:
                time.sleep(moments.uniform(0, starting))
            else:
                while not self._shared[1] and os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
                    time.sleep(0.0002)
                starting = time.perf_counter() - began
                time.sleep(moments.uniform(0, 2 * mean))
            os.kill(child, signal.SIGKILL)
            status = _wait(child)
            if status == 0:  # on a fast day: put the run aside to be looked at, and kill another
                ended, mean = ended + 1, mean / 2
                self._folder.rename(f"{self._folder}-{ended}")
                continue
            assert os.WIFSIGNALED(status), f"the child ended with status {status}"
            progress.update()
            counts[next(name for name, number in PHASES.items() if number == self._shared[0])] += 1
        return counts


def _fork(work: Callable[[], object]) -> int:
    child = os.fork()
    if child:
        return child
    try:
        work()
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def _wait(child: int) -> int:
    return os.waitpid(child, 0)[1]


def _die_at(moment: int) -> None:
    """Before the `moment / 2`-th call that brings a file to the disk or names it, or after it."""
    left = [moment]

    def tick() -> None:
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left[0] -= 1

    def dying(call: Callable[..., object]) -> Callable[..., object]:
        def called(*args: object) -> object:
            tick()
            result = call(*args)
            tick()
            return result

        return called

    for name in ("fsync", "replace"):
        setattr(os, name, dying(getattr(os, name)))


def _die_beyond(limit: int) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)


def _mark_phases(shared: mmap.mmap) -> None:
    """Let the optimizer's methods say when they run; what the loop does beside is a step."""
    for name, phase in METHODS.items():
        setattr(ChainLoRAOptimizer, name, _marking(getattr(ChainLoRAOptimizer, name), PHASES[phase], shared))
    zero_grad = ChainLoRAOptimizer.zero_grad

    def first(self: ChainLoRAOptimizer, set_to_none: bool = True) -> None:
        shared[:] = bytes([PHASES["step"], 1])
        zero_grad(self, set_to_none)

    ChainLoRAOptimizer.zero_grad = first  # type: ignore[method-assign]


def _marking(method: Callable[..., object], phase: int, shared: mmap.mmap) -> Callable[..., object]:
    @wraps(method)
    def marked(*args: object, **options: object) -> object:
        outer, shared[0] = shared[0], phase
        try:
            return method(*args, **options)
        finally:
            shared[0] = outer

    return marked


if __name__ == "__main__":
    warnings.simplefilter("ignore", ShortLinkWarning)
    torch.set_num_threads(1)
    killer = Killer(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
    kills, calls, limits = json.loads(sys.argv[4])
    seconds = killer.finish(undisturbed=True)
    told = {"calls": killer.at_calls(calls), "bytes": killer.at_bytes(limits)}
    # So that after all kills three quarters of the run are through, on a machine of any speed.
    told |= killer.at_random(kills, 0.75 * seconds / max(kills, 10), seed=0)
    killer.finish(undisturbed=False)
    sys.stdout.write(json.dumps(told) + "\n")
