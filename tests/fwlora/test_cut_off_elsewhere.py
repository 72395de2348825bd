"""What can fail at a knot and is no torch operation: rules, hooks, warnings; disks are filled in test_crash_files."""

from __future__ import annotations

import copy
from itertools import count

import pytest
import torch

from fwlora import Add, Blocks, Constant, Every, Kaiming, Never
from fwlora.errors import RefusedKnotWarning
from tests.conftest import train
from tests.fwlora.cutting import difference


class Broken(Exception):
    """What a rule of the user's raises."""


class Fuse:
    """Lets a rule raise once, at the call of this number."""

    left = 0

    def burn(self) -> None:
        self.left -= 1
        if self.left == 0:
            raise Broken


FUSE = Fuse()


class BreakingEvery(Every):
    def due(self, progress):
        FUSE.burn()
        return super().due(progress)


class BreakingBlocks(Blocks):
    def active(self, knot, sites):
        FUSE.burn()
        return super().active(knot, sites)


class BreakingConstant(Constant):
    def rank(self, knot):
        FUSE.burn()
        return super().rank(knot)


class BreakingKaiming(Kaiming):
    def draw(self, shape, generator):
        FUSE.burn()
        return super().draw(shape, generator)


class BreakingAdd(Add):
    def plan(self, retiring):
        FUSE.burn()
        return super().plan(retiring)


RULES = {
    "knots": BreakingEvery(3),
    "blocks": BreakingBlocks(2),
    "rank": BreakingConstant(2),
    "reset": BreakingKaiming(),
    "merge": BreakingAdd(),
}


def everything(model, optimizer):
    return copy.deepcopy({"model": model.state_dict(), "optimizer": optimizer.state_dict()})


@pytest.mark.parametrize("rule", RULES)
def test_rule_that_raises_anywhere_in_a_step_s_knot_is_asked_again_by_the_next_call(chained, rule):
    """At each of its calls in turn: the knot that the step was to end with is tied all the same, once."""
    FUSE.left = 0
    model, optimizer, batch = chained(steps=7, **{rule: RULES[rule]})
    expected = everything(model, optimizer)
    for call in count(1):
        model, optimizer, batch = chained(steps=5, **{rule: RULES[rule]})
        handle = optimizer.inner.register_step_post_hook(lambda *_, call=call: setattr(FUSE, "left", call))
        try:
            train(optimizer, model, batch, 1)
            break  # no such call
        except Broken:
            handle.remove()
        finally:
            FUSE.left = 0
        train(optimizer, model, batch, 1)
        assert difference(everything(model, optimizer), expected) is None, f"call {call}"
    assert call > 1, "the rule must be asked"


def test_hook_that_raises_leaves_a_whole_knot(chained):
    whole_model, whole, _ = chained(steps=7)
    model, optimizer, batch = chained(steps=5)

    def hook(record):
        raise Broken(record.knot)

    handle = optimizer.on_knot(hook)
    with pytest.raises(Broken, match="1"):
        train(optimizer, model, batch, 1)
    handle.remove()
    train(optimizer, model, batch, 1)
    assert difference(everything(model, optimizer), everything(whole_model, whole)) is None


def test_refusal_is_recorded_and_the_run_goes_on_where_warnings_are_errors(chained):
    """A loop that catches it is not held up at every later step."""
    model, optimizer, batch = chained(steps=5)
    with torch.no_grad():
        optimizer.sites["layers.2"].B[0, 0] = float("nan")
    with pytest.raises(RefusedKnotWarning):
        train(optimizer, model, batch, 1)
    assert optimizer.ledger[-1].refused is not None
    train(optimizer, model, batch, 2)
    assert optimizer.progress.step == 8
    assert len(optimizer.chain) == 1


def test_knot_by_hand_that_could_not_begin_leaves_nothing(chained):
    model, optimizer, _ = chained(steps=4, knots=Never(), merge=BreakingAdd())
    before, FUSE.left = everything(model, optimizer), 1
    with pytest.raises(Broken):
        optimizer.tie_knot()
    assert difference(everything(model, optimizer), before) is None
    assert optimizer.tie_knot().knot == 0
