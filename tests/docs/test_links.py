"""A theorem has a page, a class and a test; a public name has a docstring and one place in the reference."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest

import experiments
import fwlora
import theory
from theory.bounds import Bound, all_bounds

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
THEOREM = "{prf:theorem}"


def page_of(bound: Bound) -> Path:
    return DOCS / "theory" / f"{type(bound).__module__.rpartition('.')[2]}.md"


@pytest.mark.parametrize("bound", all_bounds(), ids=repr)
def test_each_bound_has_a_page_that_states_it_and_links_its_class(bound):
    text = page_of(bound).read_text()
    assert THEOREM in text
    assert f"{{py:class}}`theory.bounds.{type(bound).__name__}`" in text
    labels = re.findall(r":prf:ref:`[^<`]*<([\w-]+)>`", type(bound).__doc__ or "")
    assert labels
    assert all(f":label: {label}\n" in text for label in labels)


def test_each_theorem_page_has_a_bound():
    stating = {page for page in (DOCS / "theory").glob("*.md") if THEOREM in page.read_text()}
    assert stating == {page_of(bound) for bound in all_bounds()}


@pytest.mark.parametrize("bound", all_bounds(), ids=repr)
def test_each_bound_is_named_in_a_test(bound):
    tests = (file for file in (ROOT / "tests").rglob("*.py") if "docs" not in file.relative_to(ROOT).parts)
    assert any(re.search(rf"\b{type(bound).__name__}\b", file.read_text()) for file in tests)


def public_names(module: ModuleType) -> list[str]:
    """Those of `__all__`; without one, what a package imports as itself or a module defines."""
    if hasattr(module, "__all__"):
        return list(module.__all__)
    source = inspect.getsource(module)
    imported = re.findall(r"^from \S+ import (\w+) as \1$", source, re.M)
    defined = re.findall(r"^(?:class|def) ([A-Za-z]\w*)", source, re.M)
    return imported or defined


def packages() -> list[ModuleType]:
    """`fwlora`, and the packages of `theory` and `experiments` that list their names."""
    found = [fwlora]
    for root in (theory, experiments):
        for entry in pkgutil.walk_packages(root.__path__, f"{root.__name__}."):
            if entry.ispkg:
                module = importlib.import_module(entry.name)
                found += [module] if hasattr(module, "__all__") else []
    return found


NAMES = [(module, name) for module in packages() for name in public_names(module)]


@pytest.mark.parametrize(("module", "name"), NAMES, ids=lambda part: getattr(part, "__name__", part))
def test_each_public_name_has_a_docstring(module, name):
    thing = getattr(module, name)
    if inspect.isclass(thing) or inspect.isroutine(thing):
        assert inspect.cleandoc(vars(thing).get("__doc__") or thing.__doc__ or "")


def documented() -> Counter[object]:
    """How often the reference documents each class and function."""
    found: Counter[object] = Counter()
    for page in sorted((DOCS / "api").glob("*.md")):
        module = None
        text = page.read_text()
        for kind, target, options in re.findall(r"^\.\. (\w+):: ([\w.]+)\n((?:   :.*\n)*)", text, re.M):
            if kind in {"currentmodule", "automodule"}:
                module = importlib.import_module(target)
            if kind == "automodule" and ":no-members:" not in options:
                left_out = re.search(r":exclude-members: (.*)", options)
                names = set(public_names(module)) - set(left_out[1].split(", ") if left_out else [])
                chosen = re.search(r":members: (.+)", options)
                things = [getattr(module, name) for name in (chosen[1].split(", ") if chosen else names)]
                found.update(thing for thing in things if inspect.isclass(thing) or inspect.isroutine(thing))
            elif kind in {"autoclass", "autofunction", "autoexception"}:
                found[getattr(module, target)] += 1
    return found


def test_each_public_name_stands_once_in_the_reference():
    counts = documented()
    wanted = [(getattr(module, name), f"{module.__name__}.{name}") for module, name in NAMES]
    things = {thing: label for thing, label in wanted if inspect.isclass(thing) or inspect.isroutine(thing)}
    assert {label: counts[thing] for thing, label in things.items() if counts[thing] != 1} == {}


def test_each_error_and_each_callback_stands_in_the_reference():
    counts = documented()
    for name in ("fwlora.errors", "fwlora.integrations.transformers", "fwlora.integrations.lightning", "theory.errors"):
        module = importlib.import_module(name)
        own = [thing for thing in vars(module).values() if inspect.isclass(thing) and thing.__module__ == name]
        assert own
        assert [thing for thing in own if counts[thing] != 1] == []


def test_each_kept_study_is_on_the_page_of_results():
    text = (DOCS / "results" / "index.md").read_text()
    kept = sorted(page.parent.name for page in (DOCS / "results").glob("*/README.md"))
    assert [
        study for study in kept if f"({study}/README.md)" not in text or f"`python -m experiments {study}" not in text
    ] == []


def test_each_study_is_in_the_reference():
    text = (DOCS / "api" / "experiments.md").read_text()
    studies = [file.stem.replace("_", "-") for file in (ROOT / "experiments" / "studies").glob("[!_]*.py")]
    assert [study for study in studies if f"| `{study}` |" not in text] == []
