"""How a chain leaves the process and comes back: the state, files, rollback."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fwlora import distributed, restore
from fwlora.course import Course
from fwlora.errors import ArgumentError, KnotError, StateError
from fwlora.holder import ChainHolder
from fwlora.layers.attach import Attachment
from fwlora.layers.sites import Site
from fwlora.record.chain import Chain
from fwlora.record.consistency import check_links
from fwlora.record.files import read_checked, write_checked
from fwlora.record.fingerprint import Fingerprint
from fwlora.record.ledger import Ledger
from fwlora.record.seal import seal
from fwlora.record.state import KEY, KNOT, STEP, State
from fwlora.rules import ResetRule
from fwlora.sharding import all_rows, cut, local, spread, whole_deep
from fwlora.turns import Turns

FILE = "chain.pt"


class PersistentChain(ChainHolder):
    """A chain that can be saved, loaded and turned back.

    Args:
        inner: the optimizer that takes the steps.
        attachment: the model's sites.
        course: counters and observations.
        turns: which sites rest.
        reset: where a fresh link starts from.
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
        turns: Turns,
        reset: ResetRule,
        *,
        seed: int,
        chain_dir: str | os.PathLike[str] | None,
        original: restore.Original | None,
        residual_in_state: bool,
        exact_replay: bool,
    ) -> None:
        super().__init__(inner, attachment, course, turns, reset, seed=seed, chain_dir=chain_dir)
        self._original = _unaliased(original, attachment)
        self._residual_in_state = residual_in_state
        self._exact_replay = exact_replay

    def state_document(self) -> dict[str, Any]:
        """``state``, ``param_groups`` and everything of the chain under one key; it never communicates.

        As torch's own it refers to the live tensors: save it, or `copy.deepcopy` it to keep it in memory while training.

        Returns:
            Tensors and plain containers.

        Raises:
            KnotError: for a knot that was cut off in a model that FSDP2 has sharded.
            DisconnectedParametersError: where a layer of the chain or its adapter is gone.
            UnsupportedModelError: where PEFT has merged the adapter, or a weight was cast after a knot.
        """
        self._check_loaded()
        self._check_standing()
        self._standing.check_weights(merged=len(self._chain) > 0)
        self._reshard()
        if self._knot is not None and self.is_sharded:
            raise KnotError("A knot was cut off, and to complete it the ranks must talk: call `step()` on all of them first.")
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
            scalings={name: site.scaling for name, site in self._sites.items()},
            trained=self._trained(),
            links=self._chain.document(),
            ledger=self._ledger.document(),
            residuals=dict(self._residuals) if self._residual_in_state else None,
            originals=originals,
            merged=restore.marks(self._sites) if len(self._chain) else originals,
            history={name: list(values) for name, values in self._course.history.items()},
            alignment=self._alignment.document(),
            shard=self._shard,
        )
        document = super().state_document() | {KEY: state.document()}
        # A distributed checkpoint is loaded with a state for every parameter, or not at all.
        document["state"] = document["state"] | self.blank_states(self._turns.resting_parameters())
        return seal(document, KEY)

    def load_document(self, document: dict[str, Any]) -> None:
        """Restore a state; weights that are still the original ones get the links replayed, merged ones are left alone.

        Args:
            document: what `state_dict()` gave.

        Raises:
            StateError: for a state of another chain, or weights that fit it in no way; nothing was changed.
        """
        self._check_unfinished()
        self._reshard()
        self.complete_knot()
        if KEY not in document:
            self._load_stripped(document)
            return
        state = State.from_document(document)
        if state.shard not in (None, self._shard):
            raise StateError(
                f"The state holds the shards of rank {state.shard['rank']} of {state.shard['of']}, and this is "
                f"{'one process' if self._shard is None else 'rank {rank} of {of}'.format(**self._shard)}. What "
                "`optimizer.save(dir)` writes holds all of them, and `load(dir)` reads it on any number of ranks."
            )
        if state.originals.keys() != self._targets().keys():
            raise StateError(
                f"The state merged into {', '.join(state.originals)}, and this model's are {', '.join(self._targets())}; give "
                "the same model and `lora_bias=`."
            )
        live = {name: _values(site) for name, site in self._sites.items()}
        state.check(self.seed, live, {name: site.scaling for name, site in self._sites.items()}, self._trained())
        self.check_moments(document)
        if state.step:
            # Before any step what is live was put into the model: accelerate loads the optimizer's own state into it when
            # Trainer has read an adapter, and the true state comes next. The first step looks again.
            self._turns.check_state(len(state.links), state.live)
            self._check_resting(state, document["state"])
        self._alignment.check(state.alignment, self._turns.names(len(state.links)))
        chain = Chain.from_document(state.links, self._chain.directory)
        links = list(chain)
        check_links(links, live)
        ledger = Ledger.from_document(state.ledger)
        is_whole = state.shard is None
        wanted, exact = restore.plan(
            self._sites,
            links,
            state.originals if is_whole else self._of_all_rows(state.originals),
            state.merged if is_whole else self._of_all_rows(state.merged),
            self._of_all_rows,
            self.original,
            None if state.residuals is None else self._own_residuals(state),
        )
        restore.report_closeness(exact, self._exact_replay)
        # Refuses groups that do not fit before it changes anything.
        super().load_document(document)

        # Copies: the next knot changes residuals in place, and the document may be loaded again.
        self._residuals = {name: value.to("cpu", copy=True) for name, value in self._own_residuals(state).items()}
        for name, start in wanted.items():
            site = self._sites[name]
            self._residuals |= restore.replay(site, links, start, into=site.own_targets())
        if wanted:
            ledger = ledger.replayed("exact" if exact else "close")
        with torch.no_grad():
            for name, site in self._sites.items():
                site.rank = state.ranks[name]
                for letter, value in live[name].items():
                    local(value).copy_(cut(state.live[name][letter], value))
            for name, value in self._trained().items():
                local(value).copy_(cut(state.trained[name], value))
        self._chain, self._ledger = chain, ledger
        self._originals = restore.parted(state.originals) if is_whole and self.is_sharded else state.originals
        self._keep_links(self._sites)
        self._course.restore(state.step, state.link_step, len(chain), state.total_steps, state.history)
        self._take_turns(len(chain))
        self._alignment.restore(state.alignment)
        self._awaits_load = False
        self._standing.check_weights(merged=False)  # they are the chain's, in the precision that they have now

    def _load_stripped(self, document: dict[str, Any]) -> None:
        """A state that torch's distributed checkpoint has cut down to groups and moments."""
        if len(self._chain) and not any(group.get(KNOT, 0) for group in document["param_groups"]):
            raise StateError(
                f"The state has no {KEY!r} entry and counts no knot, and this chain has tied {len(self._chain)}; load it into "
                "a fresh optimizer on the original base."
            )
        self.check_moments(document)
        counters = {(group.get(STEP, 0), group.get(KNOT, 0)) for group in document["param_groups"]}
        if any(type(count) is not int or count < 0 for pair in counters for count in pair):
            raise StateError(f"The state's groups count steps and knots as {sorted(counters, key=str)}; it is damaged.")
        super().load_document(document)
        step, knots = max(counters, default=(0, 0))
        self._course.restore(step, step, 0, self._course.total_steps, {})
        if step >= self.reset.probes:
            self._alignment.end()
        elif step:
            self.start_link(0)  # the sums are lost, and nothing was trained yet
        self._take_turns(knots)
        self._awaits_load = knots > 0

    def save(self, directory: str | os.PathLike[str]) -> Path:
        """Write the whole state to `directory`, there whole or not at all; rank 0 writes.

        Every rank calls it. Of a model that FSDP2 has sharded it gathers, tensor by tensor, what the ranks hold: the file is
        that of one process, and loads on any number of ranks.

        Args:
            directory: made where missing.

        Returns:
            The file's path.
        """
        path = Path(directory) / FILE
        document = self.state_dict()
        if self.is_sharded:
            document = self._gathered(document)
        if distributed.is_main():
            write_checked(path, document)
        return path

    def load(self, directory: str | os.PathLike[str]) -> None:
        """Restore what `save(directory)` wrote.

        Args:
            directory: holds the file.

        Raises:
            ArgumentError: where there is none.
            StateError: for a damaged file, or a state that does not fit; nothing was changed.
        """
        path = Path(directory) / FILE
        if not path.is_file():
            raise ArgumentError(f"`load({str(directory)!r})` finds no {FILE} there; give a folder that `save()` wrote.")
        self.load_state_dict(read_checked(path))

    def original(self) -> restore.Original | None:
        """Where the original weights can be read: the constructor's `original=`, else the model's own source, else None."""
        return self._original if self._original is not None else restore.source_of(self._attachment.model)

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
        self._check_unfinished()
        self._check_loaded()
        self._standing.check_weights(merged=len(self._chain) > 0)
        self.complete_knot()
        if isinstance(to_knot, bool) or not isinstance(to_knot, int) or not 0 <= to_knot <= len(self._chain):
            raise ArgumentError(f"`rollback(to_knot={to_knot!r})`: this chain has knots 0 to {len(self._chain)}.")
        source = original if original is not None else self.original()
        mine = self._trained()
        merging = [site for site in self._sites.values() if not site.keeps_links]
        if source is None and (merging or mine):
            raise ArgumentError(
                "`rollback(original=None)` re-reads the weights that the model was loaded from, and it was loaded from nowhere "
                "on this machine; give `original=` a state_dict, a safetensors file or a folder."
            )
        source = {} if source is None else source  # nothing will be looked up
        originals = self._of_all_rows(self.fingerprint_originals())
        for site in merging:
            restore.read_original(source, site, originals)  # raises before anything changes; kept one site at a time only
        links = self._chain[:to_knot]  # read before anything changes: a file may be missing
        trained = {name: restore.lookup(source, name) for name in mine}
        unknown = [name for name, value in trained.items() if value is None or value.shape != mine[name].shape]
        # The model's own source holds values of these modules too: those before training.
        unknown = list(mine) if original is None else unknown
        if unknown:
            raise ArgumentError(
                f"`rollback(to_knot={to_knot})` cannot turn back what is trained in full ({', '.join(unknown)}): give "
                "`original=` a state_dict that holds their values at that knot."
            )

        ledger = self._ledger.before(to_knot)
        self._chain.truncate(to_knot)
        self._residuals = {}
        for site in merging:
            start = restore.read_original(source, site, originals)
            self._residuals |= restore.replay(site, links, start, into=site.own_targets())
        self._keep_links(self._sites)
        self.start_link(to_knot)
        with torch.no_grad():
            for name, value in mine.items():
                local(value).copy_(cut(trained[name], value))  # type: ignore[arg-type]
        self.forget(self.parameters())
        self._ledger = ledger
        self._course.restore(ledger.column("step")[-1] if to_knot else 0, 0, to_knot, self._course.total_steps, {})

    @property
    def _shard(self) -> dict[str, int] | None:
        """Which of how many shards of the state are here; None for all of it."""
        return {"rank": distributed.rank(), "of": distributed.world_size()} if self.is_sharded else None

    def _check_resting(self, state: State, moments: Mapping[int, Any]) -> None:
        """A site that rests has no moments, and those of a state would be lost."""
        names = self._turns.names(len(state.links))
        numbers = {id(parameter): number for number, parameter in enumerate(self.parameters())}
        for name, site in self._sites.items():
            entries = (
                [moments.get(numbers.get(id(parameter), -1)) for parameter in site.parameters()] if name not in names else []
            )
            tensors = [value for entry in entries if entry for value in entry.values() if isinstance(value, Tensor)]
            if any(bool(local(value).any()) for value in tensors):
                raise StateError(
                    f"The state has moments of {name!r}, which rests after {len(state.links)} knot(s); give the same `blocks=` "
                    "as when the state was made."
                )

    def _own_residuals(self, state: State) -> dict[str, Tensor]:
        """The rounding errors of this rank's rows; those that are of no such rows are refused."""
        targets = self._targets()
        residuals = {}
        for name, value in (state.residuals or {}).items():
            own = targets.get(name)
            residuals[name] = value if own is None or state.shard is not None else cut(value, own)
            if own is None or residuals[name].shape != local(own).shape:
                raise StateError(
                    f"The state's rounding errors of {name!r} are of {tuple(value.shape)}, and this model has no such weight; "
                    "give the model that the state was made with."
                )
        return residuals

    def _targets(self) -> dict[str, Tensor]:
        return {name: target for site in self._sites.values() for name, target in site.targets().items()}

    def _of_all_rows(self, marks: Mapping[str, Fingerprint]) -> dict[str, Fingerprint]:
        return restore.joined(marks) if self.is_sharded else dict(marks)

    def _gathered(self, document: dict[str, Any]) -> dict[str, Any]:
        """The state of one process from those of all ranks, tensor by tensor."""
        entry = {**document[KEY], "shard": None}
        for field in ("originals", "merged"):
            marks = self._of_all_rows({name: Fingerprint(**mark) for name, mark in entry[field].items()})
            entry[field] = {name: mark._asdict() for name, mark in marks.items()}
        if entry["residuals"] is not None:
            targets = self._targets()
            entry["residuals"] = {name: all_rows(value, targets[name]) for name, value in entry["residuals"].items()}
        return seal(whole_deep(document | {KEY: entry}), KEY)

    def _fitted(self, moments: Mapping[int, Mapping[str, Any]]) -> Mapping[int, Mapping[str, Any]]:
        """What is whole cut as the parameters are; a distributed checkpoint's, which has names for numbers, comes cut."""
        likes: dict[Any, Tensor] = dict(enumerate(self.parameters()))
        return {
            number: {
                key: spread(value, likes[number]) if isinstance(value, Tensor) and number in likes else value
                for key, value in entry.items()
            }
            for number, entry in super()._fitted(moments).items()
        }

    def _trained(self) -> dict[str, Tensor]:
        """What is trained in full, buffers with it, by name."""
        parameters = {name: parameter.detach() for name, parameter in self._attachment.parameters().items()}
        return parameters | {name: self._attachment.model.get_buffer(name) for name in self._attachment.buffers}


def _values(site: Site) -> dict[str, Tensor]:
    values = {"A": site.A.detach(), "B": site.B.detach()}
    return values if site.bias is None else values | {"bias": site.bias.detach()}


def _unaliased(original: restore.Original | None, attachment: Attachment) -> restore.Original | None:
    """`original=model.state_dict()` refers to the very weights that knots change: those are copied."""
    if not isinstance(original, Mapping):
        return original
    merged = {values.data_ptr() for site in attachment.sites.values() for values in site.own_targets().values()}
    return {
        name: value.clone() if local(value).data_ptr() in merged else value
        for name, value in original.items()
        if isinstance(value, Tensor)
    }
