"""The chain as a record: sums, spectra and files."""

from __future__ import annotations

import pytest
import safetensors.torch
import torch

from fwlora import Chain, KnotRecord, Ledger, Link
from fwlora.errors import StateError
from fwlora.linalg import Factors, effective_rank, stable_rank
from fwlora.record.fingerprint import fingerprint


def random_chain(directory=None, ranks=(2, 3, 1)) -> Chain:
    chain = Chain(directory)
    for i, rank in enumerate(ranks):
        chain.append(Link({"w": Factors(torch.randn(rank, 6), torch.randn(5, rank), (-1.0) ** i * (i + 1))}))
    return chain


def test_delta_norm_and_spectrum_are_those_of_the_dense_sum():
    chain = random_chain()
    dense = sum(link.factors["w"].scale * link.factors["w"].B @ link.factors["w"].A for link in chain)
    torch.testing.assert_close(chain.delta("w"), dense)
    assert chain.rank("w") == 6
    assert chain.norm("w") == pytest.approx(dense.norm().item(), rel=1e-5)
    S = torch.linalg.svdvals(dense.double())
    torch.testing.assert_close(chain.spectrum("w")[:5], S, rtol=1e-5, atol=1e-6)
    assert chain.effective_rank("w") == pytest.approx(effective_rank(S), rel=1e-4)
    assert chain.stable_rank("w") == pytest.approx(stable_rank(S), rel=1e-4)


def test_sites_may_be_absent_from_links():
    chain = random_chain(ranks=(2,))
    chain.append(Link({"v": Factors(torch.ones(1, 2), torch.ones(3, 1), 1.0)}))
    assert chain.sites() == ["w", "v"]
    assert chain.rank("v") == 1
    with pytest.raises(KeyError, match="'nowhere'"):
        chain.delta("nowhere")


def test_links_on_disk_are_the_links_in_memory(tmp_path):
    torch.manual_seed(1)
    stored = random_chain(tmp_path)
    torch.manual_seed(1)
    for mine, theirs in zip(stored, random_chain(), strict=True):
        assert mine.factors["w"].scale == theirs.factors["w"].scale
        assert torch.equal(mine.factors["w"].A, theirs.factors["w"].A)
    again = Chain.from_document(stored.document(), tmp_path)
    assert torch.equal(again.delta("w"), stored.delta("w"))
    assert torch.equal(again[1].factors["w"].B, stored[1].factors["w"].B)
    assert len(again[:2]) == 2


def test_ledger_column_and_cut_count_tied_knots_alone():
    tied = [KnotRecord(0, 10, 10), KnotRecord(1, 20, 10)]
    ledger = Ledger([tied[0], KnotRecord(1, 15, 5, refused="inf"), tied[1]])
    assert ledger.column("step") == [10, 20]
    assert list(ledger.before(1)) == [tied[0]]
    assert len(ledger.before(2)) == 3
    assert len(ledger.before(0)) == 0
    assert Ledger.from_jsonl(ledger.to_jsonl()) == ledger
    assert Ledger.from_document(ledger.document()) == ledger
    with pytest.raises(StateError, match="colour"):
        Ledger.from_document([{"colour": "red"}])


def test_seconds_are_outside_equality_and_state():
    fast, slow = (KnotRecord(0, 1, 1, seconds=s) for s in (0.1, 9.0))
    assert fast == slow
    assert "seconds" not in fast.document()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_fingerprint_sees_every_bit_and_its_place(dtype):
    weight = torch.randn(300, 400).to(dtype)  # more entries than are hashed at a time
    mark = fingerprint(weight)
    assert fingerprint(weight.clone()).exact == mark.exact
    assert fingerprint(weight.t().contiguous().t()).exact == mark.exact, "memory layout is no part of the value"
    flipped = weight.clone()
    flipped[299, 399] = -flipped[299, 399]
    swapped = weight.clone()
    swapped[0, [0, 64]] = weight[0, [64, 0]]
    assert len({mark.exact, fingerprint(flipped).exact, fingerprint(swapped).exact}) == 3


def test_sketch_is_the_sum_of_each_bin_and_tells_rounding_from_change():
    weight = torch.randn(100, 33)
    mark = fingerprint(weight)
    expected = torch.nn.functional.pad(weight.flatten().double(), (0, 28)).view(-1, 64).sum(0)
    torch.testing.assert_close(mark.sketch, expected)
    assert mark.close(fingerprint(weight * (1 + 1e-7)), 1e-6)
    assert not mark.close(fingerprint(weight + 1e-3 * torch.randn(100, 33)), 1e-6)


def test_file_of_a_link_is_the_same_bytes_each_time_and_reads_back(tmp_path):
    """Files are named by their content: the same link must not become two files."""
    factors = {name: Factors(torch.randn(2, 3), torch.randn(4, 2), 0.5) for name in ("a", "b", "c")}
    link = Link(factors, {"a": 0.25, "c": 0.75})
    assert len({link.to_bytes() for _ in range(50)}) == 1
    (tmp_path / "link").write_bytes(link.to_bytes())
    read = Link.from_file(tmp_path / "link")
    assert read.shrinks == link.shrinks
    assert all(torch.equal(read.factors[name].B, factors[name].B) and read.factors[name].scale == 0.5 for name in factors)


def test_file_of_a_link_from_before_links_could_shrink_others_reads_back(tmp_path):
    tensors = {"a.A": torch.ones(1, 3), "a.B": torch.ones(2, 1)}
    (tmp_path / "link").write_bytes(safetensors.torch.save(tensors, {"scales": '{"a": 2.0}'}))
    read = Link.from_file(tmp_path / "link")
    assert read.factors["a"].scale == 2.0
    assert not read.shrinks
