"""The start of an aligned link: the optimizer steps in which it looks for the gradient's directions instead of training.

The loop is the user's own. Its backward passes fill the gradients of factors that are pointed somewhere (`layers.probes`); a
step takes them away, so that the inner optimizer moves nothing of the link, and the last one starts the link where they say.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from fwlora import distributed, linalg
from fwlora.errors import ArgumentError, DecompositionError, StateError
from fwlora.interrupts import sigint_waits
from fwlora.layers.dropout import Muted
from fwlora.layers.probes import Side
from fwlora.layers.sites import Site
from fwlora.rules import ResetRule

# Why a link could not be aligned, by the number that the ranks agree on.
REASONS = ("", "zero gradient", "gradient not finite", "SVD did not converge")


class Alignment:
    """The phase of a link that is being aligned, and what came of the last one.

    Half of the steps have the drawn factor and B = 0 (the other way round at embeddings): the gradient is ``G X``. Then the
    zero factor gets an orthonormal basis Q of the sum of these and the drawn one is zero: the gradient is ``G^T Q``, whose
    leading left singular vectors are the directions to start from.

    Args:
        rule: how many steps, and what to make of the directions.
        sites: of the model; those that rest are left alone.
        draw: the reset's draw for the live link of a site.

    Attributes:
        fallbacks: for each site at which the live link started from its draw, why.
    """

    def __init__(self, rule: ResetRule, sites: Mapping[str, Site], draw: Callable[[Site], Tensor]) -> None:
        self._rule, self._all, self._draw = rule, sites, draw
        self._done: int | None = None
        self._sums: dict[str, Tensor] = {}
        self._muted: Muted | None = None
        self._thawed: list[nn.Parameter] = []
        self._hooks: list[Any] = []
        self.fallbacks: dict[str, str] = {}

    @property
    def is_on(self) -> bool:
        """Whether the next step is a probe."""
        return self._done is not None

    def begin(self) -> None:
        """A link has been drawn: look for its directions, where the rule says so."""
        self.end()
        self.fallbacks = {}
        if self._rule.probes:
            self._check_served()
            self._done = 0
            self._muted = Muted(self._sites.values())

    def end(self) -> None:
        """Stop looking, and put back what was changed for it; the factors stay as they are."""
        self._done, self._sums = None, {}
        self._freeze()
        if self._muted is not None:
            self._muted.lift()
            self._muted = None

    @contextmanager
    def probing(self) -> Iterator[None]:
        """Around an inner step: in this phase the factors' gradients are taken away before it and used after it."""
        if self._done is None:
            yield
            return
        self._check_served()
        factors = [parameter for site in self._sites.values() for parameter in site.parameters()]
        if distributed.every(all(parameter.grad is None for parameter in factors)):
            yield  # nothing was looked at, as after a knot that was cut off: the phase waits
            return
        found = {name: self._product(site) for name, site in self._sites.items()}
        for parameter in factors:
            parameter.grad = None
        yield
        self._take(found)

    def borrowed(self) -> list[nn.Parameter]:
        """Factors that have a gradient for the time being and belong to no parameter group."""
        return self._thawed

    def document(self) -> dict[str, Any] | None:
        """The phase as tensors and plain data; None where there is nothing to keep."""
        if self._done is None and not self.fallbacks:
            return None
        phase = {"of": self._rule.probes, "done": self._done, "sums": dict(self._sums), "fallbacks": dict(self.fallbacks)}
        return phase | {"sites": list(self._sites)}

    def check(self, document: Mapping[str, Any] | None, active: Collection[str]) -> None:
        """Refuse a phase that another rule began, or at other sites.

        Args:
            document: of a state.
            active: names of the sites that take part in the state's live link.

        Raises:
            StateError: when its number of steps is not this rule's, or its sites are others.
        """
        if document is None or document["done"] is None:
            return
        # Before sites could rest, all were looked at and none was named.
        if sorted(document.get("sites", self._all)) != sorted(active):
            raise StateError(
                f"The state was saved within the {document['of']} steps that align a link, at other sites than those that "
                "learn here; give the same `blocks=` as when the state was made."
            )
        if document["of"] != self._rule.probes:
            raise StateError(
                f"The state was saved within the {document['of']} steps that align a link, and `reset={self._rule}` has "
                f"{self._rule.probes}; give the same `reset=` as when the state was made."
            )
        done, sums = document["done"], document["sums"]
        # Of which rank the link is the state says; the site's own may be another meanwhile.
        sizes = {name: len(self._directions(self._all[name], done)) for name in active}
        if done >= document["of"] or any(s.ndim != 2 or len(s) != sizes.get(name) for name, s in sums.items()):
            raise StateError(
                f"The state is damaged: it is {done} steps into the {document['of']} that align a link, and its sums are those "
                "of no such moment. Nothing was changed; load an earlier one."
            )

    def restore(self, document: Mapping[str, Any] | None) -> None:
        """Go on with a saved phase; the factors were restored before."""
        self.end()
        self.fallbacks = {} if document is None else dict(document["fallbacks"])
        if document is not None and document["done"] is not None:
            self._done = int(document["done"])
            self._sums = {name: value.to(self._all[name].A.device) for name, value in document["sums"].items()}
            self._muted = Muted(self._sites.values())
            if self._done >= self._turn:
                self._thaw()

    @property
    def _sites(self) -> dict[str, Site]:
        return {name: site for name, site in self._all.items() if not site.rests}

    @property
    def _turn(self) -> int:
        """The step at which the sides change."""
        return self._rule.probes // 2

    def _side(self, site: Site, done: int) -> Side:
        """The factor whose gradient the step after so many reads."""
        return Side(site, site.zeroed if done < self._turn else site.drawn)

    def _directions(self, site: Site, done: int) -> Tensor:
        side = self._side(site, done)
        return side.directions(side.factor.detach())

    def _product(self, site: Site) -> Tensor:
        assert self._done is not None
        side = self._side(site, self._done)
        if side.factor.grad is None:  # a layer that the batch did not reach
            return torch.zeros_like(self._directions(site, self._done), dtype=torch.float32)
        return side.product.detach().to(torch.promote_types(side.factor.dtype, torch.float32))

    def _take(self, found: Mapping[str, Tensor]) -> None:
        """One more product at every site; at the turn and at the end the factors are set, all or none."""
        assert self._done is not None
        done = self._done + 1
        sums = {name: self._sums[name] + product if name in self._sums else product.clone() for name, product in found.items()}
        if done not in (self._turn, self._rule.probes):
            self._done, self._sums = done, sums
            return
        # All that can fail comes first.
        fallbacks = {**self._unusable(sums), **self.fallbacks}
        if done == self._turn:
            bases = {
                name: distributed.from_first_(linalg.basis(value)) for name, value in sums.items() if name not in fallbacks
            }
            with sigint_waits():
                for name, Q in bases.items():
                    Side(self._all[name], self._all[name].zeroed).point(Q)
                self._done, self._sums, self.fallbacks = done, {}, fallbacks
                self._thaw()
            return
        leading = self._leading({name: value for name, value in sums.items() if name not in fallbacks})
        fallbacks |= self._agreed(leading, [0 if found is not None else 3 for found in leading.values()])
        fresh = {name: distributed.from_first_(self._start(site, leading.get(name))) for name, site in self._sites.items()}
        with sigint_waits():
            for name, site in self._sites.items():
                site.reset_(fresh[name])
            self.fallbacks = fallbacks
            self.end()

    @staticmethod
    def _leading(sums: Mapping[str, Tensor]) -> dict[str, Tensor | None]:
        """The leading directions of each product; None where its SVD does not converge."""
        found: dict[str, Tensor | None] = {}
        for name, product in sums.items():
            try:
                found[name] = linalg.top_directions(product)
            except DecompositionError:
                found[name] = None
        return found

    def _start(self, site: Site, leading: Tensor | None) -> Tensor:
        """The drawn factor to start from: the draw, with the leading directions in place of as many of its own."""
        fresh = self._draw(site).to(site.drawn)
        if leading is not None:
            rows = self._rule.align(leading.mT)
            # A side shorter than the rank has fewer directions; the draw fills up.
            Side(site, site.drawn).directions(fresh)[:, : len(rows)] = rows.mT
        return fresh

    def _unusable(self, sums: Mapping[str, Tensor]) -> dict[str, str]:
        """Sites whose gradient is zero or not finite, in rank 0's judgement, and which of the two."""
        mine = [2 if not bool(value.isfinite().all()) else int(not bool(value.any())) for value in sums.values()]
        return self._agreed(sums, mine)

    @staticmethod
    def _agreed(names: Collection[str], mine: list[int]) -> dict[str, str]:
        """Reasons by rank 0's codes; 0 is none."""
        codes = distributed.from_first_(torch.tensor(mine, dtype=torch.int64)).tolist()
        return {name: REASONS[code] for name, code in zip(names, codes, strict=True) if code}

    def _thaw(self) -> None:
        """Give a frozen A a gradient for its probes.

        It is in no parameter group, so that a GradScaler looks past it: what is not finite there is shown to the scaler in B,
        and the step is skipped and repeated.
        """
        for site in self._sites.values():
            if not site.drawn.requires_grad:
                site.drawn.requires_grad_(True)
                self._thawed.append(site.drawn)
        self._watch()

    def _watch(self) -> None:
        thawed = {id(parameter) for parameter in self._thawed}
        for site in self._sites.values():
            if id(site.drawn) in thawed:
                self._hooks.append(site.drawn.register_post_accumulate_grad_hook(_Show(site)))

    def _freeze(self) -> None:
        for hook in self._hooks:
            hook.remove()
        for parameter in self._thawed:
            parameter.requires_grad_(False)
            parameter.grad = None
        self._thawed, self._hooks = [], []

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_hooks": []}  # a copy has tensors of its own

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._watch()

    def _check_served(self) -> None:
        if any(site.is_sharded for site in self._sites.values()):
            raise ArgumentError(
                f"`reset={self._rule}` points whole factors at the gradient, and FSDP2 has sharded them; use another `reset=`."
            )
        if distributed.world_size() > 1 and any(not site.drawn.requires_grad for site in self._sites.values()):
            raise ArgumentError(
                f"`reset={self._rule}` needs the gradient of A for a step, and A is frozen (`freeze_A=True`), so that "
                "data-parallel training would not average it. Use `freeze_A=False`, another `reset=`, or one process."
            )


class _Show:
    """Adds 0 times the sum of a frozen A's gradient to B's: nothing, or nan."""

    def __init__(self, site: Site) -> None:
        self._site = site

    def __call__(self, drawn: Tensor) -> None:
        zeroed = self._site.zeroed
        if drawn.grad is not None:
            nothing = (0 * drawn.grad).sum()
            zeroed.grad = torch.zeros_like(zeroed) + nothing if zeroed.grad is None else zeroed.grad.add_(nothing)
