"""Whether all that a state says can be true at once, and of this model: fields against fields, links against sites."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Any

from torch import Tensor

from fwlora.errors import StateError
from fwlora.linalg import Factors
from fwlora.record.chain import Link
from fwlora.record.checks import same_names


def inconsistency(values: Mapping[str, Any]) -> str | None:
    """What two fields of a state say that cannot both be.

    Args:
        values: the fields, each of which is well formed.

    Returns:
        The end of a sentence about the state; None where all agree.
    """
    live, records = values["live"], values["ledger"]
    for one, other in (("ranks", "live"), ("scalings", "live"), ("merged", "originals")):
        name = same_names(values[one], values[other])
        if name is not None:
            return f" names {name!r} in one of {one!r} and {other!r} only"
    if not values["links"] and any(values["merged"][n]["exact"] != m["exact"] for n, m in values["originals"].items()):
        return " holds no link, and its weights are not the original ones"
    unknown = sorted(set(values["residuals"] or {}) - set(values["originals"]))
    if unknown:
        return f"['residuals'] names {unknown[0]!r}, of which there is no fingerprint"
    for name, rank in values["ranks"].items():
        if rank > live[name]["A"].shape[0]:
            return f"['ranks'][{name!r}] is {rank}, more than its factors have"
    for number, entry in enumerate(records):
        strange = sorted(set(entry.get("ranks", {})) - set(live))
        if strange:
            return f"['ledger'][{number}] names the site {strange[0]!r}, which has no live link"
    return _miscounted(values)


def _miscounted(values: Mapping[str, Any]) -> str | None:
    """Which of links, records and steps were not counted together."""
    tied = [entry for entry in values["ledger"] if entry.get("refused") is None]
    if [entry["knot"] for entry in tied] != list(range(len(values["links"]))):
        return f" holds {len(values['links'])} link(s), and its ledger has tied {[entry['knot'] for entry in tied]}"
    steps = [entry["step"] for entry in values["ledger"]]
    if steps != sorted(steps) or (steps and steps[-1] > values["step"]):
        return f"['ledger'] has records at the steps {steps}, and the state is at {values['step']}"
    ends = [0, *(entry["step"] for entry in tied), values["step"]]
    lengths = [*(entry["link_steps"] for entry in tied), values["link_step"]]
    for number, ((begin, end), length) in enumerate(zip(pairwise(ends), lengths, strict=True)):
        if end - begin != length:
            return f" says that link {number} has {length} step(s), and that it ran from step {begin} to {end}"
    return None


def check_links(links: Iterable[Link], live: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Refuse links of another model, wherever they were kept.

    Args:
        links: in order.
        live: A, B and bias of each site.

    Raises:
        StateError: naming the first that does not fit.
    """
    for index, link in enumerate(links):
        for name in (*link.factors, *link.shrinks):
            if name not in live or (name in link.factors and not _fits(link.factors[name], live[name])):
                raise StateError(
                    f"Link {index} of the state does not fit this model at {name!r}; give the model and the layers that the "
                    "state was made with."
                )


def _fits(link: Factors, live: Mapping[str, Tensor]) -> bool:
    """Whether a link's factors are those of the site, whatever their rank."""
    A, B, bias, mine = link.A, link.B, link.bias, live.get("bias")
    if A.ndim < 2 or B.ndim < 2 or A.shape[0] != B.shape[1]:
        return False
    others = [(A.shape[1:], live["A"].shape[1:]), (B.shape[:1], live["B"].shape[:1]), (B.shape[2:], live["B"].shape[2:])]
    return all(a == b for a, b in others) and (bias is None or (mine is not None and bias.shape == mine.shape))
