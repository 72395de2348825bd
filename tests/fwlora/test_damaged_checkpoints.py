"""Checkpoints as users meet them: cut short, with a bit turned over, or a pickle that would run code."""

from __future__ import annotations

import io
import os
import pickle
from pathlib import Path

import pytest
import torch

from fwlora.errors import ArgumentError, ChainFileError, FwloraError, StateError
from fwlora.record.seal import digest
from tests.conftest import assert_same
from tests.sealing import resealed


class Malicious:
    """What makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


def loaded(data: bytes) -> dict:
    """The recipe of README and of Trainer."""
    return torch.load(io.BytesIO(data), weights_only=True)


@pytest.fixture
def checkpoint(chained) -> bytes:
    """A saved state with two links."""
    buffer = io.BytesIO()
    torch.save(chained(steps=7)[1].state_dict(), buffer)
    return buffer.getvalue()


def test_truncated_checkpoint_never_loads(chained, checkpoint):
    model, optimizer, _ = chained()
    twin = chained()
    for length in range(0, len(checkpoint), max(1, len(checkpoint) // 60)):
        with pytest.raises((RuntimeError, EOFError, ValueError, pickle.UnpicklingError)):
            optimizer.load_state_dict(loaded(checkpoint[:length]))
    assert_same(model, optimizer, *twin[:2])


def test_turned_bit_is_refused_or_touches_nothing_of_the_state(chained, checkpoint):
    """Torch's zip is padded, and torch itself looks at no checksum of what it reads: the state's own does."""
    whole = loaded(checkpoint)
    mine = {key: digest(whole[key]) for key in ("fwlora", "state")}
    model, optimizer, _ = chained()
    twin = chained()
    refused = harmless = 0
    for place in range(7, len(checkpoint), max(1, len(checkpoint) // 400)):
        damaged = bytearray(checkpoint)
        damaged[place] ^= 1 << place % 8
        try:
            document = loaded(bytes(damaged))
        except Exception:  # torch raises all kinds
            continue
        try:
            optimizer.load_state_dict(document)
        except FwloraError:
            refused += 1
        else:
            harmless += 1
            assert {key: digest(document[key]) for key in mine} == mine
            model, optimizer, _ = chained()
            continue
        assert_same(model, optimizer, *twin[:2])
    assert refused > 0
    assert harmless > 0  # the padding


@pytest.mark.parametrize(
    "save", [torch.save, lambda state, file: file.write_bytes(pickle.dumps(state, 2))], ids=["zip", "pickle"]
)
def test_pickle_that_runs_code_is_never_run(chained, tmp_path, save):
    optimizer, made, file = chained()[1], tmp_path / "made", tmp_path / "optimizer.pt"
    save({**optimizer.state_dict(), "more": Malicious(made)}, file)
    with pytest.raises(pickle.UnpicklingError):
        optimizer.load_state_dict(torch.load(file, weights_only=True))
    assert not made.exists()


def test_link_that_is_a_pickle_is_never_run(chained, tmp_path):
    links, made = tmp_path / "links", tmp_path / "made"
    _, optimizer, _ = chained(steps=4, chain_dir=links)
    state = optimizer.state_dict()
    next(links.glob("*.safetensors")).write_bytes(pickle.dumps(Malicious(made)))
    with pytest.raises(ChainFileError, match="is not the file that this chain wrote"):
        chained(chain_dir=links)[1].load_state_dict(state)
    assert not made.exists()


@pytest.mark.parametrize("name", ["weights.bin", "weights.safetensors"])
def test_original_that_is_a_pickle_is_never_run(chained, tmp_path, name):
    """Of a folder safetensors files alone are read, and a pickle under their name is none."""
    folder, made = tmp_path / "base", tmp_path / "made"
    folder.mkdir()
    (folder / name).write_bytes(pickle.dumps(Malicious(made)))
    _, optimizer, _ = chained(steps=4)
    before = digest(optimizer.state_dict())
    with pytest.raises((StateError, ArgumentError), match="original="):
        optimizer.rollback(0, original=folder)
    assert digest(optimizer.state_dict()) == before
    assert not made.exists()


def test_link_in_another_folder_is_not_looked_for(chained, tmp_path):
    """A file's name is a name, and leads nowhere else."""
    links = tmp_path / "links"
    _, optimizer, _ = chained(steps=4, chain_dir=links)
    state = optimizer.state_dict()
    file = next(links.glob("*.safetensors"))
    (tmp_path / file.name).write_bytes(file.read_bytes())
    links_of = state["fwlora"]["links"]
    links_of[0] = {**links_of[0], "file": f"../{file.name}"}
    with pytest.raises(StateError, match="file"):
        chained(chain_dir=links)[1].load_state_dict(resealed(state))
