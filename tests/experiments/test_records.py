"""Results on disk are whole, plain, and tell nothing about the machine but what matters."""

from __future__ import annotations

import json
import os
import platform
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from experiments.checkpoints import Checkpoints, check_same_run
from experiments.errors import UsageError
from experiments.records import RunFolder, environment


@dataclass(frozen=True)
class Config:
    out: Path
    rank: tuple[int, ...]


def test_documents_come_back_as_plain_data(tmp_path: Path):
    folder = RunFolder(tmp_path / "run")
    folder.write_json("config.json", Config(Path("a/b"), (8, 4)))
    assert folder.read_json("config.json") == {"out": "a/b", "rank": [8, 4]}


def test_rows_are_appended_in_order_and_survive_a_second_opening(tmp_path: Path):
    RunFolder(tmp_path).append("rows.jsonl", {"step": 1})
    RunFolder(tmp_path).append("rows.jsonl", {"step": 2})
    assert RunFolder(tmp_path).rows("rows.jsonl") == [{"step": 1}, {"step": 2}]
    assert RunFolder(tmp_path).rows("other.jsonl") == []


def test_a_write_that_fails_leaves_the_old_document(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = RunFolder(tmp_path)
    folder.write_json("a.json", 1)

    def fail(*arguments: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        folder.write_json("a.json", 2)
    assert folder.read_json("a.json") == 1


def test_environment_names_versions_and_not_the_host():
    document = json.dumps(environment())
    assert torch.__version__ in document
    assert platform.node() not in document.replace(platform.machine(), "")


def test_checkpoints_keep_the_newest_and_no_temporary_file(tmp_path: Path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in (5, 10, 15):
        checkpoints.save(step, {"step": step, "tensor": torch.ones(2)})
    assert [file.name for file in sorted(tmp_path.iterdir())] == ["step-00000010.pt", "step-00000015.pt"]
    assert checkpoints.newest()["step"] == 15


def test_a_checkpoint_cut_off_while_writing_is_not_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    checkpoints = Checkpoints(tmp_path, keep=2)
    checkpoints.save(5, {"step": 5})

    def die(document: object, file) -> None:
        file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", die)
    with pytest.raises(KeyboardInterrupt):
        checkpoints.save(10, {"step": 10})
    assert checkpoints.newest()["step"] == 5


def test_an_unreadable_checkpoint_is_one_clear_line(tmp_path: Path):
    (tmp_path / "step-00000005.pt").write_bytes(b"not a checkpoint")
    with pytest.raises(UsageError, match=r"--resume: .*step-00000005.pt cannot be read") as raised:
        Checkpoints(tmp_path, keep=1).newest()
    assert "\n" not in str(raised.value)


def test_another_run_is_refused_by_the_option_that_differs():
    with pytest.raises(UsageError, match=r"--rank 8 4 and is now given 8;"):
        check_same_run({"--lr": 0.1, "--rank": [8, 4]}, {"--lr": 0.1, "--rank": [8]})
    check_same_run({"--lr": 0.1}, {"--lr": 0.1})
