"""A measurement that two questions are answered from is made once."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

_KEPT: WeakKeyDictionary[nn.Module, dict[Hashable, tuple[Hashable, Any]]] = WeakKeyDictionary()


def keep(model: nn.Module, key: Hashable, value: Any) -> Any:
    """Keeps what was measured on a model as it is now.

    Args:
        model: what was measured.
        key: what was measured on it.
        value: the outcome.

    Returns:
        The outcome.
    """
    _KEPT.setdefault(model, {})[key] = (_state(model), value)
    return value


def kept(model: nn.Module, key: Hashable, measure: Callable[[], Any]) -> Any:
    """What was kept, if no parameter or buffer has been written to since, else what is measured now.

    Args:
        model: what to measure.
        key: as it was kept.
        measure: gives and keeps the outcome.

    Returns:
        The outcome.
    """
    state, value = _KEPT.get(model, {}).get(key, (None, None))
    return value if state is not None and state == _state(model) else measure()


def _state(model: nn.Module) -> Hashable:
    tensors = [*model.parameters(), *model.buffers()]
    return tuple((id(tensor), tensor._version) for tensor in tensors)
