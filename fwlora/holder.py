"""The facts of a chain, and what one may read of them."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from fwlora import distributed, restore
from fwlora.alignment import Alignment
from fwlora.course import Course
from fwlora.errors import (
    ArgumentError,
    DisconnectedParametersError,
    FinishedError,
    FwloraError,
    LostUpdatesWarning,
    StateError,
    UnsupportedModelError,
    warn,
)
from fwlora.inner import DelegatingOptimizer
from fwlora.knot import Knot
from fwlora.layers import attach
from fwlora.layers.attach import Attachment
from fwlora.layers.refusals import refuse_placement
from fwlora.layers.rounding import lost
from fwlora.layers.sites import Site
from fwlora.layers.standing import Standing
from fwlora.record.chain import Chain
from fwlora.record.fingerprint import Fingerprint
from fwlora.record.ledger import KnotRecord, Ledger
from fwlora.record.state import KNOT, STEP
from fwlora.rules import Progress, ResetRule
from fwlora.sharding import is_sharded, reshard
from fwlora.turns import Turns


class ChainHolder(DelegatingOptimizer):
    """A delegating optimizer that holds a chain.

    Args:
        inner: the optimizer that takes the steps.
        attachment: the model's sites.
        course: counters and observations.
        turns: which sites rest.
        reset: where a fresh link starts from.
        seed: of the draws.
        chain_dir: where to keep the links; None keeps them on the CPU.
    """

    def __init__(
        self,
        inner: Optimizer,
        attachment: Attachment,
        course: Course,
        turns: Turns,
        reset: ResetRule,
        *,
        seed: int,
        chain_dir: str | os.PathLike[str] | None,
    ) -> None:
        super().__init__(inner)
        self.seed = seed
        self._attachment = attachment
        self._course = course
        self._standing = Standing(attachment.model, attachment.sites)
        self._turns = turns
        turns.begin(0)
        self.reset = reset
        self._alignment = Alignment(reset, attachment.sites, self._draw_live)
        self._chain = Chain(chain_dir)
        self._ledger = Ledger()
        self._residuals: dict[str, Tensor] = {}
        self._knot: Knot | None = None
        self._has_warned = False  # of lost updates
        self._is_asked = True  # the schedule, after the last step
        self._originals: dict[str, Fingerprint] | None = None
        self._awaits_load = False
        self._finished = False
        self._knot_hooks: OrderedDict[int, Callable[[KnotRecord], None]] = OrderedDict()
        attach.own(attachment.sites, self)
        self._mark_groups()

    @abstractmethod
    def complete_knot(self) -> None:
        """Go on with a knot that an exception cut off."""

    @abstractmethod
    def _draw(self, site: Site, index: int) -> Tensor:
        """The drawn factor of a site's link of this index."""

    @abstractmethod
    def _draw_all(self, index: int, refusal: type[FwloraError]) -> dict[str, Tensor]:
        """Those of every site; raises where a link could not grow from one."""

    def start_link(self, index: int) -> None:
        """Reset every site to the fresh factors of the link of this index, and look for its directions where the rule does."""
        fresh = self._draw_all(index, ArgumentError)
        for name, site in self._sites.items():
            site.reset_(fresh[name].to(site.drawn))
        self._begin_link(index)

    @property
    def progress(self) -> Progress:
        """Where the run stands, as the rules see it."""
        return self._course.progress

    @property
    def sites(self) -> Mapping[str, Site]:
        """The adapted layers by name."""
        return MappingProxyType(self._attachment.sites)

    @property
    def chain(self) -> Chain:
        """The retired links."""
        return self._chain

    @property
    def ledger(self) -> Ledger:
        """One record a knot."""
        return self._ledger

    @property
    def fallbacks(self) -> Mapping[str, str]:
        """Sites at which the live link was to be aligned and started from its draw, and why; then in its knot's record."""
        return MappingProxyType(self._alignment.fallbacks)

    @property
    def link_factor(self) -> float:
        """The factor that `link_lr` puts on the learning rates at the next step."""
        return self._course.factor

    @property
    def total_steps(self) -> int | None:
        """Optimizer steps of the whole run, where known; settable unless the knot schedule has its own number."""
        return self._course.total_steps

    @total_steps.setter
    def total_steps(self, steps: int) -> None:
        self._course.bind(steps)

    def on_knot(self, hook: Callable[[KnotRecord], None]) -> RemovableHandle:
        """Call `hook(record)` after every knot.

        Args:
            hook: it sees the record; the knot is complete by then.

        Returns:
            A handle whose `remove()` takes the hook off.

        Raises:
            ArgumentError: for what cannot be called.
        """
        if not callable(hook):
            raise ArgumentError(f"`on_knot({hook!r})`: give a function of the knot's record.")
        handle = RemovableHandle(self._knot_hooks)
        self._knot_hooks[handle.id] = hook
        return handle

    def _tell(self, record: KnotRecord | None) -> None:
        """Call the hooks with a knot's record, when ranks have agreed: a hook that raises leaves a whole knot."""
        if record is not None:
            self._warn_of_losses(record)
            for hook in list(self._knot_hooks.values()):
                hook(record)

    def _warn_of_losses(self, record: KnotRecord) -> None:
        """Say once where an update is too small for what a weight and its rounding errors hold."""
        if self._has_warned:
            return
        sites = [self._sites[name] for name in record.ranks if not self._sites[name].keeps_links]
        reasons = ((s.name, lost(s.weight.dtype, record.relative_updates[s.name], record.gains[s.name])) for s in sites)
        losses = [f"at {name!r} {reason}" for name, reason in reasons if reason]
        if losses:
            self._has_warned = True
            warn(
                f"Knot {record.knot + 1} loses over 1 % of its update at {len(losses)} site(s): {losses[0]}. Train longer "
                "links, at a higher lr, or on a base of higher precision.",
                LostUpdatesWarning,
            )

    def observe(self, loss: float | Tensor) -> None:
        """Tell the loss of the coming step to a knot schedule that reads it, where `step()` gets no closure."""
        self._course.hear(loss)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Reset the gradients of all parameters, as torch.optim does, those borrowed to look for a direction included.

        A knot that an exception cut off is completed first: the coming gradients are to be those of the new link.
        """
        is_cut_off = self._knot is not None or not self._is_asked
        if is_cut_off and not self.is_sharded:  # else the ranks must talk
            self.complete_knot()
        super().zero_grad(set_to_none)
        for parameter in self._alignment.borrowed():
            parameter.grad = None

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Train further parameters of the model in full, as torch.optim does; the state keeps them by name.

        Args:
            param_group: ``{"params": ..., ...}``.

        Raises:
            ArgumentError: for parameters that are not the model's, or that the chain trains or merges into.
        """
        if not self._built:
            return
        params = param_group["params"]
        params = [params] if isinstance(params, Tensor) else [p[1] if isinstance(p, tuple) else p for p in params]
        names = {id(p): name for name, p in self._attachment.model.named_parameters()}
        if not all(id(p) in names for p in params):
            raise ArgumentError("`add_param_group(...)` takes parameters of the model, so that the state can name them.")
        taken = {id(p) for site in self._sites.values() for p in (*site.parameters(), *site.targets().values())}
        if any(id(p) in taken for p in params):
            raise ArgumentError(
                "`add_param_group(...)` got a site's factor or weight, which the chain trains and merges already."
            )
        for parameter in params:
            parameter.requires_grad_(True)  # an injected model is frozen but for its factors
        super().add_param_group({"role": "trained", **param_group, "params": params})
        self._mark_groups()
        self._attachment.trained.extend(names[id(p)] for p in params if names[id(p)] not in self._attachment.trained)

    def fingerprint_originals(self) -> dict[str, Fingerprint]:
        """Fingerprints of the adapted weights before the first merge; until then the user may still load others."""
        if self._originals is None or not len(self._chain):
            self._originals = restore.marks(self._attachment.sites)
        return self._originals

    def _begin_link(self, index: int) -> None:
        """All sites are drawn: the link of this index begins at those whose turn it is."""
        self._take_turns(index)
        self._alignment.begin()

    def _take_turns(self, index: int) -> None:
        """Wake the sites of the link of this index; the inner optimizer holds nothing for the others."""
        self._turns.begin(index)
        for parameter in self._turns.resting_parameters():
            self.state.pop(parameter, None)

    @property
    def is_sharded(self) -> bool:
        """Whether FSDP2 has cut the sites' weights and factors into the ranks' rows; then what looks at them is collective."""
        return any(site.is_sharded for site in self._sites.values())

    def _reshard(self) -> None:
        """See to it that modules hold the shards, and the whole parameters that a forward pass has left are given up."""
        if any(is_sharded(parameter) for parameter in self.parameters()):
            reshard(self._attachment.outermost)
            for name, site in self._sites.items():
                if not all(map(is_sharded, site.tensors())):
                    raise DisconnectedParametersError(
                        f"{name!r} holds whole parameters while the optimizer has shards: a forward pass without a backward "
                        "pass has left them; call `reshard()` on the outermost FSDP module first."
                    )
                refuse_placement(name, site.weight)

    def _refuse_sharded(self, what: str, instead: str) -> None:
        if self.is_sharded:
            raise UnsupportedModelError(f"{what} does not serve a model that FSDP2 has sharded; {instead}.")

    def _keep_links(self, names: Iterable[str]) -> None:
        """Let the sites of these names that keep their links hold what the chain has there."""
        for name in names:
            if self._sites[name].keeps_links:
                self._sites[name].keep(self._chain.stacked(name))

    @property
    def _sites(self) -> dict[str, Site]:
        return self._attachment.sites

    def _draw_live(self, site: Site) -> Tensor:
        return self._draw(site, len(self._chain))

    def _factors(self) -> list[nn.Parameter]:
        return [parameter for site in self._sites.values() for parameter in site.parameters()]

    def _mark_groups(self) -> None:
        # From the beginning: a flattened distributed checkpoint reads back only the keys that the groups have by then.
        for group in self.param_groups:
            group[STEP], group[KNOT] = self._course.step, len(self._chain)

    def _check_loaded(self) -> None:
        if self._awaits_load:
            raise StateError(
                "This state counts knots and a distributed checkpoint has dropped their links: call `optimizer.load(dir)` "
                "with what `optimizer.save(dir)` wrote beside that checkpoint."
            )
        held = set(map(id, self.parameters()))
        if any(id(parameter) not in held for parameter in self.state):
            raise DisconnectedParametersError(
                "Moments belong to parameters that are no longer in the groups: was the model sharded or converted after the "
                "chain had trained or loaded a state? Prepare the model first, then `load()` the state."
            )

    def _check_standing(self) -> None:
        """The model is still what the chain was made for; a finished chain has let go of it."""
        if not self._finished:
            self._standing.check()

    def _check_link(self) -> None:
        """The same, before a link begins or is merged."""
        self._standing.check_link([*self.parameters(), *self._alignment.borrowed()], merged=len(self._chain) > 0)

    def _check_links_of_all(self) -> None:
        """The same on every rank, or an error on all: the others would wait for one that raised."""
        try:
            self._check_link()
        except FwloraError:
            distributed.every(False)
            raise
        if not distributed.every(True):
            raise DisconnectedParametersError(
                "The model of another rank is no longer what the chain was made for; see its error."
            )

    def _check_unfinished(self) -> None:
        if self._finished:
            raise FinishedError("The chain was folded into the model by `merge_and_unload()`; make a new optimizer to go on.")

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._knot_hooks = OrderedDict()
        attach.own(self._sites, self)
