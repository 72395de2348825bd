"""A file that `save()` wrote is read whole or not at all, and is written whole or not at all."""

from __future__ import annotations

import copy
import errno
import os
import random
import zipfile
from contextlib import contextmanager

import pytest
import torch

from fwlora.errors import ArgumentError, ChainFileError, StateError
from tests.conftest import train
from tests.fwlora.cutting import difference


@pytest.fixture
def saved(chained, tmp_path):
    """A chain, the file that it saved, and a reader of its folder that has something to lose."""
    _, optimizer, _ = chained(steps=4)
    file = optimizer.save(tmp_path / "state")
    model, reader, _ = chained(steps=2)
    return optimizer, file, model, reader


def everything(model, optimizer):
    return copy.deepcopy({"model": model.state_dict(), "optimizer": optimizer.state_dict()})


def assert_refused(reader, file):
    with pytest.raises(StateError) as caught:
        reader.load(file.parent)
    assert str(file) in str(caught.value)
    assert "Nothing was changed" in str(caught.value)


def test_saved_file_is_an_archive_that_torch_reads_by_itself(saved):
    optimizer, file, *_ = saved
    assert difference(torch.load(file, weights_only=True), optimizer.state_dict()) is None
    assert zipfile.ZipFile(file).testzip() is None


def test_file_cut_at_any_length_is_refused(saved):
    _, file, model, reader = saved
    before, whole = everything(model, reader), file.read_bytes()
    file.write_bytes(whole)
    for length in reversed(range(len(whole))):
        os.truncate(file, length)
        assert_refused(reader, file)
    assert difference(everything(model, reader), before) is None
    file.write_bytes(whole + b"\0")
    assert_refused(reader, file)
    file.write_bytes(whole)
    reader.load(file.parent)
    assert len(reader.chain) == 1


def test_file_with_any_byte_changed_by_a_bit_is_refused(saved):
    _, file, model, reader = saved
    before, whole, bits = everything(model, reader), file.read_bytes(), random.Random(0)
    with open(file, "r+b") as damaged:
        for place, byte in enumerate(whole):
            os.pwrite(damaged.fileno(), bytes([byte ^ 1 << bits.randrange(8)]), place)
            assert_refused(reader, file)
            os.pwrite(damaged.fileno(), bytes([byte]), place)
    assert difference(everything(model, reader), before) is None
    reader.load(file.parent)


def test_file_from_before_there_were_checksums_loads_and_its_tensors_are_checked(saved):
    optimizer, file, model, reader = saved
    torch.save(optimizer.state_dict(), file)
    whole, places = file.read_bytes(), random.Random(0)
    before, outcomes = everything(model, reader), set()
    for place in places.sample(range(len(whole)), 300):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << places.randrange(8)]) + whole[place + 1 :])
        try:
            read = torch.load(file, weights_only=True) if zipfile.ZipFile(file).testzip() is None else None
        except Exception:
            read = None
        if read is not None and difference(read, optimizer.state_dict()) is None:
            outcomes.add("a header that nobody reads")
            continue
        assert_refused(reader, file)
        outcomes.add("refused")
    assert outcomes == {"refused", "a header that nobody reads"}
    assert difference(everything(model, reader), before) is None
    file.write_bytes(whole)
    reader.load(file.parent)
    assert len(reader.chain) == 1


class Malicious:
    """Writes a file when it is unpickled."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return os.mkdir, (str(self.trace),)


def test_code_in_a_file_is_never_run(saved, tmp_path):
    optimizer, file, model, reader = saved
    before, trace = everything(model, reader), tmp_path / "trace"
    torch.save({**optimizer.state_dict(), "extra": Malicious(trace)}, file)
    assert_refused(reader, file)
    assert not trace.exists()
    torch.load(file, weights_only=False)
    assert trace.exists(), "it would have been run"
    torch.save([1, 2], file)
    assert_refused(reader, file)
    assert difference(everything(model, reader), before) is None


@contextmanager
def full_disk(after):
    """No file can grow beyond so many bytes, by the system's own word."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (after, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_disk_that_is_full_at_any_byte_leaves_the_file_that_was_there(saved):
    """Everywhere in the content and in the checksum behind it; the error is the system's, and nothing lies about."""
    optimizer, file, *_ = saved
    before = file.read_bytes()
    for room in [*range(0, len(before), 97), *range(len(before) - 90, len(before))]:
        with full_disk(room), pytest.raises(OSError) as caught:  # noqa: PT011 - its number is looked at
            optimizer.save(file.parent)
        assert caught.value.errno == errno.EFBIG
        assert [path.name for path in file.parent.iterdir()] == [file.name]
    assert file.read_bytes() == before
    with full_disk(len(before)):
        optimizer.save(file.parent)


def test_disk_that_is_full_at_a_knot_leaves_a_knot_that_is_completed_when_there_is_room(chained, tmp_path):
    model, optimizer, batch = chained(steps=4, chain_dir=tmp_path / "links")
    whole_model, whole, _ = chained(steps=4, chain_dir=tmp_path / "others")
    with full_disk(300), pytest.raises(OSError, match="File too large"):
        optimizer.tie_knot()
    assert len(list((tmp_path / "links").iterdir())) == len(optimizer.chain) == 1
    whole.tie_knot()
    train(optimizer, model, batch, 3)
    train(whole, whole_model, batch, 3)
    assert difference(everything(model, optimizer), everything(whole_model, whole)) is None
    assert len(list((tmp_path / "links").iterdir())) == len(optimizer.chain) == 3


@pytest.mark.parametrize("size", [0, 1, -1, 100], ids="size={}".format)
def test_link_that_is_cut_short_or_damaged_is_refused_with_nothing_changed(chained, tmp_path, size):
    _, optimizer, _ = chained(steps=4, chain_dir=tmp_path / "links")
    optimizer.save(tmp_path)
    (link,) = (tmp_path / "links").iterdir()
    model, reader, _ = chained(chain_dir=tmp_path / "links")
    before, whole = everything(model, reader), link.read_bytes()
    for damaged in (whole[:size], whole[:size] + bytes([whole[size] ^ 4]) + whole[size:][1:]):
        link.write_bytes(damaged)
        with pytest.raises(ChainFileError, match=link.name):
            reader.load(tmp_path)
    assert difference(everything(model, reader), before) is None


def test_what_a_killed_process_left_is_cleared_away_by_the_next_link_and_the_next_save(chained, tmp_path):
    """Files of other names are nobody's business of ours."""
    _, optimizer, _ = chained(steps=2, chain_dir=tmp_path)
    others = {tmp_path / ".others", tmp_path / "0123abcd.partial"}
    dead = [tmp_path / f".{name}.0123abcd.partial" for name in ("chain.pt", "link-00000-00.safetensors")]
    for path in (*dead, *others):
        path.write_bytes(b"half")
    optimizer.tie_knot()
    link = next(tmp_path.glob("link*"))
    assert set(tmp_path.iterdir()) == {link, *others}
    dead[0].write_bytes(b"half")
    optimizer.save(tmp_path)
    assert set(tmp_path.iterdir()) == {link, tmp_path / "chain.pt", *others}


def test_what_a_living_process_is_writing_is_left_alone(saved, monkeypatch):
    """Another save to the same folder, as one is about to be renamed."""
    optimizer, file, *_ = saved
    fsync, seen = os.fsync, []

    def meanwhile(descriptor):
        fsync(descriptor)
        if not seen:
            seen.extend(path.name for path in file.parent.iterdir())
            optimizer.save(file.parent)

    monkeypatch.setattr(os, "fsync", meanwhile)
    optimizer.save(file.parent)
    assert len(seen) == 2, "the file, and the unfinished one"
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_folder_without_a_file_is_told_from_a_damaged_one(saved, tmp_path):
    *_, reader = saved
    (tmp_path / ".chain.pt.0123abcd.partial").write_bytes(b"half")
    with pytest.raises(ArgumentError, match=r"finds no chain\.pt"):
        reader.load(tmp_path)
