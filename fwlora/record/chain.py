"""The retired links, in order; their sum is what the frozen weights have absorbed.

Links lie on the CPU, or, with a directory, in one safetensors file each, so that a long chain costs no memory. Spectra and
norms go through thin QRs of the stacked factors and never form an out x in matrix.

A link is never changed: a knot that shrinks the links before it (Algorithm 2) writes the shrink into its own link, and the
coefficient of a link is the product of the shrinks of all later ones.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, overload

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from fwlora import linalg
from fwlora.errors import ArgumentError, ChainFileError
from fwlora.linalg import Factors
from fwlora.record.files import clear_unfinished, write_atomically
from fwlora.record.seal import digest


@dataclass(frozen=True, eq=False)  # tensors do not compare to a bool
class Link:
    """What was learned between two knots.

    Attributes:
        factors: each site's retired factors, whose scale includes the coefficient that the knot gave them.
        shrinks: what the knot multiplied the earlier links of a site by; 1 where nothing stands.
    """

    factors: Mapping[str, Factors]
    shrinks: Mapping[str, float] = field(default_factory=dict)

    def document(self) -> dict[str, Any]:
        """Tensors and plain containers for the state."""
        return {**self._content, "sha256": self.digest}

    @functools.cached_property
    def digest(self) -> str:
        """The checksum of what it holds; a link never changes."""
        return digest(self._content)

    @property
    def _content(self) -> dict[str, Any]:
        return {"sites": {name: factors._asdict() for name, factors in self.factors.items()}, "shrinks": dict(self.shrinks)}

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> Link:
        """The link of a state, on the CPU."""
        return cls({name: _on_cpu(Factors(**entry)) for name, entry in document["sites"].items()}, document["shrinks"])

    def to_bytes(self) -> bytes:
        """A safetensors file: ``<site>.A``, ``<site>.B``, ``<site>.bias``, with scales and shrinks in the metadata."""
        tensors = {
            f"{name}.{letter}": getattr(factors, letter).contiguous()
            for name, factors in self.factors.items()
            for letter in ("A", "B", "bias")
            if getattr(factors, letter) is not None
        }
        facts = {"scales": {name: factors.scale for name, factors in self.factors.items()}, "shrinks": dict(self.shrinks)}
        # One entry: safetensors writes several in any order, and files are named by their content.
        return save(tensors, {"link": json.dumps(facts)})

    @classmethod
    def from_file(cls, path: Path) -> Link:
        """The link that `to_bytes` made."""
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
            # Before links could shrink others, the scales stood alone.
            facts = json.loads(metadata["link"]) if "link" in metadata else {"scales": json.loads(metadata["scales"])}
            keys = set(file.keys())
            read = {key: file.get_tensor(key) for key in keys}
        factors = {
            name: Factors(read[f"{name}.A"], read[f"{name}.B"], scale, read.get(f"{name}.bias"))
            for name, scale in facts["scales"].items()
        }
        return cls(factors, facts.get("shrinks", {}))


@dataclass(frozen=True)
class StoredLink:
    """A link on disk: its file's name and checksum."""

    file: str
    sha256: str


class Chain(Sequence[Link]):
    """The links in order; ``len(chain)`` is the number of knots.

    Args:
        directory: where to keep the links, one file each; None keeps them on the CPU.

    Example:
        >>> chain = Chain()
        >>> chain.append(Link({"w": Factors(torch.ones(1, 3), torch.ones(2, 1), 0.5)}))
        >>> chain.append(Link({"w": Factors(torch.ones(1, 3), torch.ones(2, 1), 1.5)}))
        >>> torch.equal(chain.delta("w"), torch.full((2, 3), 2.0)), chain.rank("w")
        (True, 2)
    """

    def __init__(self, directory: str | os.PathLike[str] | None = None) -> None:
        self.directory = None if directory is None else Path(directory)
        self._links: list[Link | StoredLink] = []
        self._is_cleared = False

    def append(self, link: Link) -> None:
        """Add the newest link, on disk before it counts."""
        if self.directory is None:
            self._links.append(link)
            return
        data = link.to_bytes()
        digest = hashlib.sha256(data).hexdigest()
        # Named by content: another run, or this one after a rollback, never overwrites what a saved state refers to.
        file = f"link-{len(self):05d}-{digest[:12]}.safetensors"
        if not self._is_cleared:  # once, for a folder of many links takes long to list
            clear_unfinished(self.directory)
            self._is_cleared = True
        write_atomically(self.directory / file, data)
        self._links.append(StoredLink(file, digest))

    def replace_last(self, link: Link) -> None:
        """Put a link in the newest one's place, whose file stays on disk, for a saved state may refer to it."""
        last = self._links.pop()
        try:
            self.append(link)
        except BaseException:
            self._links.append(last)
            raise

    def truncate(self, links: int) -> None:
        """Keep the first `links` links; the files of the others stay on disk, for a saved state may refer to them."""
        del self._links[links:]

    def sites(self) -> list[str]:
        """Names of the sites that any link holds."""
        return list(dict.fromkeys(name for link in self for name in link.factors))

    def stacked(self, site: str, live: Factors | None = None) -> Factors | None:
        """All links of a site as one, see `stack`.

        Args:
            site: the site's name.
            live: the live link, to be counted in.

        Returns:
            Factors of the summed rank, with scale 1; None where no link holds the site.
        """
        return stack([*self, *([] if live is None else [Link({site: _on_cpu(live)})])], site)

    def delta(self, site: str) -> Tensor:
        """The sum of a site's links as an (out, fan_in) matrix."""
        A, B = self._matrices(site)
        return B @ A

    def rank(self, site: str) -> int:
        """Sum of the links' ranks, which bounds the rank of their sum."""
        return self._matrices(site)[0].shape[0]

    def norm(self, site: str) -> float:
        """Frobenius norm of the sum."""
        return linalg.product_norm(*self._matrices(site))

    def spectrum(self, site: str) -> Tensor:
        """Singular values of the sum, largest first, in float64."""
        return linalg.product_spectrum(*self._matrices(site))

    def effective_rank(self, site: str) -> float:
        """Exponential entropy of the spectrum."""
        return linalg.effective_rank(self.spectrum(site))

    def stable_rank(self, site: str) -> float:
        """``|sum|_F^2 / |sum|_2^2``."""
        return linalg.stable_rank(self.spectrum(site))

    def in_memory(self) -> Chain:
        """The same links, each file read and checked once."""
        if self.directory is None:
            return self
        chain = Chain()
        chain._links = list(self)
        return chain

    def document(self) -> list[dict[str, Any]]:
        """Each link, or its file's name and checksum, for the state."""
        return [
            {"file": link.file, "sha256": link.sha256} if isinstance(link, StoredLink) else link.document()
            for link in self._links
        ]

    @classmethod
    def from_document(cls, document: list[dict[str, Any]], directory: Path | None) -> Chain:
        """The chain of a state; stored links are looked for, and checked, in `directory`."""
        chain = cls(directory)
        for entry in document:
            if "sites" in entry:
                chain.append(Link.from_document(entry))
            else:
                chain._adopt(StoredLink(entry["file"], entry["sha256"]))
        return chain

    def _adopt(self, link: StoredLink) -> None:
        if self.directory is None:
            raise ArgumentError(
                f"The state keeps its links in files ({link.file}, ...) and this optimizer was made without "
                "`chain_dir=`: give it the folder that holds them."
            )
        self._read(link)
        self._links.append(link)

    def _matrices(self, site: str) -> tuple[Tensor, Tensor]:
        stacked = self.stacked(site)
        if stacked is None:
            raise KeyError(f"No link holds the site {site!r}; the chain's sites are {self.sites()}.")
        return stacked.matrices()

    @overload
    def __getitem__(self, index: int) -> Link: ...
    @overload
    def __getitem__(self, index: slice) -> list[Link]: ...
    def __getitem__(self, index: int | slice) -> Link | list[Link]:
        if isinstance(index, slice):
            return [self._read(link) for link in self._links[index]]
        return self._read(self._links[index])

    def _read(self, link: Link | StoredLink) -> Link:
        if isinstance(link, Link):
            return link
        assert self.directory is not None
        path = self.directory / link.file
        if not path.is_file():
            raise ChainFileError(f"`chain_dir={str(self.directory)!r}` lacks {link.file}, a link of this chain.")
        if hashlib.sha256(path.read_bytes()).hexdigest() != link.sha256:
            raise ChainFileError(
                f"{link.file} in `chain_dir={str(self.directory)!r}` is not the file that this chain wrote (another run "
                "did?). Give each run a folder of its own."
            )
        try:
            return Link.from_file(path)
        except (SafetensorError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise ChainFileError(f"{link.file} in `chain_dir={str(self.directory)!r}` holds no link: {error}.") from error

    def __len__(self) -> int:
        return len(self._links)

    def __iter__(self) -> Iterator[Link]:
        return (self._read(link) for link in self._links)

    def __repr__(self) -> str:
        return f"Chain({len(self)} links{'' if self.directory is None else f' in {str(self.directory)!r}'})"


def stack(links: Iterable[Link], site: str) -> Factors | None:
    """Links of a site as one: A's stacked, B's side by side, each times its scale and the shrinks of all later links.

    ``sum_i c_i s_i B_i A_i = [c_1 s_1 B_1 ... c_m s_m B_m] [A_1; ...; A_m]``, ``c_i = prod_{j > i} shrink_j``

    Args:
        links: in order.
        site: the site's name.

    Returns:
        Factors of the summed rank, with scale 1; None where no link holds the site.
    """
    holding = [link for link in links if site in link.factors]
    chosen: list[Factors] = []
    coefficient = 1.0
    for link in reversed(holding):
        factors = link.factors[site]
        # What adds nothing has no part in the rank, but something must stand.
        if coefficient * factors.scale != 0:
            # Half-precision factors are multiplied in float32 at a merge, and so they are here.
            A, B = _at_least_float32(factors.A), _at_least_float32(factors.B)
            chosen.insert(0, Factors(A, B, coefficient * factors.scale, factors.bias))
        coefficient *= link.shrinks.get(site, 1.0)
    if not holding:
        return None
    if not chosen:
        last = holding[-1].factors[site]
        chosen = [last._replace(A=_at_least_float32(last.A), B=_at_least_float32(last.B), scale=0.0)]
    bias = None if chosen[0].bias is None else sum(f.scale * f.bias for f in chosen if f.bias is not None)
    return Factors(
        torch.cat([f.A for f in chosen]),
        torch.cat([f.scale * f.B for f in chosen], dim=1),
        1.0,
        bias if isinstance(bias, Tensor) else None,
    )


def update(earlier: Iterable[Link], link: Link, site: str) -> Factors:
    """What a knot adds to the weight of a site: ``s B A``, and what it takes from the earlier links where it shrinks them.

    ``D <- shrink D + s B A`` is ``W <- W + [ (shrink - 1) D + s B A ]``. Knot and replay both add just this, so that a replay
    repeats the same operations.

    Args:
        earlier: the links before, read only where the knot shrinks them.
        link: the knot's own.
        site: a site that the link holds.

    Returns:
        Factors of the change.
    """
    new, shrink = link.factors[site], link.shrinks.get(site, 1.0)
    before = None if shrink == 1.0 else stack(earlier, site)
    return new if before is None else combine(before, shrink - 1.0, new)


def combine(before: Factors | None, shrink: float, link: Factors) -> Factors:
    """``shrink * before + link`` as factors on the CPU, with scale 1."""
    site = "here"
    links = [*([] if before is None else [Link({site: _on_cpu(before)})]), Link({site: _on_cpu(link)}, {site: shrink})]
    total = stack(links, site)
    assert total is not None
    return total


def _at_least_float32(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _on_cpu(factors: Factors) -> Factors:
    bias = None if factors.bias is None else factors.bias.detach().cpu()
    return Factors(factors.A.detach().cpu(), factors.B.detach().cpu(), float(factors.scale), bias)
