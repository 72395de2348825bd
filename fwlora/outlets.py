"""The ways out of a chain: its total update, one adapter for the original base, the plain model, a smaller one."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor, nn

from fwlora import distributed
from fwlora.errors import ArgumentError
from fwlora.gap import GapReport
from fwlora.interrupts import sigint_waits
from fwlora.layers import attach
from fwlora.layers.sites import Site
from fwlora.layers.trained import original_name, whole_modules
from fwlora.linalg import Factors
from fwlora.persistence import PersistentChain
from fwlora.record.chain import Chain, Link
from fwlora.record.export import ExportReport, ExportSite, check_bounds, cut, export_adapter
from fwlora.record.ledger import KnotRecord
from fwlora.rules import Add, MergeRule


class ExportingChain(PersistentChain):
    """A persistent chain that can leave the optimizer for good."""

    @abstractmethod
    def _tie(self, merge: MergeRule, measure: Callable[[], GapReport] | None = None) -> KnotRecord:
        """Tie a knot now, under any merge rule and after any measurement."""

    def delta(self, site: str) -> Tensor:
        """The total update of a site, chain + live link, shaped as its weight, on the CPU.

        Args:
            site: its name, a key of `optimizer.sites`.

        Returns:
            What the function has gained over the original weight.

        Raises:
            ArgumentError: for a name that is no site's.
        """
        self._check_loaded()
        self.complete_knot()
        if site not in self._sites:
            raise ArgumentError(f"`delta({site!r})`: the sites are {', '.join(self._sites)}.")
        A, B = self._total(self._sites[site], self._chain).matrices()
        return self._sites[site].orient(B @ A)

    def export_adapter(
        self,
        directory: str | os.PathLike[str],
        *,
        max_rank: int | None = None,
        tolerance: float | None = None,
        base_model: str | None = None,
    ) -> ExportReport:
        """Write the chain and the live link as ONE standard PEFT adapter for the original base model.

        Of several ranks rank 0 writes, and every rank that calls gets the report; where the model is sharded all must call.

        Args:
            directory: made where missing.
            max_rank: cut every site to this rank; None keeps the sum of the links' ranks, which is exact.
            tolerance: cut every site to the smallest rank with this relative Frobenius error.
            base_model: name or path of the original base for the adapter's config; None takes the model's own.

        Returns:
            Rank and error of each site; print it.

        Raises:
            ArgumentError: for a bound that is none, or parameters that no adapter can hold; nothing was written.
        """
        self._check_loaded()
        self._check_standing()
        self.complete_knot()
        model, config = self._attachment.model, self._attachment.config
        chain = self._chain.in_memory()
        name = getattr(getattr(model, "config", None), "_name_or_path", None)
        task_type = config.task_type or ("CAUSAL_LM" if type(model).__name__.endswith("ForCausalLM") else None)
        return export_adapter(
            directory,
            {name: self._export_site(site, chain) for name, site in self._sites.items()},
            whole_modules(model, self._trained(), self._sites),
            {name for name, _ in model.named_modules()},
            base_model=base_model or config.base_model_name_or_path or name or None,
            task_type=task_type,
            max_rank=max_rank,
            tolerance=tolerance,
        )

    def compress(self, *, max_rank: int | None = None, tolerance: float | None = None) -> ExportReport:
        """Replace the links that are kept beside quantised weights by their best approximation of a smaller rank.

        A step costs there what the sum of the links' ranks makes it cost. The model moves by the error stated; so do
        `delta`, exports and states from here on, while a rollback to an earlier knot still finds the links as they were.
        The live link, its moments and all counters stay. Of several ranks every one must call it.

        Args:
            max_rank: cut every such site to this rank.
            tolerance: cut every such site to the smallest rank with this relative Frobenius error. Give one of the two.

        Returns:
            Rank and error of each such site; print it.

        Raises:
            ArgumentError: for a bound that is none, for both or neither, or where there is nothing to compress.
            DecompositionError: where an SVD does not converge; nothing was changed.
        """
        self._check_unfinished()
        self._check_loaded()
        if (max_rank is None) == (tolerance is None):
            raise ArgumentError(
                f"`compress(max_rank={max_rank}, tolerance={tolerance})` takes one bound: `max_rank=` states the rank and "
                "reports the error, `tolerance=` the other way round."
            )
        check_bounds("compress", max_rank, tolerance)
        self.complete_knot()
        kept = [name for name, site in self._sites.items() if site.keeps_links]
        if not kept:
            raise ArgumentError(
                "`compress(...)` is for links that are kept beside quantised weights; here they are merged, and cost no step "
                "anything. `export_adapter(max_rank=...)` compresses what is exported."
            )
        totals = {name: total for name in kept if (total := self._chain.stacked(name)) is not None}
        if not totals:
            raise ArgumentError("`compress(...)` comes before the first knot: there is no link to compress yet.")
        last, errors = self._chain[-1], {}
        factors = dict(last.factors)
        for name, total in totals.items():
            A, B, errors[name] = cut(total, max_rank, tolerance)
            A, B = _from_first(A, B)
            factors[name] = Factors(A, B, 1.0)
        # The earlier links stay, and count for nothing.
        link = Link(factors, {**last.shrinks, **dict.fromkeys(totals, 0.0)})
        with sigint_waits():
            self._chain.replace_last(link)
            self._keep_links(totals)
        ranks = {name: factors[name].rank for name in totals}
        return ExportReport(None, ranks, {name: total.rank for name, total in totals.items()}, errors)

    def merge_and_unload(self, *, dequantize: bool = False) -> nn.Module:
        """Fold every link into the weights and give back the plain model; the optimizer is done.

        The live link is added as it is, under any merge rule: the plain model computes what the model computes now. For the
        iterate of Algorithm 2 tie a last knot before.

        Args:
            dequantize: of a model that bitsandbytes has quantised make an ordinary one. All of its 4-bit and 8-bit layers
                become Linears that hold the weight that was computed with, plus the links, in the dtype of most of the
                model's other parameters: that is what its activations are in, and an ordinary Linear casts nothing. Any
                other model it leaves as it is.

        Returns:
            The base model without LoRA layers, the same object that was given.

        Raises:
            ArgumentError: for a quantised weight without `dequantize=True`; nothing was changed.
        """
        self._check_unfinished()
        self._check_loaded()
        self._check_standing()
        kept = [name for name, site in self._sites.items() if site.keeps_links]
        if kept and not dequantize:
            raise ArgumentError(
                f"`merge_and_unload(dequantize=False)` cannot fold links into {kept[0]!r}: its weight is quantised, and to "
                "quantise it anew would lose most of what was learned. `export_adapter(...)` writes an adapter for this base; "
                "`merge_and_unload(dequantize=True)` gives a model that is quantised no more, in its full size."
            )
        self.complete_knot()
        if not len(self._chain) or not all(site.is_idle for site in self._sites.values()):
            self._tie(Add())
        self._finished = True
        self._alignment.end()
        trained, buffers = self._attachment.trained, self._attachment.buffers
        self._attachment = self._attachment._replace(
            trained=[original_name(name) for name in trained],
            buffers=[original_name(name) for name in buffers],
        )
        model = attach.detach(self._attachment.model)
        return attach.dequantise(model) if dequantize else model

    def compact(self) -> None:
        """Shrink masked factors to the live link's rank for good, once training is over.

        The Parameters are new ones and the inner optimizer forgets the old; PEFT's own configuration follows, so that
        `save_pretrained` writes what loads again. A state saved from here on is one of that rank, and loads into an
        optimizer made with it.
        """
        self._check_unfinished()
        self._check_loaded()
        self._refuse_sharded("`compact()`", "compact in one process, from what `save()` wrote")
        self.complete_knot()
        self._alignment.end()
        for site in self._sites.values():
            if site.rank == site.width:
                continue
            old = site.parameters()
            site.compact_(self._attachment.config)
            swapped = dict(zip(map(id, old), site.parameters(), strict=True))
            for group in self.param_groups:
                group["params"] = [swapped.get(id(p), p) for p in group["params"]]
            for parameter in old:
                self.state.pop(parameter, None)
        self._turns.begin(len(self._chain))  # which watches Parameters

    def _export_site(self, site: Site, chain: Chain) -> ExportSite:
        return ExportSite(self._total(site, chain), site.is_embedding, site.transposed and site.is_linear)

    def _total(self, site: Site, chain: Chain) -> Factors:
        # An idle live link would add rank and nothing else.
        is_over = self._finished or (site.is_idle and (len(chain) > 0 or site.rests))
        live = site.live()
        total = chain.stacked(site.name, None if is_over else live)
        if total is None:
            # No link has held the site: nothing was added, but something must stand.
            one = live._replace(A=live.A[:1], B=torch.zeros_like(live.B[:, :1]))
            total = Chain().stacked(site.name, one)
            assert total is not None
        return total


def _from_first(*factors: Tensor) -> list[Tensor]:
    """Rank 0's factors on every rank: algebra on another machine may differ in a last bit, and so in a rank."""
    shapes = distributed.from_first_(torch.tensor([factor.shape for factor in factors])).tolist()
    alike = [f if [*f.shape] == shape else f.new_empty(shape) for f, shape in zip(factors, shapes, strict=True)]
    return [distributed.from_first_(factor) for factor in alike]
