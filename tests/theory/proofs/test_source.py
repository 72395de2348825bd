"""A Coq file is read as Coq reads it, as far as this project needs."""

from __future__ import annotations

import pytest

from theory.errors import ProofError
from theory.proofs import Source, sources

TEXT = """(** What Axiom means. (* admit *) *)
From FrankWolfe Require Import base other.
Definition one : Prop := forall (E : Space) (x y : E), P E x -> (forall z, Q z -> R z) -> x <= 0.5 -> S x y.
Definition two : Prop := one.
Definition both : Prop := one /\\ three.
Definition three : Prop := forall x, x -> x.
Definition denied : Prop := ~ three.
Definition half {E : Space} (a b : R) : R :=
  if Rle_dec a b then a / 2
  else b.
Lemma small : one. Proof. intros. Qed.
Theorem Joined : both.
Theorem Denied : denied.
"""


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "said.v"
    path.write_text(TEXT, encoding="utf-8")
    return Source(path)


def test_imports_theorems_and_definitions_are_found(source):
    assert source.imports == ["base", "other"]
    assert source.proved == ["small", "Joined", "Denied"]
    assert source.theorems == {"Joined": "both", "Denied": "denied"}
    half = source.definitions["half"]
    assert (half.parameters, half.body) == (("E", "a", "b"), "if Rle_dec a b then a / 2 else b")


def test_hypotheses_are_what_stands_before_the_outer_arrows(source):
    assert source.hypotheses("one") == ["P E x", "(forall z, Q z -> R z)", "x <= 0.5"]


def test_parts_are_what_a_definition_joins_or_denies(source):
    assert {name: list(source.parts(name)) for name in ("two", "both", "denied")} == {
        "two": ["two"],
        "both": ["one", "three"],
        "denied": ["three"],
    }


def test_what_a_definition_is_made_of_comes_in_the_order_of_the_file(source):
    assert source.used(["both"]) == ["one", "both", "three"]


def test_a_definition_is_quoted_as_it_stands(source):
    assert source.verbatim("half").splitlines()[1:] == ["  if Rle_dec a b then a / 2", "  else b."]
    with pytest.raises(ProofError, match="no definition of `third`"):
        source.verbatim("third")


def test_forbidden_words_count_in_code_and_not_in_comments(source, tmp_path):
    assert source.forbidden() == []
    path = tmp_path / "hidden.v"
    path.write_text(TEXT + "Local Axiom a : False. Lemma admitted_not : True. Proof. (* x *) admit. Admitted.")
    assert Source(path).forbidden() == ["Admitted", "admit", "Axiom"]


def test_a_file_comes_after_those_that_it_imports():
    names = [source.name for source in sources()]
    assert all(names.index(earlier) < names.index(source.name) for source in sources() for earlier in source.imports)
    assert len(names) == len(set(names)) > 4
