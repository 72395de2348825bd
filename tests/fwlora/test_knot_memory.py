"""What a knot allocates on the way, and what of an update arrives in a bf16 weight."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fwlora import ChainLoRAOptimizer, Never
from fwlora.layers import rounding
from fwlora.record import fingerprint

MIB = 2**20
DTYPES = [torch.float32, torch.bfloat16]


class Allocations(TorchDispatchMode):
    """Bytes of the storages that operations make, for as long as each lives; what an operation takes inside is not seen."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []
        self.references: list[StorageWeakRef] = []
        self.alive: set[int] = set()
        self.moments: list[set[int]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        known = {storage._cdata for storage in _storages((args, kwargs))}
        self.alive = {number for number in self.alive if not self.references[number].expired()}
        known |= {self.references[number].cdata for number in self.alive}
        for storage in _storages(out):
            if storage._cdata not in known:
                known.add(storage._cdata)
                self.alive.add(len(self.sizes))
                self.sizes.append(storage.nbytes())
                self.references.append(StorageWeakRef(storage))
        self.moments.append(self.alive)
        return out

    def peak(self, apart: Iterable[Tensor] = ()) -> int:
        """The most bytes at one moment, those of the tensors `apart` left out."""
        left_out = {tensor.untyped_storage()._cdata for tensor in apart}
        counted = {n for n, reference in enumerate(self.references) if reference.expired() or reference.cdata not in left_out}
        return max(sum(self.sizes[number] for number in moment & counted) for moment in self.moments)


def _storages(tree):
    return [leaf.untyped_storage() for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _transient(shape: tuple[int, int], dtype: torch.dtype) -> list[int]:
    """Peaks of a first knot, which takes the originals' fingerprint too, and of a second, on one Linear of this shape."""
    model = nn.Sequential(nn.Linear(shape[1], shape[0], bias=False, dtype=dtype))
    optimizer = ChainLoRAOptimizer(model, rank=8, target_modules=["0"], knots=Never())
    peaks = []
    for _ in range(2):
        with torch.no_grad():
            optimizer.sites["0"].B.normal_()
        with Allocations() as allocations:
            optimizer.tie_knot()
        kept = [tensor for link in optimizer.chain for f in link.factors.values() for tensor in (f.A, f.B)]
        peaks.append(allocations.peak(apart=[*kept, *optimizer._residuals.values()]))
    return peaks


@pytest.mark.parametrize("on_device", [False, True], ids=["as on a CPU", "in the larger chunks of another device"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_knot_needs_four_mebibytes_whatever_the_layer(monkeypatch, dtype, on_device):
    """A weight of 1024 x 4096 takes 8 or 16 MiB, one of 2048 x 8192 four times that; a knot of either the same memory.

    What is of a factor's size is counted in and alone grows: 128 KiB of the next link's, 256 KiB for a norm in float64.
    """
    if on_device:
        monkeypatch.setattr(rounding, "_on_host", lambda tensor: tensor.dtype == torch.int8)
        monkeypatch.setattr(fingerprint, "_CHUNK", 4 * fingerprint._CHUNK)
    small, large = _transient((1024, 4096), dtype), _transient((2048, 8192), dtype)
    assert max(small + large) <= 4 * MIB
    assert all(b <= a + 8 * 4096 * 8 for a, b in zip(small, large, strict=True))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_same_measurement_sees_that_pefts_merge_makes_the_whole_update(dtype):
    """The control: at least one copy of the 16 or 32 MiB of the weight."""
    model = nn.Sequential(nn.Linear(4096, 2048, bias=False, dtype=dtype))
    model = inject_adapter_in_model(LoraConfig(r=8, target_modules=["0"]), model)
    with Allocations() as allocations:
        model.get_submodule("0").merge()  # type: ignore[operator]
    assert allocations.peak() >= 2048 * 4096 * dtype.itemsize > 4 * MIB


def test_a_copy_of_a_weight_in_another_memory_order_is_never_made():
    weight = torch.randn(512, 512, 3, 3).to(memory_format=torch.channels_last)
    with Allocations() as allocations:
        mark = fingerprint.fingerprint(weight)
    assert allocations.peak() <= 2 * MIB < weight.nbytes
    assert mark.exact == fingerprint.fingerprint(weight.contiguous()).exact


def test_thirty_knots_at_a_thousandth_arrive_where_plain_rounding_keeps_half():
    """<W' - W, sum s B A> / |sum s B A|^2 with |s B A| = 1e-3 |W| at each of 30 knots in bf16."""
    model = nn.Sequential(nn.Linear(192, 256, bias=False, dtype=torch.bfloat16))
    nn.init.normal_(model.get_parameter("0.weight"), std=0.02)
    optimizer = ChainLoRAOptimizer(model, rank=8, target_modules=["0"], knots=Never())
    site = optimizer.sites["0"]
    original = site.weight.detach().clone()
    plain = original.clone()
    for _ in range(30):
        with torch.no_grad():
            site.B.normal_()
            site.B.mul_(1e-3 * original.float().norm() / site.live().norm())
            plain += (site.scaling * site.B @ site.A).bfloat16()
        record = optimizer.tie_knot()
        assert record.relative_updates["0"] == pytest.approx(1e-3, rel=0.01)

    asked = optimizer.delta("0").double()

    def gain(W: Tensor) -> float:
        return (torch.sum((W.double() - original.double()) * asked) / asked.square().sum()).item()

    assert gain(site.weight.detach()) >= 0.98
    assert gain(plain) <= 0.6
