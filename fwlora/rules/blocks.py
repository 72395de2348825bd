"""Which sites learn in a link."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from fwlora.errors import ArgumentError

# "model.layers.3" of "model.layers.3.self_attn.q_proj".
_LAYER = re.compile(r"(?:[^.]+\.)*?\d+(?=\.|$)")


class BlockRule(ABC):
    """Chooses the sites that are active in a link."""

    @abstractmethod
    def active(self, knot: int, sites: Sequence[str]) -> Sequence[str]:
        """Names of the sites that learn after `knot` knots."""


@dataclass(frozen=True)
class AllSites(BlockRule):
    """Every site in every link.

    Example:
        >>> AllSites().active(knot=3, sites=["q_proj", "v_proj"])
        ['q_proj', 'v_proj']
    """

    def active(self, knot: int, sites: Sequence[str]) -> Sequence[str]:
        """All of them."""
        return sites


@dataclass(frozen=True)
class Blocks(BlockRule):
    """One block of layers a link, by turns: link k trains block ``k mod n``, and n links go once through the model.

    The other sites rest: they compute with the frozen weight alone, and below the block no gradient is computed where nothing
    else asks for one. A site names its layer up to its first whole number, "model.layers.3."; one without a number is a layer
    of its own. The blocks are contiguous, of whole layers, and as many layers each as can be.

    A site at which PEFT's own forward runs (convolutions, embeddings, ...) cannot skip: its gradients are computed, and
    dropped. Data-parallel training and Algorithm 2 (`FrankWolfe`) need all sites in every link. `torch.compile` makes one graph
    a block, and keeps 8 unless `torch._dynamo.config.recompile_limit` says otherwise.

    Args:
        n: number of blocks, from 1, which is `AllSites`, to the number of layers.

    Example:
        >>> sites = ["layers.0.q", "layers.0.v", "layers.1.q", "layers.1.v", "head"]
        >>> Blocks(2).active(knot=0, sites=sites), Blocks(2).active(knot=1, sites=sites)
        (['layers.0.q', 'layers.0.v'], ['layers.1.q', 'layers.1.v', 'head'])
    """

    n: int

    def __post_init__(self) -> None:
        if isinstance(self.n, bool) or not isinstance(self.n, int) or self.n < 1:
            raise ArgumentError(f"`Blocks(n=...)` takes a whole number of blocks, at least 1, and got {self.n!r}.")

    def active(self, knot: int, sites: Sequence[str]) -> Sequence[str]:
        """The sites of block ``knot mod n``, in their order.

        Args:
            knot: knots tied before.
            sites: names of all sites, in the model's order.

        Returns:
            Their names.

        Raises:
            ArgumentError: there are fewer layers than blocks.
        """
        of_site = [_layer(site) for site in sites]
        layers = list(dict.fromkeys(of_site))
        if self.n > len(layers):
            raise ArgumentError(
                f"`blocks=Blocks({self.n})` keeps layers whole, and the sites lie in {len(layers)} layer(s); give "
                f"`Blocks(n)` with n from 1 to {len(layers)}, or more `target_modules=`."
            )
        block = knot % self.n
        chosen = set(layers[block * len(layers) // self.n : (block + 1) * len(layers) // self.n])
        return [site for site, layer in zip(sites, of_site, strict=True) if layer in chosen]


def _layer(site: str) -> str:
    found = _LAYER.match(site)
    return site if found is None else found.group()
