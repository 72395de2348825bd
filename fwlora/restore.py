"""Putting the weights where a chain says they are: by replay from the originals, never by subtraction.

Replay repeats the same in-place operations in the same order, so it is bit-exact on the same kind of machine. It is tried on
a copy of one weight at a time first, so that a state that does not fit leaves the model as it was.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fwlora import distributed
from fwlora.errors import CloseReplayWarning, StateError, warn
from fwlora.layers.rounding import ROUNDED
from fwlora.layers.sites import Site
from fwlora.record.chain import Link, update
from fwlora.record.fingerprint import BINS, Fingerprint, fingerprint
from fwlora.sharding import cut, first_entry, local

Original = Mapping[str, Tensor] | str | os.PathLike[str]


def marks(sites: Mapping[str, Site]) -> dict[str, Fingerprint]:
    """Fingerprint of every parameter that merges change, of this rank's rows where it is sharded."""
    return {
        name: fingerprint(local(target), first_entry(target))
        for site in sites.values()
        for name, target in site.targets().items()
    }


def joined(marks: Mapping[str, Fingerprint]) -> dict[str, Fingerprint]:
    """Fingerprints of all rows from those of each rank's; every rank must ask."""
    exact = distributed.total(torch.tensor([mark.exact for mark in marks.values()], dtype=torch.int64))
    sketches = distributed.total(torch.stack([mark.sketch for mark in marks.values()]))
    return {name: Fingerprint(*pair) for name, pair in zip(marks, zip(exact.tolist(), sketches, strict=True), strict=True)}


def parted(marks: Mapping[str, Fingerprint]) -> dict[str, Fingerprint]:
    """What each rank is to keep of whole fingerprints, so that they add up to these: all of it, or nothing."""
    nothing = Fingerprint(0, torch.zeros(BINS, dtype=torch.float64))
    return dict(marks) if distributed.is_main() else dict.fromkeys(marks, nothing)


def replay(site: Site, links: Iterable[Link], start: Mapping[str, Tensor], *, into: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Merge `links` into copies of a site's original weights, of this rank's rows where they are sharded.

    Args:
        site: whose links.
        links: in order.
        start: the original values by parameter name.
        into: what receives the result, the site's own values or scratch of their shape.

    Returns:
        The rounding errors of half-precision parameters.
    """
    residuals: dict[str, Tensor] = {}
    with torch.no_grad():
        for name, target in into.items():
            if target is not start[name]:
                target.copy_(start[name])
    done: list[Link] = []
    for link in links:
        if site.name in link.factors:
            for merge in site.merges(update(done, link, site.name), residuals, into=into):
                merge.run()
        done.append(link)
    return residuals


def plan(
    sites: Mapping[str, Site],
    links: Sequence[Link],
    originals: Mapping[str, Fingerprint],
    merged: Mapping[str, Fingerprint],
    of_all_rows: Callable[[Mapping[str, Fingerprint]], Mapping[str, Fingerprint]],
    original: Callable[[], Original | None],
    residuals: Mapping[str, Tensor] | None,
) -> tuple[dict[str, Mapping[str, Tensor]], bool]:
    """Decide, without touching the model, which sites to replay and from which values.

    Args:
        sites: the model's.
        links: the chain of the state.
        originals: fingerprints before the first merge.
        merged: fingerprints that the weights must come to have.
        of_all_rows: makes fingerprints of all rows from those of this rank's, see `joined`.
        original: tells where the original weights are; asked for weights that are neither original nor merged.
        residuals: the state's rounding errors of half-precision weights; without them merged weights must be replayed too.

    Returns:
        For each site that needs a replay its original values, and whether every replay comes out bit for bit.

    Raises:
        StateError: when some weight is neither, or a replay does not come out.
    """
    exact, wanted = True, {}
    for site in sites.values():
        now = of_all_rows(marks({site.name: site}))
        incomplete = residuals is None and len(links) > 0 and site.weight.dtype in ROUNDED and not site.keeps_links
        if _agree(now, merged) and not incomplete:
            continue
        if site.keeps_links:
            raise StateError(
                f"{site.name!r} holds another quantised weight than the one that this chain started from; load the base model "
                "that it was made on, quantised in the same way."
            )
        own = site.own_targets()
        start: Mapping[str, Tensor] = own
        if not _agree(now, originals):
            if not incomplete and _near(now, merged, own):
                exact = False
                continue
            # PEFT's `merge_adapter` and `unmerge_adapter` leave a weight that differs by rounding: what was saved may have
            # begun there. The replay is held against the merged weights all the same.
            is_near = not incomplete and _near(now, originals, own)
            source = None if is_near else original()
            if source is None and incomplete and _agree(now, merged):
                raise StateError(
                    f"{site.name!r} is merged in half precision and the state was saved with `residual_in_state=False`, so "
                    "its rounding errors are gone: load the original base model first, or give "
                    "`ChainLoRAOptimizer(original=...)`."
                )
            if source is None and not is_near:
                raise StateError(
                    f"{site.name!r} holds weights that are neither the original ones of this chain nor those merged after "
                    f"{len(links)} knot(s). Load the original base model (or the checkpoint that the state was saved with) "
                    "first, or give `ChainLoRAOptimizer(original=...)` the original weights."
                )
            if source is not None:
                start = read_original(source, site, originals)
        scratch = {name: torch.empty_like(values) for name, values in own.items()}
        errors = replay(site, links, start, into=scratch)
        firsts = {name: first_entry(target) for name, target in site.targets().items()}
        replayed = of_all_rows({name: fingerprint(values, firsts[name]) for name, values in scratch.items()})
        for name, mark in replayed.items():
            if mark.exact == merged[name].exact and (residuals is None or _are_errors(errors, residuals, name)):
                continue
            if mark.exact == merged[name].exact or not mark.close(merged[name], _tolerance(own[name])):
                raise StateError(
                    f"Replaying {len(links)} link(s) at {site.name!r} does not give the weights that the state was saved "
                    "with; the state or its links are damaged."
                )
            exact = False
        wanted[site.name] = start
    return wanted, exact


def read_original(original: Original, site: Site, originals: Mapping[str, Fingerprint]) -> dict[str, Tensor]:
    """A site's original values from a state_dict, a safetensors file or a folder of them, checked by fingerprint.

    Args:
        original: where to look.
        site: whose values.
        originals: what they must be.

    Returns:
        The values by parameter name, on the site's device, of this rank's rows where it is sharded.

    Raises:
        StateError: for values that are missing or are not the originals.
    """
    found = {}
    for name, target in site.targets().items():
        value = lookup(original, name, by_ending=True)
        if value is None:
            raise StateError(f"`original=` holds no {name!r}; give the weights that the chain started from.")
        value = value.to(target.device, target.dtype)
        if value.shape != target.shape or fingerprint(value).exact != originals[name].exact:
            raise StateError(f"`original=` holds other values of {name!r} than those the chain started from.")
        found[name] = cut(value, target)
    return found


def source_of(model: torch.nn.Module) -> str | None:
    """The folder that a transformers model was loaded from, the hub's local cache included; nothing is downloaded.

    Args:
        model: the base model.

    Returns:
        The folder, or None where there is none on this machine.
    """
    name = getattr(getattr(model, "config", None), "_name_or_path", "") or ""
    if not name or Path(name).is_dir():
        return name or None
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return snapshot_download(name, local_files_only=True)
    except (LocalEntryNotFoundError, OSError, ValueError):
        return None


def lookup(original: Original, name: str, *, by_ending: bool = False) -> Tensor | None:
    """A parameter's value in a state_dict, a safetensors file or a folder of them; None where it holds none.

    Args:
        original: where to look.
        name: the parameter's name in the base model.
        by_ending: also take a key that is longer or shorter by a prefix, as checkpoints of base classes have; only for
            values that are checked by fingerprint.

    Returns:
        The value.
    """
    if isinstance(original, Mapping):
        key = _key(list(original), name, by_ending)
        return None if key is None else original[key]
    path = Path(original)
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    keys = {key: file for file in files for key in _keys_of(file)}
    key = _key(list(keys), name, by_ending)
    if key is None:
        return None
    with safe_open(keys[key], framework="pt") as handle:
        return handle.get_tensor(key)


def report_closeness(exact: bool, exact_replay: bool) -> None:
    """Say once that a replay differs by rounding, or refuse it.

    Args:
        exact: whether it came out bit for bit.
        exact_replay: whether nothing less will do.

    Raises:
        StateError: for a close replay under `exact_replay=True`.
    """
    if exact:
        return
    message = "The replayed weights differ from the saved ones by rounding (another device or library version?)"
    if exact_replay:
        raise StateError(f"{message}, and `exact_replay=True` refuses that; nothing was changed.")
    warn(f"{message}; training goes on from them.", CloseReplayWarning)


def _are_errors(replayed: Mapping[str, Tensor], saved: Mapping[str, Tensor], name: str) -> bool:
    """Whether a weight's rounding errors came out as they were saved, or neither has any."""
    return (name in replayed) == (name in saved) and (name not in saved or torch.equal(replayed[name], saved[name].cpu()))


def _agree(now: Mapping[str, Fingerprint], then: Mapping[str, Fingerprint]) -> bool:
    return all(mark.exact == then[name].exact for name, mark in now.items())


def _near(now: Mapping[str, Fingerprint], then: Mapping[str, Fingerprint], values: Mapping[str, Tensor]) -> bool:
    return all(mark.close(then[name], _tolerance(values[name])) for name, mark in now.items())


def _tolerance(target: Tensor) -> float:
    # A sum that differs in its last float32 bit may round to the next half-precision number.
    return 1e-4 if target.dtype in ROUNDED else 1e-6


def _keys_of(file: Path) -> list[str]:
    try:
        with safe_open(file, framework="pt") as handle:
            return list(handle.keys())
    except SafetensorError as error:
        raise StateError(f"`original=` leads to {str(file)!r}, which is no safetensors file or a damaged one.") from error


def _key(keys: list[str], name: str, by_ending: bool) -> str | None:
    module, _, leaf = name.rpartition(".")
    names = (name, f"{module}.base_layer.{leaf}")
    wanted = {prefix + name for prefix in ("", "base_model.model.", "module.") for name in names}
    found = [key for key in keys if key in wanted]
    if not found and by_ending:
        found = [key for key in keys if key.endswith(tuple(f".{n}" for n in names)) or name.endswith(f".{key}")]
    return found[0] if found else None
