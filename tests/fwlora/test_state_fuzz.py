"""Whatever becomes of a state document: it is refused with an error of ours and nothing changed, or loaded as it says.

A mutation is one edit anywhere in a real document. Left with its old checksum it must be refused, whatever it is; with the
checksum made anew, as by somebody who edits states, the document must be refused by what it holds, or loaded to exactly that.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import math
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from random import Random
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from tqdm import tqdm

from fwlora import Blocks, ChainLoRAOptimizer, Every, FrankWolfe, GapBelow, GradientAligned, NuclearBall, OpenLoop, StepDown
from fwlora.errors import CloseReplayWarning, FwloraError
from fwlora.record.ledger import Ledger
from fwlora.record.seal import digest
from tests.conftest import make_chain, train
from tests.sealing import resealed
from tests.tables import CASES

CHAINS: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("linear", {"knots": Every(3)}),
    "half precision": ("linear", {"knots": Every(3), "dtype": torch.bfloat16}),
    "shrinking": ("linear", {"knots": Every(3), "merge": FrankWolfe(NuclearBall(2.0), OpenLoop())}),
    "blocks": ("llama", {"knots": Every(3), "blocks": Blocks(2)}),
    "aligned": ("llama", {"knots": Every(4), "reset": GradientAligned()}),
    "being aligned": ("llama", {"knots": Every(9), "reset": GradientAligned(steps=4)}),
    "trained module": ("llama", {"knots": Every(3), "train_modules": ["norm"]}),
    "trained biases": ("linear", {"knots": Every(3), "lora_bias": True, "target_modules": ["layers.0"]}),
    "sums for moments": ("linear", {"knots": Every(3), "inner": torch.optim.Adafactor}),
    "stepping down": ("linear", {"knots": Every(3), "rank": StepDown([3, 2, 1])}),
    "by data": ("linear", {"knots": GapBelow(min_steps=4)}),
    "embedding": ("embedding", {"knots": Every(3)}),
}
NUMBERS = [-1, 0, 1, 7, 2**40, -(2**70), True, 1.5, -0.0, math.inf, math.nan]
STRANGE: list[Any] = [None, "", "text", b"bytes", [], {}, [[[]]], {1: 2}, object, {"A": None}, torch.zeros(0), torch.ones(2, 3)]


def chain(name: str) -> tuple[nn.Module, ChainLoRAOptimizer]:
    """A fresh model and optimizer of a kind of chain."""
    kind, options = CHAINS[name]
    dtype = options.get("dtype", torch.float32)
    torch.manual_seed(3)
    model = CASES[kind].model(dtype)
    return model, make_chain(CASES[kind], model, **{key: value for key, value in options.items() if key != "dtype"})


@functools.cache
def document(name: str) -> dict[str, Any]:
    """The state after some knots and a step or two more."""
    model, optimizer = chain(name)
    train(optimizer, model, CASES[CHAINS[name][0]].batch(), 10)
    return copy.deepcopy(optimizer.state_dict())


def places(value: Any, path: tuple = ()) -> Iterator[tuple]:
    """Paths to everything in a document."""
    entries: Any = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list | tuple) else ()
    for key, entry in entries:
        yield (*path, key)
        yield from places(entry, (*path, key))


def lists(value: Any) -> Any:
    """The document with lists for tuples, so that each entry can be put in another's place."""
    if isinstance(value, Mapping):
        return {key: lists(entry) for key, entry in value.items()}
    return [lists(entry) for entry in value] if isinstance(value, list | tuple) else value


def at(value: Any, path: tuple) -> Any:
    for key in path:
        value = value[key]
    return value


def mutated_value(value: Any, chance: Random) -> Any:
    """Something else in a value's place: near by, of another kind, or of another shape."""
    if isinstance(value, Tensor) and value.numel():
        changed = value.detach().clone()
        flat = changed.flatten().contiguous()
        way = chance.randrange(6)
        if way == 0:
            bits = flat.view(torch.uint8)
            bits[chance.randrange(len(bits))] ^= 1 << chance.randrange(8)
            return flat.view(changed.shape)
        if way == 1:
            return changed.to(chance.choice([torch.float64, torch.float16, torch.int32, torch.int8, torch.bool]))
        if way == 2 and changed.ndim:
            return changed[: len(changed) // 2]
        if way == 3:
            return changed.flatten()[None]
        if way == 4 and changed.is_floating_point():
            return torch.full_like(changed, chance.choice([math.nan, math.inf, 0.0]))
        return changed.flip(0) if changed.ndim else changed + 1
    if isinstance(value, Mapping) and value and chance.random() < 0.7:
        entries = list(value.items())
        one = chance.randrange(len(entries))
        way = chance.randrange(3)
        if way == 0:
            return dict(entries[:one] + entries[one + 1 :])
        if way == 1:
            return {**value, f"{entries[one][0]}x": entries[one][1]}
        return {key if i != one else (key, 1): entry for i, (key, entry) in enumerate(entries)}
    if isinstance(value, list) and value and chance.random() < 0.7:
        one = chance.randrange(len(value))
        return chance.choice([value[:one], [*value, value[one]], value[::-1], value[one + 1 :]])
    if isinstance(value, bool | int | float) and chance.random() < 0.7:
        return chance.choice([value + 1, -value, *NUMBERS])
    if isinstance(value, str) and chance.random() < 0.5:
        return chance.choice([value + "x", value[:-1], value[::-1], "../" + value])
    return chance.choice([*STRANGE, *NUMBERS])


def mutated(original: dict[str, Any], other: dict[str, Any], chance: Random) -> dict[str, Any]:
    """A document with one edit in the chain's entry or the moments: a value changed, dropped, swapped, or of another chain."""
    changed = lists(copy.deepcopy(original))
    # Without the whole of ``fwlora`` it is what torch's distributed checkpoint makes of a state, which waits for `load()`.
    found = [path for path in places(changed) if path[0] in ("fwlora", "state") and len(path) > 1 and path[-1] != "checksum"]
    path = chance.choice([p for p in found if len(p) == chance.choice(sorted({len(p) for p in found}))])
    parent, key = at(changed, path[:-1]), path[-1]
    way = chance.random()
    if way < 0.1 and isinstance(parent, dict):
        del parent[key]
    elif way < 0.25:
        twins = [p for p in found if len(p) == len(path) and p != path and type(at(changed, p)) is type(parent[key])]
        if twins:
            twin = chance.choice(twins)
            there = at(changed, twin[:-1])
            parent[key], there[twin[-1]] = there[twin[-1]], parent[key]
    elif way < 0.35:
        theirs = [p for p in places(lists(other)) if p[0] == path[0] and len(p) == len(path)]
        parent[key] = copy.deepcopy(at(lists(other), chance.choice(theirs))) if theirs else None
    else:
        parent[key] = mutated_value(parent[key], chance)
    return changed


def mark(model: nn.Module, optimizer: ChainLoRAOptimizer) -> str:
    """A checksum of all that a load could change."""
    moments = [dict(optimizer.state.get(parameter, {})) for parameter in optimizer.parameters()]
    facts = (optimizer.progress.step, optimizer.progress.knot, optimizer.progress.link_step, optimizer.progress.total_steps)
    links = [link.document() for link in optimizer.chain]
    groups = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
    entries = [moments, facts, links, optimizer.ledger.document(), dict(optimizer._residuals), groups]
    return digest([dict(model.state_dict()), *entries])


def comparable(document: dict[str, Any], *, is_close: bool = False) -> dict[str, Any]:
    """What must come back: all but the checksum and what a load itself enters.

    That is, wall times, that a link was replayed, the sketches, which are computed from weights as the fingerprints are, and
    these themselves where a warning has said that the weights differ by rounding. Moments of zeros are as good as none, steps
    are numbers in any format, and the sites that are being aligned are those of the turn, which older states do not name.
    """
    entry = {key: value for key, value in document["fwlora"].items() if key != "checksum"}
    entry["ledger"] = Ledger.from_document(entry["ledger"]).replayed(None).document()
    entry["originals"] = {name: marks["exact"] for name, marks in entry["originals"].items()}
    entry["merged"] = None if is_close else {name: marks["exact"] for name, marks in entry["merged"].items()}
    if entry["alignment"]:
        entry["alignment"] = {**entry["alignment"], "sites": None}
    moments = {number: dict(state) for number, state in document["state"].items() if any(map(torch.any, state.values()))}
    for state in moments.values():
        state.update({key: float(value) for key, value in state.items() if key == "step"})
    return lists({"fwlora": entry, "state": moments})


def outcome(name: str, chance: Random, *, reseal: bool, is_merged: bool) -> str:
    """Load one mutation, on the original base or on the merged one: unchanged, refused or equal; all else is a failure."""
    names = [other for other in CHAINS if other != name]
    changed = mutated(document(name), document(chance.choice(names)), chance)
    if reseal:
        # Of what is no document at all no checksum can be made: the old one stays.
        with contextlib.suppress(FwloraError, KeyError, TypeError, AttributeError):
            changed = resealed(changed)
    model, optimizer = chain(name)
    if is_merged:
        optimizer.load_state_dict(document(name))
    before = mark(model, optimizer)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", CloseReplayWarning)
            optimizer.load_state_dict(copy.deepcopy(changed))
    except FwloraError:
        refused = mark(model, optimizer)
    else:
        is_close = len(caught) > 0
        again = digest(comparable(optimizer.state_dict(), is_close=is_close))
        assert again == digest(comparable(changed, is_close=is_close)), "loaded to something else"
        return "unchanged" if again == digest(comparable(document(name))) else "equal"
    assert refused == before, "half loaded"
    return "refused"


def tried(mutations: int) -> Counter:
    """How many mutations were refused or loaded as they say, with the checksum kept and made anew."""
    found: Counter = Counter()
    progress = tqdm(desc="mutations", total=mutations, disable=mutations < 1000)

    @settings(max_examples=mutations, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(st.sampled_from(list(CHAINS)), st.booleans(), st.booleans(), st.randoms(use_true_random=True))
    def mutation(name: str, reseal: bool, is_merged: bool, chance: Random) -> None:
        found["anew" if reseal else "kept", outcome(name, chance, reseal=reseal, is_merged=is_merged)] += 1
        progress.update()

    mutation()
    return found


def assert_trustworthy(found: Counter) -> None:
    """Every outcome was met, and with the old checksum nothing but the unchanged document was taken."""
    assert found["kept", "equal"] == 0
    for outcomes in (("kept", "refused"), ("anew", "refused"), ("anew", "equal")):
        assert found[outcomes] > sum(found.values()) / 20
    assert found["kept", "unchanged"] + found["anew", "unchanged"] < sum(found.values()) / 10


def test_mutated_state_is_refused_or_loads_as_it_says():
    assert_trustworthy(tried(200))


@pytest.mark.long
def test_two_thousand_mutated_states_are_refused_or_load_as_they_say(capsys):
    found = tried(2000)
    with capsys.disabled():
        tqdm.write(f"{sum(found.values())} mutations: {dict(found)}")
    assert_trustworthy(found)
