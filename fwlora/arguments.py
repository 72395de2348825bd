"""What the constructor asks of its arguments beyond what the rules ask of their own."""

from __future__ import annotations

import math
import operator
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from fwlora.errors import ArgumentError
from fwlora.layers.sites import Site
from fwlora.rules import MergeRule, RankSchedule

T = TypeVar("T")


def rule(argument: str, value: Any, kind: type[T], example: str) -> T:
    """The value, if it is a rule of this kind.

    Args:
        argument: as the user types it.
        value: what was given.
        kind: of rule.
        example: of one.

    Returns:
        The value.

    Raises:
        ArgumentError: it is none.
    """
    if not isinstance(value, kind):
        raise ArgumentError(f"`{argument}={value!r}`: give a rule, such as `{argument}={example}`.")
    return value


def whole(argument: str, value: Any) -> int:
    """The value as a whole number.

    Args:
        argument: as the user types it.
        value: what was given.

    Returns:
        An int.

    Raises:
        ArgumentError: it is none.
    """
    try:
        if not isinstance(value, bool):
            return operator.index(value)
    except TypeError:
        pass
    raise ArgumentError(f"`{argument}={value!r}`: give a whole number.")


def flags(**values: Any) -> None:
    """Refuse what is neither True nor False, for any string would count as True.

    Args:
        **values: by argument.

    Raises:
        ArgumentError: naming the first.
    """
    for argument, value in values.items():
        if not isinstance(value, bool):
            raise ArgumentError(f"`{argument}={value!r}`: give True or False.")


def check_rate(lr: Any, lr_ratio: Any) -> None:
    """Refuse rates that are no finite numbers.

    Args:
        lr: a number, or a tensor that holds one.
        lr_ratio: B's rate over A's.

    Raises:
        ArgumentError: naming the argument; of a tensor with several entries the inner optimizer tells.
    """
    if isinstance(lr, bool) or not isinstance(lr, int | float | Tensor):
        raise ArgumentError(f"`lr={lr!r}`: give a number.")
    if not (isinstance(lr, Tensor) and lr.numel() != 1) and not math.isfinite(lr):
        raise ArgumentError(f"`lr={lr!r}`: give a finite number.")
    if isinstance(lr_ratio, bool) or not isinstance(lr_ratio, int | float) or not 0 < lr_ratio < math.inf:
        raise ArgumentError(f"`lr_ratio={lr_ratio!r}` is B's learning rate over A's; give a finite positive number.")


def check_places(chain_dir: Any, original: Any) -> None:
    """Refuse folders that cannot be and weights that are nowhere, at once and not at the first knot.

    Args:
        chain_dir: where links are to be kept, or None.
        original: a state_dict, a path, or None.

    Raises:
        ArgumentError: naming the argument.
    """
    if chain_dir is not None and not isinstance(chain_dir, str | os.PathLike):
        raise ArgumentError(f"`chain_dir={chain_dir!r}`: give the path of a folder, or None to keep the links in memory.")
    if chain_dir is not None and Path(chain_dir).exists() and not Path(chain_dir).is_dir():
        raise ArgumentError(
            f"`chain_dir={str(chain_dir)!r}` is a file; give the path of a folder, which is made where missing."
        )
    if isinstance(original, str | os.PathLike):
        if not Path(original).exists():
            raise ArgumentError(f"`original={str(original)!r}`: there is no such file or folder.")
    elif original is not None and not isinstance(original, Mapping):
        raise ArgumentError(f"`original={original!r}`: give a state_dict, or the path of a safetensors file or folder.")


def check_first_rank(sites: Mapping[str, Site], ranks: RankSchedule) -> None:
    """Refuse a schedule that does not start at the rank of the factors that a model brings.

    Args:
        sites: of the model.
        ranks: the schedule.

    Raises:
        ArgumentError: naming both ranks.
    """
    widest = max(site.width for site in sites.values())
    if ranks.rank(0) != widest:
        raise ArgumentError(
            f"`rank={ranks}` starts at {ranks.rank(0)}, and the factors of the model or of `lora_config=` have rank {widest} "
            "at most; start the schedule there."
        )


def check_biases(sites: Mapping[str, Site], merge: MergeRule) -> None:
    """Refuse biases that a merge rule's set does not know.

    Args:
        sites: of the model.
        merge: how links are folded in.

    Raises:
        ArgumentError: a site has a bias and the rule a set.
    """
    if merge.ball is not None and any(site.bias is not None for site in sites.values()):
        raise ArgumentError(
            f"`merge={merge}` keeps weights in a set and says nothing of biases; use `lora_bias=False`, or `merge=Add()`."
        )
