"""The knot as a resumable transaction over sites.

Site by site, as one unit: allocate, retire, merge, reset, forget. Between any two sites the model computes the right
function; a knot that an exception cut off is gone on with, never begun anew, for each site's factors are retired once.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fwlora import distributed
from fwlora.errors import KnotError, NonFiniteFactorsError, RankDisagreementError
from fwlora.inner import DelegatingOptimizer
from fwlora.interrupts import sigint_waits
from fwlora.layers.rounding import RowMerge
from fwlora.layers.sites import Site, first_nonfinite
from fwlora.linalg import Factors, extremes, read
from fwlora.record.chain import Chain, Link, update
from fwlora.record.fingerprint import fingerprint
from fwlora.record.ledger import KnotRecord
from fwlora.rules import Coefficients
from fwlora.sharding import local


class Knot:
    """One knot, from the first site to the record.

    Args:
        index: knots tied before, which is the index of the link that is retired.
        step: optimizer steps taken.
        link_steps: steps of the link that is retired.
        live: the live link of each site that takes part, all of it: where it is sharded, ranks talk before a knot begins and
            not within it.
        coefficients: by which earlier links shrink and the new one is scaled at each site, by the merge rule.
        norms: of the live link at each site.
        earlier: the links before, read where they shrink.
        fresh: the next link's drawn factor at each site, on the CPU; held until the site is tied.
        facts: further fields of the record, known before the knot begins.
    """

    def __init__(
        self,
        index: int,
        step: int,
        link_steps: int,
        live: dict[str, Factors],
        coefficients: Mapping[str, Coefficients],
        norms: Mapping[str, float],
        earlier: Sequence[Link],
        fresh: dict[str, Tensor],
        facts: Mapping[str, Any],
    ) -> None:
        self.index, self.step, self.link_steps, self._live = index, step, link_steps, live
        self._coefficients, self._norms, self._earlier, self._fresh, self._facts = coefficients, norms, earlier, fresh, facts
        self._began = time.perf_counter()
        self._retired: dict[str, Factors] = {}
        self._merging: dict[str, list[RowMerge]] = {}
        self._sizes: dict[str, float] = {}
        self._sums: dict[str, Tensor] = {}
        self._is_sharded = False
        self._with_feedback: set[str] = set()
        self._gains: dict[str, float | None] = {}
        self._relative: dict[str, float] = {}

    def tie_all(
        self, sites: Mapping[str, Site], residuals: dict[str, Tensor], inner: DelegatingOptimizer, chain: Chain
    ) -> None:
        """Tie the knot at every site, then append the link; what was done before an exception is left alone.

        Args:
            sites: all of the model's.
            residuals: rounding errors by merged parameter.
            inner: whose moments are forgotten.
            chain: which the link is appended to.
        """
        for site in sites.values():
            self.tie(site, residuals, inner)
        for site in sites.values():
            for parameter in site.parameters():
                parameter.grad = None  # of a backward pass between a cut and now: part of it belongs to the retired link
        verify(sites, inner)
        with sigint_waits():
            if len(chain) == self.index:
                chain.append(self.link())

    def tie(self, site: Site, residuals: dict[str, Tensor], inner: DelegatingOptimizer) -> None:
        """Tie the knot at one site; a site that was tied is left alone.

        Args:
            site: where.
            residuals: rounding errors by merged parameter.
            inner: whose moments are forgotten.
        """
        if site.name not in self._fresh:
            return
        with sigint_waits():
            # All that can fail comes first: every allocation.
            drawn = site.drawn
            fresh = self._fresh[site.name].to(drawn.device, drawn.dtype)
            if site.name in self._live and site.name not in self._merging:
                live, coefficients = self._live[site.name], self._coefficients[site.name]
                retired = Factors(
                    _host_copy(live.A),
                    _host_copy(live.B),
                    live.scale * coefficients.scale,
                    None if live.bias is None else _host_copy(live.bias),
                )
                change = live._replace(scale=retired.scale)  # on its own device already
                size = abs(coefficients.scale) * self._norms[site.name]
                if coefficients.shrink != 1.0:
                    change = update(self._earlier, Link({site.name: retired}, {site.name: coefficients.shrink}), site.name)
                    size = change.norm()
                merges = site.merges(change, residuals)
                self._retired[site.name], self._sizes[site.name] = retired, size
                self._merging[site.name] = merges
            merges = self._merging.get(site.name, [])
            for merge in merges:
                merge.run()
            site.reset_(fresh)
            inner.forget(site.parameters())
            del self._fresh[site.name]
            if merges:
                del self._merging[site.name], self._live[site.name]
                self._is_sharded = site.is_sharded
                if merges[0].residual is not None:
                    self._with_feedback.add(site.name)
                self._sums[site.name] = merges[0].sums

    def link(self) -> Link:
        """What was retired."""
        shrinks = {name: c.shrink for name, c in self._coefficients.items() if c.shrink != 1.0}
        return Link(self._retired, shrinks)

    def record(self) -> KnotRecord:
        """The knot's line in the ledger; where the weights are sharded, every rank must ask."""
        self._read()
        return KnotRecord(
            knot=self.index,
            step=self.step,
            link_steps=self.link_steps,
            ranks={name: factors.rank for name, factors in self._retired.items()},
            link_norms={name: self._norms[name] for name in self._retired},
            relative_updates=self._relative,
            gains=self._gains,
            **self._facts,
            seconds=time.perf_counter() - self._began,
        )

    def _read(self) -> None:
        """Gains and sizes of the updates: a device, and the other ranks, are waited for once for all sites."""
        halves = [(sums[: len(sums) // 2], sums[len(sums) // 2 :]) for sums in read(list(self._sums.values()))]
        told = [(math.fsum(realised), math.hypot(*norms)) for realised, norms in halves]
        if self._is_sharded:
            totals = distributed.total(torch.tensor([(realised, norm**2) for realised, norm in told], dtype=torch.float64))
            told = [(realised, square**0.5) for realised, square in totals.tolist()]
        for name, (realised, norm) in zip(self._sums, told, strict=True):
            size = self._sizes[name]
            self._gains[name] = realised / size**2 if name in self._with_feedback and size > 0 else None
            self._relative[name] = size / max(norm, torch.finfo(torch.float32).tiny)


def check_finite(sites: Mapping[str, Site]) -> None:
    """Refuse a knot on any rank where a factor of some rank is not finite.

    Args:
        sites: all sites.

    Raises:
        NonFiniteFactorsError: naming the site.
    """
    name = first_nonfinite(sites)
    if not distributed.every(name is None):
        where = f"at {name!r}" if name else "on another rank"
        raise NonFiniteFactorsError(
            f"A factor {where} holds inf or nan, and a knot would merge it for ever. Lower the lr, or clip gradients."
        )


def verify(sites: Mapping[str, Site], inner: DelegatingOptimizer) -> None:
    """What every knot must leave behind: one zero factor a site, no gradients, nothing remembered.

    Args:
        sites: all sites.
        inner: the optimizer whose moments were to be forgotten.

    Raises:
        KnotError: naming the site that breaks it.
    """
    zeroed = extremes([local(site.zeroed) for site in sites.values()])
    drawn = extremes([local(site.drawn) for site in sites.values()])
    for (name, site), zero, some in zip(sites.items(), zeroed, drawn, strict=True):
        # Of a sharded factor this rank may hold masked rows or none.
        if zero != (0, 0) or (some == (0, 0) and not site.is_sharded):
            raise KnotError(f"After a knot exactly one factor of {name!r} must be zero.")
    factors = {name: site.parameters() for name, site in sites.items()}
    if inner.remembers(parameter for parameters in factors.values() for parameter in parameters):
        name = next(name for name, parameters in factors.items() if inner.remembers(parameters))
        raise KnotError(f"After a knot the inner optimizer still remembers {name!r}.")
    for name, parameters in factors.items():
        if any(parameter.grad is not None for parameter in parameters):
            raise KnotError(f"After a knot {name!r} still has a gradient.")


def verify_agreement(drawn: Iterable[Tensor]) -> None:
    """Every rank must start the next link from the same factors.

    Args:
        drawn: each site's drawn factor, whole.

    Raises:
        RankDisagreementError: when they differ.
    """
    mark = sum(fingerprint(factor).exact for factor in drawn)
    if not distributed.same((mark + 2**63) % 2**64 - 2**63):
        raise RankDisagreementError(
            "After a knot the ranks hold different factors. Give every rank the same `seed=` and the same sites, and tie "
            "knots on all ranks or on none."
        )


def _host_copy(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True).contiguous()
