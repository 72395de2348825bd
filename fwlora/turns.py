"""Whose turn it is: which sites take part in the live link, while the others rest.

A site that rests has a live link that is exactly zero, and is never stepped. Where its layer can, it computes with the frozen
weight alone; where PEFT's own forward runs, its gradients are dropped. Nothing else lets a site rest or wakes it.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from fwlora import distributed
from fwlora.errors import ArgumentError, StateError
from fwlora.layers.sites import Site
from fwlora.rules import BlockRule, MergeRule


class Turns:
    """Lets sites rest and wakes them, link by link.

    Whoever forgets the object (an optimizer that is thrown away) has a model at which all sites are awake.

    Args:
        rule: which sites are active in a link.
        merge: how links are folded in.
        sites: all of the model's, in its order.
    """

    def __init__(self, rule: BlockRule, merge: MergeRule, sites: Mapping[str, Site]) -> None:
        self._rule, self._merge, self._sites = rule, merge, sites
        self._watch()

    @property
    def active(self) -> dict[str, Site]:
        """The sites that take part in the live link."""
        return {name: site for name, site in self._sites.items() if not site.rests}

    def resting_parameters(self) -> list[nn.Parameter]:
        """The factors and biases of the sites that do not."""
        return [parameter for site in self._sites.values() if site.rests for parameter in site.parameters()]

    def names(self, knot: int) -> set[str]:
        """Names of the sites that are active after `knot` knots, as the rule says."""
        return set(self._rule.active(knot, list(self._sites)))

    def begin(self, knot: int) -> None:
        """Wake the sites of the link after `knot` knots, and let the others rest."""
        names = self.names(knot)
        self._wake_all()
        for name, site in self._sites.items():
            if name not in names:
                site.rest()
        self._watch()

    def check(self, knot: int) -> None:
        """Refuse, before anything is changed, a link that cannot be.

        Args:
            knot: knots tied before it.

        Raises:
            ArgumentError: the rule names no site or an unknown one, or sites rest where all must move together.
        """
        names = self.names(knot)
        if not names or not names <= set(self._sites):
            wrong = f"the unknown {sorted(names - set(self._sites))}" if names else "no site"
            raise ArgumentError(f"`blocks={self._rule}` names {wrong} for link {knot}; choose among the sites it is given.")
        if len(names) == len(self._sites):
            return
        if self._merge.ball is not None:
            raise ArgumentError(
                f"`merge={self._merge}` makes steps of Algorithm 2, whose theorems have all sites move at once, and "
                f"`blocks={self._rule}` lets some rest; use `merge=Add()`, or `blocks=AllSites()`."
            )
        if distributed.world_size() > 1:
            raise ArgumentError(
                f"`blocks={self._rule}` lets sites rest, which then have no gradient, and data-parallel training waits for "
                "every gradient; use `blocks=AllSites()`, or one process."
            )

    def check_zero(self, knot: int) -> None:
        """Refuse a model that has a live link where the rule lets a site rest.

        Args:
            knot: knots tied.

        Raises:
            ArgumentError: naming the site.
        """
        zeros = {name: [site.zeroed] + ([] if site.bias is None else [site.bias]) for name, site in self._sites.items()}
        way_out = (
            "use `blocks=AllSites()` until the next knot; to resume, make the optimizer on a fresh adapter and load its state"
        )
        self._refuse(knot, zeros, "the model", way_out, ArgumentError)

    def check_state(self, knot: int, live: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Refuse a state that has a live link where the rule lets a site rest.

        Args:
            knot: knots that the state counts.
            live: A, B and bias of each site.

        Raises:
            StateError: naming the site.
        """
        letters = {name: ("A" if site.is_embedding else "B", "bias") for name, site in self._sites.items()}
        zeros = {name: [live[name][key] for key in keys if key in live[name]] for name, keys in letters.items()}
        way_out = "give the same `blocks=` as when the state was made"
        self._refuse(knot, zeros, "the state", way_out, StateError)

    def drop_gradients(self) -> None:
        """Make the gradients of resting sites None, which an inner optimizer passes over.

        A backward pass leaves none; this is for what a framework has put there, or for Parameters that it has swapped.
        """
        for parameter in self.resting_parameters():
            parameter.grad = None

    def _refuse(self, knot: int, zeros: Mapping[str, Sequence[Tensor]], who: str, way_out: str, error: type[Exception]) -> None:
        names = self.names(knot)
        resting = [name for name in zeros if name not in names]
        if not resting:
            return
        device = zeros[resting[0]][0].device
        # One device synchronisation for all sites.
        flags = torch.stack([torch.stack([t.detach().any() for t in zeros[n]]).any().to(device) for n in resting]).tolist()
        trained = [name for name, flag in zip(resting, flags, strict=True) if flag]
        if trained:
            raise error(
                f"`blocks={self._rule}` lets {trained[0]!r} rest after {knot} knot(s), and {who} has a live link there, which "
                f"would be lost; {way_out}."
            )

    def _watch(self) -> None:
        # At once, not at the step: a norm that is clipped in between must not count what is never stepped.
        hooks = [p.register_post_accumulate_grad_hook(_drop) for p in self.resting_parameters() if p.requires_grad]
        self._wake_all = weakref.finalize(self, _wake, list(self._sites.values()), hooks)
        self._wake_all.atexit = False

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_wake_all"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._watch()


def _wake(sites: Iterable[Site], hooks: Iterable[RemovableHandle]) -> None:
    for hook in hooks:
        hook.remove()
    for site in sites:
        site.wake()


def _drop(parameter: Tensor) -> None:
    parameter.grad = None
