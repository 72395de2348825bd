"""The most memory in use: of a CUDA device by torch's allocator, or else of this process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import torch
from torch import nn


class Gauge:
    """The most memory that was in use since it was made.

    Args:
        device: whose; a CPU's is the process's.
    """

    def __init__(self, device: str) -> None:
        self._on_cuda = torch.device(device).type == "cuda"
        self.most_of_body: int | None = None
        self._most = 0
        if self._on_cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        self._before = torch.cuda.memory_allocated() if self._on_cuda else resident("VmRSS")

    def most(self) -> int | None:
        """Bytes above what there was; None where nobody tells."""
        peak = max(self._most, torch.cuda.max_memory_allocated()) if self._on_cuda else resident("VmHWM")
        return None if peak is None or self._before is None else peak - self._before

    @contextmanager
    def before_head(self, model: nn.Module) -> Iterator[None]:
        """Reads, while it is open, the most since it was opened whenever the head is called; on CUDA."""
        head = getattr(model, "get_output_embeddings", lambda: None)()
        if not self._on_cuda or not isinstance(head, nn.Module):
            yield
            return
        self._most = max(self._most, torch.cuda.max_memory_allocated())
        torch.cuda.reset_peak_memory_stats()
        handle = head.register_forward_pre_hook(lambda *_: self._read())
        try:
            yield
        finally:
            handle.remove()

    def _read(self) -> None:
        self.most_of_body = max(self.most_of_body or 0, torch.cuda.max_memory_allocated() - cast(int, self._before))


def resident(line: str) -> int | None:
    """A line of /proc/self/status in bytes, None where there is none. Not `getrusage`, whose peak a child inherits."""
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    return next(int(text.split()[1]) * 1024 for text in status.read_text().splitlines() if text.startswith(line))
