"""The code of all pages runs, and gives what the page says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.docs.blocks import run, shown

ROOT = Path(__file__).parents[2]
PAGES = sorted(page for page in (ROOT / "docs").rglob("*.md") if page.relative_to(ROOT).parts[1] not in {"_build", "results"})
RUNNING = [page for page in PAGES if re.search(r"^`{3,}\{(?:doctest|testcode)\}", page.read_text(), re.MULTILINE)]


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", RUNNING, ids=name)
def test_blocks_run_as_written(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run(page)


@pytest.mark.parametrize("page", [ROOT / "README.md", *PAGES], ids=name)
def test_blocks_that_do_not_run_compile(page):
    for code in shown(page):
        compile(code, name(page), "exec")


def test_a_wrong_block_is_found(tmp_path):
    page = tmp_path / "page.md"
    for block in ("doctest}\n>>> 1 + 1\n3\n", "testcode}\nprint(2)\n```\n\n```{testoutput}\n3\n", "testcode}\nprint(2)\n"):
        page.write_text(f"```{{{block}```\n")
        with pytest.raises(AssertionError):
            run(page)
    page.write_text("```{testcode}\nx = 1\nprint(x)\n```\n\n```{testoutput}\n1\n```\n\n```{doctest}\n>>> x\n1\n```\n")
    assert run(page) == 3


def test_shown_blocks_are_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("```python\na = 1\n```\n\n```{code-block} python\n:caption: b\nb = 1\n```\n\n```{testcode}\nc = 1\n```\n")
    assert shown(page) == ["a = 1\n", "b = 1\n"]


def test_messages_that_the_guide_quotes_are_messages():
    """Between the holes of an f-string, ``...`` on the page, each part stands in the source."""
    page = ROOT / "docs" / "guide" / "troubleshooting.md"
    quoted = re.findall(r"(?<!- )\*\*`(.+?)`", page.read_text())
    source = "".join(file.read_text() for file in sorted((ROOT / "fwlora").rglob("*.py")))
    said = re.sub(r"\{[^{}]*\}", "", re.sub(r'"\s*\n\s*f?"', "", source))
    assert len(quoted) >= 10
    parts = [part.strip() for quote in quoted for part in quote.split("...")]
    assert [part for part in parts if part not in said] == []
