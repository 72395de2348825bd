"""What a piece of work holds in memory for a while and gives back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def transient_bytes(work: Callable[[], object], device: str) -> int:
    """Does the work and says how many bytes of it were there at most beyond what was there before.

    Args:
        work: what is done.
        device: whose memory; on CUDA torch's allocator tells, elsewhere the tensors that operations make are counted, those
            that stay left out.

    Returns:
        Bytes.
    """
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with Allocations(device) as allocations:
        work()
    return allocations.transient()


@dataclass
class Made:
    """A storage that was seen.

    Attributes:
        reference: tells when it is gone, and keeps its address from being given to another.
        size: in bytes; 0 if it was there before.
        born: the number of the operation that made it.
        died: the number of the operation by which it was gone; None while it is there.
    """

    reference: StorageWeakRef
    size: int
    born: int
    died: int | None = None


class Allocations(TorchDispatchMode):
    """Sees which storages torch's operations make on a device while it is open, and when they are gone.

    What a kernel allocates for itself and frees before it returns is not seen.

    Args:
        device: of the storages that count.
    """

    def __init__(self, device: str) -> None:
        super().__init__()
        self._kind = torch.device(device).type
        self._seen: dict[int, Made] = {}
        self._alive: list[Made] = []
        self._number = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs the operation and notes what it was given and what it made."""
        kwargs = kwargs or {}
        self._number += 1
        self._bury()
        for given in tree_leaves((args, kwargs)):
            self._note(given, made=False)
        result = func(*args, **kwargs)
        for made in tree_leaves(result):
            self._note(made, made=True)
        return result

    def transient(self) -> int:
        """The most bytes at one time of storages that were made and are gone by now."""
        self._number += 1
        self._bury()
        gone = [made for made in self._seen.values() if made.size and made.died is not None]
        changes = [(made.born, made.size) for made in gone] + [(made.died, -made.size) for made in gone]
        # What is gone by an operation was gone before it made anything.
        held = most = 0
        for _, change in sorted(changes):
            held += change
            most = max(most, held)
        return most

    def _note(self, value: Any, *, made: bool) -> None:
        if not isinstance(value, Tensor) or value.device.type != self._kind:
            return
        storage = value.untyped_storage()
        if storage._cdata in self._seen:
            return
        entry = Made(StorageWeakRef(storage), storage.nbytes() if made else 0, self._number)
        self._seen[storage._cdata] = entry
        if made:
            self._alive.append(entry)

    def _bury(self) -> None:
        for entry in self._alive:
            if entry.reference.expired():
                entry.died = self._number
        self._alive = [entry for entry in self._alive if entry.died is None]
