"""A site: one LoRA layer of the model, read and written in place.

Factors are looked up through the layer at every use and never cached, for frameworks swap Parameters under us.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from peft.tuners.lora import layer as lora
from torch import Tensor, nn

from fwlora import sharding
from fwlora.layers.fused import FusedLinear, Turn, computing_in_full, fuse, unfuse
from fwlora.layers.rounding import ROUNDED, RowMerge
from fwlora.linalg import Factors, extremes
from fwlora.sharding import cut, local, whole


# PEFT's attributes are typed `Tensor | Module`, which is what the `type: ignore`s below are about.
class Site:
    """Frozen ``W``, factors ``A`` (rank x in) and ``B`` (out x rank), scaling ``s``.

    Args:
        name: the layer's full name in the base model, without any wrapper's prefix.
        layer: the PEFT layer.
        adapter: the adapter's name in it.

    Attributes:
        is_embedding: whether the layer looks rows up instead of multiplying.
        keeps_links: whether retired links stay beside a weight that cannot be merged into.
    """

    keeps_links = False

    def __init__(self, name: str, layer: LoraLayer, adapter: str) -> None:
        self.name = name
        self.layer = layer
        self.adapter = adapter
        self.is_embedding = isinstance(layer, lora.Embedding)
        self._rank, self._rests = self.width, False
        self._tell()

    def __repr__(self) -> str:
        return f"Site({self.name!r}, {self.shape}, rank={self.rank})"

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the weight as it is stored, (out, in, ...) or transposed, in all its rows."""
        return tuple(self.weight.shape)

    @property
    def is_sharded(self) -> bool:
        """Whether this rank holds some rows of the weight and of the factors only."""
        return sharding.is_sharded(self.weight)

    @property
    def padding(self) -> list[int]:
        """Columns of A whose gradient torch leaves out: an embedding's padding row."""
        index = getattr(self.layer.get_base_layer(), "padding_idx", None)
        return [] if index is None else [int(index)]

    @property
    def is_linear(self) -> bool:
        """Whether the layer is a matrix product, in either orientation."""
        return isinstance(self.layer, lora.Linear)

    @property
    def transposed(self) -> bool:
        """Whether the weight is stored as (in, out): embeddings and GPT-2's Conv1D."""
        return self.is_embedding or bool(getattr(self.layer, "fan_in_fan_out", False))

    @property
    def weight(self) -> nn.Parameter:
        """The frozen base weight."""
        return self.layer.get_base_layer().weight  # type: ignore[return-value]

    @property
    def base_bias(self) -> nn.Parameter:
        """The frozen base bias, which a `lora_bias` is merged into."""
        return self.layer.get_base_layer().bias  # type: ignore[return-value]

    @property
    def A(self) -> nn.Parameter:
        """(width, in, ...)."""
        return self.layer.lora_embedding_A[self.adapter] if self.is_embedding else self.layer.lora_A[self.adapter].weight  # type: ignore[return-value]

    @property
    def B(self) -> nn.Parameter:
        """(out, width, ...)."""
        return self.layer.lora_embedding_B[self.adapter] if self.is_embedding else self.layer.lora_B[self.adapter].weight  # type: ignore[return-value]

    @property
    def bias(self) -> nn.Parameter | None:
        """The factor's own bias under `lora_bias`."""
        return None if self.is_embedding else self.layer.lora_B[self.adapter].bias  # type: ignore[return-value]

    @property
    def drawn(self) -> nn.Parameter:
        """The factor that a reset draws."""
        return self.B if self.is_embedding else self.A

    @property
    def zeroed(self) -> nn.Parameter:
        """The factor that a reset sets to zero."""
        return self.A if self.is_embedding else self.B

    @property
    def scaling(self) -> float:
        """LoRA's ``alpha / r`` (``alpha / sqrt r`` under rsLoRA), of the rank as allocated."""
        return float(self.layer.scaling[self.adapter])

    @property
    def width(self) -> int:
        """Rank as allocated."""
        return int(self.layer.r[self.adapter])

    @property
    def rank(self) -> int:
        """Rank of the live link; below `width` after a step-down, when the factors are masked."""
        return self._rank

    @rank.setter
    def rank(self, rank: int) -> None:
        self._rank = rank
        self._tell()

    def compute_fast(self, allowed: bool) -> None:
        """Let the layer run this library's own forward where it can, or PEFT's in any case."""
        if not allowed:
            unfuse(self.layer)
        elif fuse(self.layer):
            self._tell()

    @property
    def rests(self) -> bool:
        """Whether the site takes no part in the live link."""
        return self._rests

    def rest(self) -> None:
        """Take no part in the live link, whose factors here are zero and get no gradient where the layer can skip them."""
        self._rests = True
        self._tell()

    def wake(self) -> None:
        """Take part in the live link."""
        self._rests = False
        self._tell()

    @property
    def is_idle(self) -> bool:
        """Whether the live link is exactly zero: a factor is, as after a knot and while its direction is being looked for."""
        is_zero = sharding.is_zero(self.zeroed) or sharding.is_zero(self.drawn)
        return is_zero and (self.bias is None or sharding.is_zero(self.bias))

    def parameters(self) -> list[nn.Parameter]:
        """A, B and the factor's bias, where it has one."""
        bias = self.bias
        return [self.A, self.B] if bias is None else [self.A, self.B, bias]

    def targets(self) -> dict[str, nn.Parameter]:
        """What a merge changes, by the name it has in the base model."""
        targets = {f"{self.name}.weight": self.weight}
        return targets if self.bias is None else targets | {f"{self.name}.bias": self.base_bias}

    def own_targets(self) -> dict[str, Tensor]:
        """The same, of a sharded weight this rank's rows."""
        return {name: local(target) for name, target in self.targets().items()}

    def tensors(self) -> list[nn.Parameter]:
        """All that a chain changes here: the factors, and what merges change."""
        return [*self.parameters(), *self.targets().values()]

    def dropouts(self) -> list[nn.Dropout]:
        """LoRA's own dropout in front of A, where the layer has one."""
        present = [module for name, module in self.layer.lora_dropout.items() if name == self.adapter]
        return [module for module in present if isinstance(module, nn.Dropout)]

    @contextmanager
    def substituted(self, A: Tensor, B: Tensor) -> Iterator[None]:
        """Compute with other factors, of any rank and even with a graph, in place of the live link, which is untouched.

        Args:
            A: (any rank, in, ...).
            B: (out, the same rank, ...).
        """
        slots: list[tuple[nn.Module, str, Tensor]]
        if self.is_embedding:
            slots = [(self.layer.lora_embedding_A, self.adapter, A), (self.layer.lora_embedding_B, self.adapter, B)]
        else:
            slots = [(self.layer.lora_A[self.adapter], "weight", A), (self.layer.lora_B[self.adapter], "weight", B)]
        if self.bias is not None:
            slots.append((self.layer.lora_B[self.adapter], "bias", torch.zeros_like(self.bias)))
        # Straight into the modules' tables: a Parameter's place takes Parameters only, and nothing is to be registered anew.
        tables = [(module._parameters, key, value) for module, key, value in slots]
        live = [table[key] for table, key, _ in tables]
        try:
            for table, key, value in tables:
                table[key] = value  # type: ignore[assignment]
            with computing_in_full(self.layer):
                yield
        finally:
            for (table, key, _), parameter in zip(tables, live, strict=True):
                table[key] = parameter

    def live(self) -> Factors:
        """The live link, sliced to its rank: views of the Parameters, gathered from all ranks where they are sharded."""
        A, B, bias = whole(self.A), whole(self.B), self.bias
        if self.rank < self.width:
            A, B = A[: self.rank], B[:, : self.rank]
        return Factors(A, B, self.scaling, None if bias is None else whole(bias))

    def orient(self, matrix: Tensor) -> Tensor:
        """An (out, fan_in) matrix in the weight's own shape."""
        return (matrix.mT if self.transposed else matrix).reshape(self.shape)

    def merges(
        self, factors: Factors, residuals: dict[str, Tensor], into: Mapping[str, Tensor] | None = None
    ) -> list[RowMerge]:
        """The in-place merges that fold `factors` into the layer, or into this rank's rows of it.

        Args:
            factors: a link at this site, whole.
            residuals: rounding errors of half-precision targets by name, made where missing.
            into: tensors to merge into instead of the layer's own, this rank's rows as well.

        Returns:
            One merge for the weight, and one for the bias where the link has one.
        """
        A, B = factors.matrices()
        left, right = (A.mT, B.mT) if self.transposed else (B, A)
        sides = {f"{self.name}.weight": (left, right)}
        if factors.bias is not None:
            # The bias is a matrix of one column: b <- b + s (lora_b) (1).
            sides[f"{self.name}.bias"] = (factors.bias[:, None], torch.ones(1, 1))
        merges = []
        for name, target in self.targets().items():
            if name in sides:
                left, right = sides[name]
                values = local(target) if into is None else into[name].detach()
                residual = self._residual(name, values, residuals)
                merges.append(RowMerge(values, cut(left, target), right, factors.scale, residual))
        return merges

    def keep(self, total: Factors | None) -> None:
        """Let exactly this stand beside the weight, where retired links are kept there; a merged weight holds them itself.

        Args:
            total: the sum of the retired links; None for none.
        """

    def draw_shape(self, rank: int) -> tuple[int, ...]:
        """Shape of the drawn factor of a link of this rank."""
        return (self.B.shape[0], rank) if self.is_embedding else (rank, *self.A.shape[1:])

    @torch.no_grad()
    def reset_(self, fresh: Tensor) -> None:
        """Start a link from the `fresh` drawn factor; rows beyond its rank are masked, the other factor is zero."""
        self.rank = fresh.shape[1] if self.is_embedding else fresh.shape[0]
        for parameter in self.parameters():
            local(parameter).zero_()
            parameter.grad = None
        drawn, values = local(self.drawn), cut(fresh, self.drawn)
        (drawn[:, : self.rank] if self.is_embedding else drawn[: len(values)]).copy_(values)

    def compact_(self, config: LoraConfig) -> None:
        """Allocate the live link's rank alone, and say so in PEFT's configuration."""
        if self.rank == self.width:
            return
        live, scaling, adapter = self.live(), self.scaling, self.adapter
        A, B = (nn.Parameter(p.clone(), requires_grad=q.requires_grad) for p, q in ((live.A, self.A), (live.B, self.B)))
        if self.is_embedding:
            self.layer.lora_embedding_A[adapter], self.layer.lora_embedding_B[adapter] = A, B
        else:
            self.layer.lora_A[adapter].weight, self.layer.lora_B[adapter].weight = A, B
        # scaling = alpha / r, or alpha / sqrt r, stays what it is.
        alpha = scaling * (self.rank**0.5 if self.layer.use_rslora.get(adapter) else self.rank)
        self.layer.r[adapter], self.layer.lora_alpha[adapter] = self.rank, alpha
        self.rank = self.width  # nothing is masked any more
        key = f"^{re.escape(self.name)}"
        # PEFT takes the first pattern that matches.
        config.rank_pattern = {key: self.rank, **(config.rank_pattern or {})}
        config.alpha_pattern = {key: alpha, **(config.alpha_pattern or {})}  # type: ignore[dict-item]

    def _tell(self) -> None:
        """Tell the layer what it need not compute."""
        if isinstance(self.layer, FusedLinear):
            # Past nn.Module's own way: while a pickle is read the layer may be empty still.
            vars(self.layer)["turn"] = Turn(self.adapter, self._rank, self._rests)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._tell()  # a copied layer has forgotten it

    def _residual(self, name: str, target: Tensor, residuals: dict[str, Tensor]) -> Tensor | None:
        if target.dtype not in ROUNDED:
            return None
        if name not in residuals:
            residuals[name] = torch.zeros(target.shape, dtype=torch.int8)
        return residuals[name]


def generator_for(seed: int, knot: int, name: str) -> torch.Generator:
    """The CPU generator of one site at one knot: the same on every rank, device and day.

    Args:
        seed: the optimizer's.
        knot: index of the link that is drawn.
        name: the site's.

    Returns:
        A fresh generator.

    Example:
        >>> a, b = (torch.rand(1, generator=generator_for(0, 1, "q_proj")) for _ in range(2))
        >>> bool(a == b)
        True
    """
    digest = hashlib.blake2b(f"{seed}|{knot}|{name}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


def first_nonfinite(sites: Mapping[str, Site]) -> str | None:
    """Name of the first site with inf or nan in this rank's rows of a factor, or None; one device synchronisation for all."""
    owned = [(name, local(parameter)) for name, site in sites.items() for parameter in site.parameters()]
    ends = extremes([parameter for _, parameter in owned])
    return next((name for (name, _), pair in zip(owned, ends, strict=True) if not all(map(math.isfinite, pair))), None)
