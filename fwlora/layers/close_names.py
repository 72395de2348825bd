"""Names of layers that no layer has, and what may have been meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from torch import nn


def suggestion(wanted: object, model: nn.Module) -> str:
    """What to say where `target_modules=` names what no module has: the names closest to it, else those there are.

    Args:
        wanted: as the user gave it: names or endings of names, or one pattern.
        model: where they were looked for.

    Returns:
        A clause that begins with ";", empty where every name stands for a module.

    Example:
        >>> suggestion(["frist"], nn.ModuleDict({"first": nn.Linear(2, 2), "second": nn.Linear(2, 2)}))
        '; did you mean "first"?'
    """
    # A string is a pattern that the whole name must match: an ending alone matches nothing.
    asked = [wanted] if isinstance(wanted, str) else unmatched(wanted, [name for name, _ in model.named_modules()])
    if not asked:
        return ""
    leaves = [name for name, module in model.named_modules() if name and not list(module.children())]
    endings = list(dict.fromkeys(name.rpartition(".")[2] for name in leaves))
    # Endings first: they are what is written by hand, and one of them stands for many modules.
    known = {name.lower(): name for name in reversed([*endings, *leaves])}
    matches = [match for name in asked for match in difflib.get_close_matches(name.lower(), [*reversed(known)], n=2)]
    close = " or ".join(f'"{known[match]}"' for match in dict.fromkeys(matches))
    there = f"did you mean {close}?" if close else f"names of this model's layers end in {', '.join(endings[:12])}."
    return f"; {there}" + (" Endings of names go in a list." if isinstance(wanted, str) else "")


def unmatched(wanted: object, names: Iterable[str]) -> list[str]:
    """Those of the wanted names that are neither a name nor the ending of one.

    Args:
        wanted: names; anything else has none.
        names: of modules.

    Returns:
        The names, in order.

    Example:
        >>> unmatched(["q_proj", "v_prj"], ["layers.0.q_proj", "layers.0.v_proj"])
        ['v_prj']
    """
    if isinstance(wanted, str) or not isinstance(wanted, Iterable):
        return []
    names = list(names)
    asked = sorted(wanted, key=str) if isinstance(wanted, set | frozenset) else wanted
    return [
        name
        for name in asked
        if isinstance(name, str) and not any(other == name or other.endswith(f".{name}") for other in names)
    ]
