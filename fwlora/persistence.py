"""What a chain keeps, and how it leaves the process and comes back: state, rollback, export, the plain model."""

from __future__ import annotations

import io
import os
from abc import abstractmethod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fwlora import distributed, restore
from fwlora.course import Course
from fwlora.errors import ArgumentError, FinishedError, StateError
from fwlora.inner import DelegatingOptimizer
from fwlora.layers import attach
from fwlora.layers.attach import Attachment
from fwlora.layers.sites import Site
from fwlora.linalg import Factors
from fwlora.record.chain import Chain, write_atomically
from fwlora.record.export import ExportReport, ExportSite, export_adapter
from fwlora.record.fingerprint import Fingerprint
from fwlora.record.ledger import Ledger
from fwlora.record.state import KEY, KNOT, STEP, State

FILE = "chain.pt"


class PersistentOptimizer(DelegatingOptimizer):
    """A delegating optimizer with a chain's facts.

    Args:
        inner: the optimizer that takes the steps.
        attachment: the model's sites.
        course: counters and observations.
        seed: of the draws.
        chain_dir: where to keep the links; None keeps them on the CPU.
        original: where the original weights are, should they be needed.
        residual_in_state: whether `state_dict()` holds the rounding errors of half-precision weights.
        exact_replay: whether a replay that differs by rounding is an error.
    """

    def __init__(
        self,
        inner: torch.optim.Optimizer,
        attachment: Attachment,
        course: Course,
        *,
        seed: int,
        chain_dir: str | os.PathLike[str] | None,
        original: restore.Original | None,
        residual_in_state: bool,
        exact_replay: bool,
    ) -> None:
        super().__init__(inner)
        self.seed = seed
        self._attachment = attachment
        self._course = course
        self._chain = Chain(chain_dir)
        self._ledger = Ledger()
        self._residuals: dict[str, Tensor] = {}
        self._originals: dict[str, Fingerprint] | None = None
        self._original = original
        self._residual_in_state = residual_in_state
        self._exact_replay = exact_replay
        self._awaits_load = False
        self._finished = False
        attach.own(attachment.sites, self)
        self._mark_groups()

    @abstractmethod
    def complete_knot(self) -> None:
        """Go on with a knot that an exception cut off."""

    @abstractmethod
    def start_link(self, site: Site, index: int) -> None:
        """Reset a site to the fresh factors of the link of this index."""

    @property
    def _sites(self) -> dict[str, Site]:
        return self._attachment.sites

    def fingerprint_originals(self) -> dict[str, Fingerprint]:
        """Fingerprints of the adapted weights before the first merge, taken once."""
        if self._originals is None:
            self._originals = restore.marks(self._sites)
        return self._originals

    # -- state --------------------------------------------------------------------------------------------------------

    def state_document(self) -> dict[str, Any]:
        """``state``, ``param_groups`` and everything of the chain under one key; it never communicates."""
        self._check_loaded()
        self.complete_knot()
        self._mark_groups()
        originals = self.fingerprint_originals()
        state = State(
            seed=self.seed,
            step=self._course.step,
            link_step=self._course.link_step,
            total_steps=self._course.total_steps,
            ranks={name: site.rank for name, site in self._sites.items()},
            live={name: _values(site) for name, site in self._sites.items()},
            trained={name: p.detach() for name, p in self._attachment.trained.items()},
            links=self._chain.document(),
            ledger=self._ledger.document(),
            residuals=dict(self._residuals) if self._residual_in_state else None,
            originals=originals,
            merged=restore.marks(self._sites) if len(self._chain) else originals,
            history={name: list(values) for name, values in self._course.history.items()},
        )
        return super().state_document() | {KEY: state.document()}

    def load_document(self, document: dict[str, Any]) -> None:
        """Restore a state; weights that are still the original ones get the links replayed, merged ones are left alone.

        Args:
            document: what `state_dict()` gave.

        Raises:
            StateError: for a state of another chain, or weights that fit it in no way; nothing was changed.
        """
        self.complete_knot()
        if KEY not in document:
            self._load_stripped(document)
            return
        state = State.from_document(document[KEY])
        state.check(self.seed, {name: _shape(site) for name, site in self._sites.items()}, self._attachment.trained)
        chain = Chain.from_document(state.links, self._chain.directory)
        ledger = Ledger.from_document(state.ledger)
        wanted, exact = restore.plan(
            self._sites,
            chain,
            state.originals,
            state.merged,
            self._original,
            residuals_known=state.residuals is not None,
        )
        restore.report_closeness(exact, self._exact_replay)
        super().load_document(document)  # refuses groups that do not fit before it changes anything

        self._residuals = {name: value.cpu() for name, value in (state.residuals or {}).items()}
        for name, start in wanted.items():
            site = self._sites[name]
            self._residuals |= restore.replay(site, chain, start, into=site.targets())
        if wanted:
            ledger = ledger.replayed("exact" if exact else "close")
        with torch.no_grad():
            for name, site in self._sites.items():
                site.rank = state.ranks[name]
                for letter, value in _values(site).items():
                    value.copy_(state.live[name][letter])
            for name, parameter in self._attachment.trained.items():
                parameter.copy_(state.trained[name])
        self._chain, self._ledger, self._originals = chain, ledger, state.originals
        self._course.restore(state.step, state.link_step, len(chain), state.total_steps, state.history)
        self._awaits_load = False

    def _load_stripped(self, document: dict[str, Any]) -> None:
        """A state that torch's distributed checkpoint has cut down to groups and moments."""
        super().load_document(document)
        counters = {(group.get(STEP, 0), group.get(KNOT, 0)) for group in self.param_groups}
        step, knots = max(counters, default=(0, 0))
        self._course.restore(step, step, 0, self._course.total_steps, {})
        self._awaits_load = knots > 0

    def save(self, directory: str | os.PathLike[str]) -> Path:
        """Write the whole state to `directory`, there whole or not at all; rank 0 writes.

        Args:
            directory: made where missing.

        Returns:
            The file's path.
        """
        path = Path(directory) / FILE
        document = self.state_dict()
        if distributed.is_main():
            buffer = io.BytesIO()
            torch.save(document, buffer)
            write_atomically(path, buffer.getvalue())
        return path

    def load(self, directory: str | os.PathLike[str]) -> None:
        """Restore what `save(directory)` wrote.

        Args:
            directory: holds the file.

        Raises:
            ArgumentError: where there is none.
        """
        path = Path(directory) / FILE
        if not path.is_file():
            raise ArgumentError(f"`load({str(directory)!r})` finds no {FILE} there; give a folder that `save()` wrote.")
        self.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))

    # -- the way back and the way out ---------------------------------------------------------------------------------

    def rollback(self, to_knot: int, original: restore.Original | None = None) -> None:
        """Return to the moment after knot `to_knot`: weights replayed from the originals, the live link fresh.

        The user's scheduler and data are not ours to turn back.

        Args:
            to_knot: knots to keep, from 0 to ``len(optimizer.chain)``.
            original: the original weights: a state_dict, a safetensors file or a folder of them; None takes the
                constructor's `original=`, else re-reads the model's own source. With `train_modules` a state_dict that
                also holds their values at that knot.

        Raises:
            ArgumentError: for a knot that was not tied, or where no original can be found.
            StateError: for originals that are not this chain's; nothing was changed.
        """
        self.complete_knot()
        self._check_unfinished()
        if isinstance(to_knot, bool) or not isinstance(to_knot, int) or not 0 <= to_knot <= len(self._chain):
            raise ArgumentError(f"`rollback(to_knot={to_knot!r})`: this chain has knots 0 to {len(self._chain)}.")
        source = original if original is not None else self._original
        source = source if source is not None else restore.source_of(self._attachment.model)
        originals = self.fingerprint_originals()
        starts = {name: restore.read_original(source, site, originals) for name, site in self._sites.items()}
        trained = {name: restore.lookup(source, name) for name in self._attachment.trained}
        if (original is None and trained) or any(value is None for value in trained.values()):
            raise ArgumentError(
                f"`rollback(to_knot={to_knot})` cannot turn back the modules trained in full ({sorted(trained)}): give "
                "`original=` a state_dict that holds their values at that knot."
            )

        ledger = self._ledger.before(to_knot)
        self._chain.truncate(to_knot)
        self._residuals = {}
        for name, site in self._sites.items():
            self._residuals |= restore.replay(site, self._chain, starts[name], into=site.targets())
            self.start_link(site, to_knot)
        with torch.no_grad():
            for name, parameter in self._attachment.trained.items():
                parameter.copy_(trained[name])  # type: ignore[arg-type]
        self.forget(self.parameters())
        self._ledger = ledger
        self._course.restore(ledger.column("step")[-1] if to_knot else 0, 0, to_knot, self._course.total_steps, {})

    def compact(self) -> None:
        """Shrink masked factors to the live link's rank for good, once training is over.

        The Parameters are new ones and the inner optimizer forgets the old; PEFT's own configuration follows, so that
        `save_pretrained` writes what loads again.
        """
        self.complete_knot()
        self._check_unfinished()
        for site in self._sites.values():
            old = site.parameters()
            site.compact_(self._attachment.config)
            swapped = dict(zip(map(id, old), site.parameters(), strict=True))
            for group in self.param_groups:
                group["params"] = [swapped.get(id(p), p) for p in group["params"]]
            for parameter in old:
                self.state.pop(parameter, None)

    def export_adapter(
        self,
        directory: str | os.PathLike[str],
        *,
        max_rank: int | None = None,
        tolerance: float | None = None,
        base_model: str | None = None,
    ) -> ExportReport:
        """Write the chain and the live link as ONE standard PEFT adapter for the original base model.

        Args:
            directory: made where missing.
            max_rank: cut every site to this rank; None keeps the sum of the links' ranks, which is exact.
            tolerance: cut every site to the smallest rank with this relative Frobenius error.
            base_model: name or path of the original base for the adapter's config; None takes the model's own.

        Returns:
            Rank and error of each site; print it.

        Raises:
            ArgumentError: for a bound that is none; nothing was written.
        """
        self.complete_knot()
        model, config = self._attachment.model, self._attachment.config
        name = getattr(getattr(model, "config", None), "_name_or_path", None)
        task_type = config.task_type or ("CAUSAL_LM" if type(model).__name__.endswith("ForCausalLM") else None)
        return export_adapter(
            directory,
            {name: self._export_site(site) for name, site in self._sites.items()},
            self._attachment.trained,
            base_model=base_model or config.base_model_name_or_path or name or None,
            task_type=task_type,
            max_rank=max_rank,
            tolerance=tolerance,
        )

    def delta(self, site: str) -> Tensor:
        """The total update of a site, chain + live link, shaped as its weight, on the CPU.

        Args:
            site: its name, a key of `optimizer.sites`.

        Returns:
            What the function has gained over the original weight.

        Raises:
            ArgumentError: for a name that is no site's.
        """
        self.complete_knot()
        if site not in self._sites:
            raise ArgumentError(f"`delta({site!r})`: the sites are {', '.join(self._sites)}.")
        A, B = self._total(self._sites[site]).matrices()
        return self._sites[site].orient(B @ A)

    def _export_site(self, site: Site) -> ExportSite:
        return ExportSite(self._total(site), site.is_embedding, site.transposed and site.is_linear)

    def _total(self, site: Site) -> Factors:
        live = site.live()
        # A live link that is exactly zero, as after a knot, adds rank and nothing else.
        is_idle = self._finished or not (site.zeroed.any() or (site.bias is not None and site.bias.any()))
        total = self._chain.stacked(site.name, None if is_idle and len(self._chain) else live)
        assert total is not None
        return total

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

    def _check_unfinished(self) -> None:
        if self._finished:
            raise FinishedError("The chain was folded into the model by `merge_and_unload()`; make a new optimizer to go on.")

    def _unload(self) -> nn.Module:
        self._finished = True
        return attach.detach(self._attachment.model)


def _values(site: Site) -> dict[str, Tensor]:
    values = {"A": site.A.detach(), "B": site.B.detach()}
    return values if site.bias is None else values | {"bias": site.bias.detach()}


def _shape(site: Site) -> tuple[int, ...]:
    return (site.B.shape[0], *site.A.shape)
