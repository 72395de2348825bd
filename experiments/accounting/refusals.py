"""What a variant may end with that the others need not care for."""

from __future__ import annotations

import torch
from torch._dynamo.exc import TorchDynamoException
from torch._inductor.exc import CppCompileError

from experiments.errors import UsageError
from fwlora.errors import FwloraError

Refusals = (RuntimeError, TorchDynamoException, UsageError, FwloraError)
"""To be caught; `told` raises again what is no refusal: most runtime errors are faults."""

# cuBLAS asks for memory of its own, past torch's allocator.
_NO_WORKSPACE = "CUBLAS_STATUS_ALLOC_FAILED"


def told(error: Exception) -> str:
    """The first line of what went wrong, for a cell.

    Args:
        error: one of `Refusals`.

    Returns:
        The line.

    Raises:
        RuntimeError: the error itself, if it is none that a variant may end with.

    Example:
        >>> told(UsageError("There is no such layer."))
        'There is no such layer'
    """
    line = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
    if isinstance(error, torch.OutOfMemoryError) or _NO_WORKSPACE in line:
        return f"out of memory: {line.split('.')[0]}"
    if isinstance(error, RuntimeError) and not isinstance(error, (CppCompileError, TorchDynamoException, FwloraError)):
        raise error
    return line
