"""Finds what a folder holds, so that a new set, testbed or theorem is one new file."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from types import ModuleType
from typing import TypeVar, cast

Base = TypeVar("Base")


def concrete_classes(package: ModuleType, base: type[Base]) -> list[type[Base]]:
    """The concrete subclasses of `base` that the modules of a package define; names with an underscore are private.

    Args:
        package: a folder of modules.
        base: an abstract class.

    Returns:
        The classes, by module and then in the order of their definition.

    Example:
        >>> from theory import sets
        >>> concrete_classes(sets, sets.ConvexSet)[0].__name__
        'FrobeniusBall'
    """
    found: list[type[Base]] = []
    for entry in sorted(pkgutil.iter_modules(package.__path__), key=lambda entry: entry.name):
        module = importlib.import_module(f"{package.__name__}.{entry.name}")
        for name, kind in vars(module).items():
            own = inspect.isclass(kind) and kind.__module__ == module.__name__ and issubclass(kind, base)
            if own and not inspect.isabstract(kind) and not name.startswith("_"):
                found.append(cast("type[Base]", kind))
    return found
