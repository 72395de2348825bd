"""Coq accepts every proof of the project, and what is not proved is refused, however it is hidden."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from theory.errors import ProofError
from theory.proofs import ALLOWED, FOLDER, check, check_again
from theory.proofs.__main__ import main

with_coq = pytest.mark.skipif(shutil.which("coqc") is None, reason="needs Coq: `apt-get install coq`")

TRUE = "Theorem fine : 1 = 1.\nProof. reflexivity. Qed.\n"
HIDDEN = {
    "Admitted": "Theorem wanted : 1 = 2.\nProof. Admitted.\n",
    "admit": "Theorem wanted : 1 = 2.\nProof. admit. Qed.\n",
    "Axiom": "Axiom wanted : 1 = 2.\n",
    "Parameter": "Parameter wanted : 1 = 2.\n",
    "Conjecture": "Conjecture wanted : 1 = 2.\n",
    "Unset Guard Checking": "Unset Guard Checking.\n",
    "rests on said.wanted": "Hypothesis wanted : 1 = 2.\nTheorem got : 1 = 2.\nProof. exact wanted. Qed.\n",
    "rests on Classical_Prop.classic": "Require Import Classical.\nLemma got A : A \\/ ~ A.\nProof. apply classic. Qed.\n",
    "coqc refuses said.v": "Theorem wanted : 1 = 2.\nProof. reflexivity. Qed.\n",
    "imports nowhere": "From FrankWolfe Require Import nowhere.\n",
}


def said(folder: Path, text: str) -> Path:
    """A folder with one file."""
    (folder / "proofs").mkdir()
    (folder / "proofs" / "said.v").write_text(text)
    return folder / "proofs"


def scratch(folder: Path) -> Path:
    """An empty folder."""
    (folder / "scratch").mkdir()
    return folder / "scratch"


@with_coq
def test_both_kernels_accept_every_proof_of_the_project(capsys):
    code = main([])
    printed = capsys.readouterr()
    assert (code, printed.err) == (0, "")
    assert {path.name for path in FOLDER.glob("*.v")} == {line.split()[0] for line in printed.out.splitlines()[1:-1]}


@with_coq
@pytest.mark.parametrize("reason", HIDDEN)
def test_what_is_not_proved_is_refused(tmp_path, capsys, reason):
    folder = said(tmp_path, TRUE + HIDDEN[reason])
    with pytest.raises(ProofError, match=reason):
        check(scratch(tmp_path), folder)
    assert main(["--folder", str(folder)]) == 1
    assert reason in capsys.readouterr().err


@with_coq
def test_a_true_theorem_is_accepted_and_told_of(tmp_path):
    told, place = [], scratch(tmp_path)
    through = check(place, said(tmp_path, "(* No Axiom, nothing Admitted, no (* admit *). *)\n" + TRUE), told.append)
    check_again(place, through)
    assert told == through
    assert [(file.source.proved, file.axioms) for file in through] == [(["fine"], [])]


@with_coq
def test_the_reals_rest_on_the_allowed_axioms_and_no_more(tmp_path):
    reals = "From Coq Require Import Reals Lra.\nOpen Scope R_scope.\n"
    root = "Theorem root x : 0 <= x -> sqrt x * sqrt x = x.\nProof. apply sqrt_sqrt. Qed.\n"
    [file] = check(scratch(tmp_path), said(tmp_path, reals + root))
    assert set(file.axioms) == set(ALLOWED)


@with_coq
def test_the_second_kernel_refuses_a_file_that_was_changed_after_the_first(tmp_path):
    place = scratch(tmp_path)
    through = check(place, said(tmp_path, TRUE))
    compiled = place / "said.vo"
    compiled.write_bytes(compiled.read_bytes()[:-40] + bytes(40))
    with pytest.raises(ProofError, match="coqchk refuses"):
        check_again(place, through)


def test_without_coq_the_way_to_it_is_told(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ProofError, match="There is no `coqc` on PATH; install Coq"):
        check(scratch(tmp_path), said(tmp_path, TRUE))


def test_a_folder_without_proofs_proves_nothing(tmp_path):
    with pytest.raises(ProofError, match="`folder` must hold Coq files"):
        check(scratch(tmp_path), scratch(tmp_path / "scratch"))
