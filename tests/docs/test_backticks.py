"""A name in backticks leads to what it means where it is said, and else nowhere."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

python = pytest.importorskip("sphinx.domains.python", reason="Sphinx is not installed: `make docs` installs it")

FILE = Path(__file__).parents[2] / "docs" / "_extensions" / "backticks.py"
KINDS = {
    "fwlora.Fixed": "class", "fwlora.Every": "class", "fwlora.Every.steps": "attribute", "fwlora.unwrap": "function",
    "theory.step_sizes.Fixed": "class", "theory.step_sizes.Step": "class", "theory.step_sizes.Step.t": "attribute",
    "theory.links": "module", "theory.sets.NuclearBall": "class", "theory.sets.NuclearBall.lmo": "method",
}  # fmt: skip


@pytest.fixture(scope="module")
def find():
    spec = importlib.util.spec_from_file_location("backticks", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    known = {name: python.ObjectEntry("page", name, kind, False) for name, kind in KINDS.items()}
    return lambda target, module_name, kind=None: module.find(known, target, module_name, kind)


@pytest.mark.parametrize(
    ("target", "module", "kind", "wanted"),
    [
        ("Fixed", "fwlora.rules", None, "fwlora.Fixed"),
        ("Fixed", "theory.bounds", None, "theory.step_sizes.Fixed"),
        ("steps", "fwlora", "Every", "fwlora.Every.steps"),
        ("steps", "fwlora", "At", None),  # an argument of its own, and not Every's attribute
        ("links", "fwlora", "Evenly", None),  # nor a module of the other package
        ("unwrap()", "fwlora.rules", None, "fwlora.unwrap"),
        ("NuclearBall", "fwlora.rules", None, "theory.sets.NuclearBall"),
        ("NuclearBall.lmo", "theory.bounds", None, "theory.sets.NuclearBall.lmo"),
        ("Fixed", "experiments", None, None),  # there are two
        ("a + b", "fwlora", None, None),
    ],
)
def test_the_nearest_of_a_name_is_found(find, target, module, kind, wanted):
    assert find(target, module, kind) == wanted
