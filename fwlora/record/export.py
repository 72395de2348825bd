"""A chain as ONE standard PEFT adapter for the original base model.

Links are laid side by side, ``sum_i s_i B_i A_i = [s_1 B_1 ... s_m B_m] [A_1; ...; A_m]``: exact, of the sum of the ranks; or
cut to the best approximation of a smaller rank (Eckart-Young), with the error stated.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from peft import LoraConfig
from safetensors.torch import save
from torch import Tensor

from fwlora import distributed, linalg
from fwlora.errors import ArgumentError, NonFiniteFactorsError
from fwlora.linalg import Factors
from fwlora.record.files import write_atomically

PREFIX = "base_model.model."


class ExportSite(NamedTuple):
    """One site's whole update and how PEFT names its factors."""

    factors: Factors
    is_embedding: bool
    fan_in_fan_out: bool


@dataclass(frozen=True)
class ExportReport:
    """What was written or kept; `str()` is a table.

    Attributes:
        directory: where; None for a chain that was compressed in place.
        ranks: exported rank at each site.
        chain_ranks: sum of the links' ranks at each site.
        errors: relative Frobenius error of the exported update at each site; 0 where nothing was cut.
    """

    directory: Path | None
    ranks: dict[str, int]
    chain_ranks: dict[str, int]
    errors: dict[str, float]

    def __str__(self) -> str:
        width = max(len("site"), *(len(name) for name in self.ranks))
        rows = [
            f"{name:<{width}}  {rank:>4}  {self.chain_ranks[name]:>10}  {self.errors[name]:>9.2e}"
            for name, rank in self.ranks.items()
        ]
        head = f"{'site':<{width}}  rank  chain rank  rel error"
        done = "chain compressed" if self.directory is None else f"adapter written to {self.directory}"
        return "\n".join([done, head, *rows])


def export_adapter(
    directory: str | os.PathLike[str],
    sites: Mapping[str, ExportSite],
    modules: Mapping[str, Mapping[str, Tensor]],
    module_names: Collection[str],
    *,
    base_model: str | None,
    task_type: str | None,
    max_rank: int | None,
    tolerance: float | None,
) -> ExportReport:
    """Write adapter_config.json, adapter_model.safetensors and a model card, each there whole or not at all; rank 0 writes.

    Args:
        directory: made where missing.
        sites: the whole update of each site, by the site's full name.
        modules: the whole state of each module trained in full, by its name.
        module_names: of all modules of the model, for telling which names are unambiguous.
        base_model: name or path of the original base.
        task_type: PEFT's, e.g. ``"CAUSAL_LM"``.
        max_rank: largest rank of any site.
        tolerance: largest relative Frobenius error of any site.

    Returns:
        Rank and error of each site.

    Raises:
        ArgumentError: for a bound that is none.
        NonFiniteFactorsError: for inf or nan in a factor; nothing was written.
        DecompositionError: where a cut needs an SVD that does not converge; nothing was written.
    """
    check_bounds("export_adapter", max_rank, tolerance)
    tensors: dict[str, Tensor] = {}
    ranks, errors = {}, {}
    for name, site in sites.items():
        if not (site.factors.A.isfinite().all() and site.factors.B.isfinite().all()):
            raise NonFiniteFactorsError(
                f"A factor at {name!r} holds inf or nan, and nothing was written. Load the last good state; lower the lr, or "
                "clip gradients."
            )
        A, B, errors[name] = cut(site.factors, max_rank, tolerance)
        ranks[name] = B.shape[1]
        letters = ("lora_embedding_A", "lora_embedding_B") if site.is_embedding else ("lora_A.weight", "lora_B.weight")
        for letter, factor in zip(letters, (A, B), strict=True):
            tensors[f"{PREFIX}{name}.{letter}"] = factor.contiguous()
        if site.factors.bias is not None:
            tensors[f"{PREFIX}{name}.lora_B.bias"] = site.factors.bias.float().contiguous()
    for name, values in modules.items():
        tensors |= {f"{PREFIX}{name}.{leaf}": value.detach().cpu().contiguous() for leaf, value in values.items()}

    config = _config(sites, ranks, sorted(modules), module_names, base_model, task_type)
    directory = Path(directory)
    report = ExportReport(directory, ranks, {name: site.factors.rank for name, site in sites.items()}, errors)
    if distributed.is_main():
        write_atomically(directory / "adapter_model.safetensors", save(tensors, {"format": "pt"}))
        write_atomically(directory / "README.md", _card(report, directory.name, base_model).encode())
        write_atomically(directory / "adapter_config.json", _document(config).encode())
    return report


def _document(config: LoraConfig) -> str:
    """The adapter's configuration as PEFT writes it, the same at every export: PEFT's sets have no order."""
    with tempfile.TemporaryDirectory() as scratch:
        config.save_pretrained(scratch)
        document = json.loads(Path(scratch, "adapter_config.json").read_text())
    for name, value in document.items():
        if isinstance(value, list):
            document[name] = sorted(value)
    return json.dumps(document, indent=2, sort_keys=True)


def cut(factors: Factors, max_rank: int | None, tolerance: float | None) -> tuple[Tensor, Tensor, float]:
    """The best approximation of an update within the bounds, in float32.

    Args:
        factors: the update.
        max_rank: largest rank, or None.
        tolerance: largest relative Frobenius error, or None; without either nothing is cut.

    Returns:
        A and B, scale included and shared out evenly where something was cut, and the relative error.

    Example:
        >>> update = Factors(torch.eye(2), torch.diag(torch.tensor([2.0, 0.0])), 2.0)
        >>> A, B, error = cut(update, 1, None)
        >>> (B @ A).round().tolist(), error
        ([[4.0, 0.0], [0.0, 0.0]], 0.0)
    """
    A, B = factors.A.float(), (factors.scale * factors.B).float()
    if max_rank is None and tolerance is None:
        return A, B, 0.0
    U, S, Vh = linalg.product_svd(A.flatten(1), B.flatten(1))
    rank = linalg.truncation_rank(S, max_rank, tolerance)
    norm = torch.linalg.vector_norm(S)
    # Eckart-Young: what is lost is the singular tail.
    error = (torch.linalg.vector_norm(S[rank:]) / norm).item() if norm > 0 else 0.0
    root = S[:rank].sqrt()
    cut_A = (root[:, None] * Vh[:rank]).float().reshape(rank, *A.shape[1:])
    cut_B = (U[:, :rank] * root).float().reshape(B.shape[0], rank, *B.shape[2:])
    return cut_A, cut_B, error


def _config(
    sites: Mapping[str, ExportSite],
    ranks: Mapping[str, int],
    modules: list[str],
    module_names: Collection[str],
    base_model: str | None,
    task_type: str | None,
) -> LoraConfig:
    largest = max(ranks.values())
    # alpha = r at every site, so that PEFT's scaling is 1: the true scale is inside B.
    pattern = {f"^{re.escape(name)}": rank for name, rank in ranks.items() if rank != largest}
    return LoraConfig(
        r=largest,
        lora_alpha=largest,
        rank_pattern=dict(pattern),
        alpha_pattern=dict(pattern),
        target_modules=_targets(list(sites), module_names),
        fan_in_fan_out=any(site.fan_in_fan_out for site in sites.values()),
        lora_bias=any(site.factors.bias is not None for site in sites.values()),
        modules_to_save=modules or None,
        base_model_name_or_path=base_model,
        task_type=task_type,  # type: ignore[arg-type]
        inference_mode=True,
    )


def _targets(names: list[str], module_names: Collection[str]) -> str | list[str]:
    # PEFT takes a listed name for any longer one that ends in it; where there is such a module, only a pattern is exact.
    ambiguous = any(other.endswith(f".{name}") for name in names for other in module_names if other not in names)
    return "|".join(re.escape(name) for name in names) if ambiguous else names


def _card(report: ExportReport, name: str, base_model: str | None) -> str:
    base = base_model or "the original base model"
    return f"""---
library_name: peft
{f"base_model: {base_model}" if base_model else ""}
tags:
- lora
- chain-of-lora
---

# Chain of LoRA adapter

The sum of a chain of LoRA links (arXiv 2401.04151), trained with fwlora and written as one standard adapter for
**{base}**, not for the merged weights that training left behind.

```python
from peft import PeftModel
model = PeftModel.from_pretrained(base_model, "{name}")
```

Largest rank {max(report.ranks.values())}, largest relative error of a site's update {max(report.errors.values()):.2e}
(0: nothing was cut).
"""


def check_bounds(method: str, max_rank: int | None, tolerance: float | None) -> None:
    """Refuse a rank or an error that is none.

    Args:
        method: as the user typed it.
        max_rank: of it.
        tolerance: of it.

    Raises:
        ArgumentError: naming both.
    """
    if max_rank is not None and (isinstance(max_rank, bool) or not isinstance(max_rank, int) or max_rank < 1):
        raise ArgumentError(f"`{method}(max_rank=...)` takes a whole number of at least 1 and got {max_rank!r}.")
    if tolerance is not None and not 0 <= tolerance < 1:
        raise ArgumentError(f"`{method}(tolerance=...)` takes a relative error in [0, 1) and got {tolerance!r}.")
