"""The built site in a browser: every formula is typeset, nothing is fetched, nothing is too wide for a phone.

Needs `make docs` and a Chromium (Debian: apt-get install chromium).
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

SITE = Path(__file__).parents[2] / "docs" / "_build" / "html"
PAGES = sorted(SITE.rglob("*.html"))
WRITTEN = [page for page in PAGES if "_modules" not in page.parts]  # the others are highlighted source, all alike
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

needs_site = pytest.mark.skipif(not PAGES, reason="the site is not built: `make docs` builds it")

# What a reader would see as broken, in words.
LOOK = r"""
async () => {
  await window.MathJax?.startup?.promise;
  const found = [], short = node => node.textContent.trim().slice(0, 80);
  const formulas = [...document.querySelectorAll(".math")].filter(node => !node.parentElement.closest(".math"));
  for (const node of formulas)
    if (node.querySelectorAll("mjx-container").length != 1) found.push("not typeset: " + short(node));
  for (const node of document.querySelectorAll('mjx-container [data-mml-node="merror"], mjx-container [fill="red"]'))
    found.push("MathJax does not know: " + short(node.closest(".math")));
  const words = document.createTreeWalker(document.querySelector("article") ?? document.body, NodeFilter.SHOW_TEXT);
  while (words.nextNode())
    if (/\$\$|\\[a-z]+\{/.test(words.currentNode.data)
        && !words.currentNode.parentElement.closest("pre, code, script, mjx-container"))
      found.push("TeX in the text: " + short(words.currentNode));
  for (const picture of document.images)
    if (picture.complete && !picture.naturalWidth) found.push("no picture: " + picture.src);
  for (const number of document.querySelectorAll("span.eqno")) {
    const formula = number.parentElement.querySelector("mjx-container") ?? number;
    const [a, b] = [number, formula].map(node => node.getBoundingClientRect());
    const apart = a.left > b.right - 1 || a.top >= b.bottom || b.top >= a.bottom;
    if (!apart) found.push("a number lies on its formula: " + short(number));
  }
  for (const item of document.querySelectorAll("article li"))
    if (!item.textContent.trim() && !item.querySelector("img")) found.push("an empty item: " + short(item.closest("dl, ul")));
  const [wide, width] = [document.documentElement.scrollWidth, document.documentElement.clientWidth];
  if (wide > width) {
    found.push(`scrolls sideways: ${wide} pixels on a screen of ${width}`);
    for (const node of document.querySelectorAll("article *"))
      if (node.getBoundingClientRect().right > width + 1) {
        found.push("the first that is too wide: " + node.outerHTML.slice(0, 200));
        break;
      }
  }
  return found;
}
"""


def name(page: Path) -> str:
    return str(page.relative_to(SITE))


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: `make docs` installs it")
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine: apt-get install chromium")
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"], timeout=0)
        yield chromium
        chromium.close()


def complaints(browser: Any, url: str) -> list[str]:
    """What is wrong with a page at phone width: in its console, in what it asks for, in what it shows."""
    found: list[str] = []
    with browser.new_context(viewport={"width": 375, "height": 800}, offline=True) as context:
        context.set_default_timeout(0)  # a busy machine is no broken page
        page = context.new_page()
        page.on("console", lambda said: found.append(f"console: {said.text}") if said.type in {"error", "warning"} else None)
        page.on("pageerror", lambda error: found.append(f"error: {error}"))
        page.on("requestfailed", lambda asked: found.append(f"not there: {asked.url}"))
        page.on(
            "request", lambda a: None if a.url.startswith(("file:", "data:", "blob:")) else found.append(f"fetches {a.url}")
        )
        page.goto(url, wait_until="load")
        return found + page.evaluate(LOOK)


@needs_site
@pytest.mark.parametrize("page", WRITTEN, ids=name)
def test_page_is_whole_on_a_phone_without_a_network(page, browser):
    assert complaints(browser, page.as_uri()) == []


def test_what_is_broken_is_seen(tmp_path, browser):
    mathjax = SITE / "_static" / "mathjax" / "tex-svg-full.js"
    if not mathjax.is_file():
        pytest.skip("the site is not built: `make docs` builds it")
    page = tmp_path / "page.html"
    page.write_text(f"""<!doctype html><article>
        <span class="math">\\(x\\)</span> <span class="math">\\(\\bm{{x}}\\)</span> <span class="math">\\(\\left(x\\)</span>
        <span class="math">y</span> \\frac{{z}}{{2}} <div style="width: 600px">wide</div>
        <ul><li>item<ol type="A"><li></li></ol></ul>
        <div class="math" style="position: relative"><span class="eqno" style="position: absolute">(1)</span>\\[x\\]</div>
        <img src="missing.png"><script>console.error("said"); undefined.thing</script>
        <script defer src="{mathjax.as_uri()}"></script><script src="https://example.org/x.js"></script></article>""")
    found = "\n".join(complaints(browser, page.as_uri()))
    for words in (
        "console: said", "error: ", "not there: file:", "fetches https://example.org/x.js", "not typeset: y",
        "TeX in the text: \\frac", "no picture: ", "scrolls sideways: 6",
        "an empty item: item", "a number lies on its formula: (1)",
    ):  # fmt: skip
        assert words in found
    assert found.count("MathJax does not know") >= 2


@needs_site
def test_links_within_the_site_lead_somewhere():
    texts = {page.resolve(): page.read_text() for page in PAGES}
    anchors = {page: set(re.findall(r'\b(?:id|name)="([^"]+)"', text)) for page, text in texts.items()}
    broken = set()
    for page, text in texts.items():
        for target, _, anchor in re.findall(r'\b(?:href|src)="([^"#?]*)(\?[^"#]*)?(?:#([^"]*))?"', text):
            if re.match(r"[a-z]+:|//", target):
                continue
            to = (page.parent / unquote(target)).resolve() if target else page
            if not to.is_file() or (anchor and to in anchors and unquote(anchor) not in anchors[to]):
                broken.add(f"{name(page)}: {target}#{anchor}")
    assert broken == set()
