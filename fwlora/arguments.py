"""What the constructor asks of its arguments beyond what the rules ask of their own."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any, TypeVar

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
        return operator.index(value)
    except TypeError:
        raise ArgumentError(f"`{argument}={value!r}`: give a whole number.") from None


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
