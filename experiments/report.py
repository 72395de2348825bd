"""Pages and tables from records; nothing here trains.

A page is published twice: as one self-contained HTML file, images and style inside, and as a README with its figures beside it,
the form in which a result worth keeping is committed.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from experiments.plots import data_uri
from experiments.records import RunFolder

STYLE = """
:root { --ink: #1d2430; --soft: #5c6675; --line: #e1e5ea; --paper: #ffffff; --wash: #f5f7f9; --mark: #2f5d8a; }
* { box-sizing: border-box; }
body { margin: 0; background: var(--wash); color: var(--ink); font: 16px/1.6 "Iowan Old Style", Charter, Georgia, serif; }
main { max-width: 860px; margin: 0 auto; padding: 48px 56px 64px; background: var(--paper); min-height: 100vh; }
h1 { font-size: 30px; line-height: 1.2; margin: 0 0 4px; letter-spacing: -0.01em; }
h2 { font-size: 20px; margin: 44px 0 8px; padding-top: 20px; border-top: 1px solid var(--line); }
p { margin: 10px 0; }
p.lead { color: var(--soft); margin-top: 0; font-size: 17px; }
table { border-collapse: collapse; width: 100%; margin: 16px 0;
  font: 13.5px/1.45 system-ui, "Segoe UI", Helvetica, Arial, sans-serif; font-variant-numeric: tabular-nums; }
th { text-align: left; font-weight: 600; color: var(--soft); border-bottom: 1.5px solid var(--ink); padding: 6px 10px; }
td { border-bottom: 1px solid var(--line); padding: 6px 10px; }
td:first-child { white-space: nowrap; }
th.number, td.number { text-align: right; white-space: nowrap; }
th.number { white-space: normal; }
figure { margin: 18px 0 6px; }
figure img { width: 100%; height: auto; display: block; }
figcaption { font-size: 14px; color: var(--soft); line-height: 1.45; margin-top: 4px; }
ul.findings { padding-left: 0; list-style: none; margin: 14px 0; }
ul.findings li { border-left: 3px solid var(--mark); background: var(--wash); padding: 8px 14px; margin: 8px 0; }
pre { background: var(--wash); border: 1px solid var(--line); padding: 12px 14px; overflow-x: auto;
  font: 13px/1.5 ui-monospace, Menlo, Consolas, monospace; }
footer { margin-top: 48px; padding-top: 16px; border-top: 1px solid var(--line); color: var(--soft);
  font: 12.5px/1.5 system-ui, "Segoe UI", Helvetica, Arial, sans-serif; }
@media (max-width: 700px) { main { padding: 28px 20px; } }
"""


@dataclass(frozen=True)
class Table:
    """Rows under headings; every column but the first is set as numbers."""

    headings: Sequence[str]
    rows: Sequence[Sequence[str]]

    def to_text(self) -> str:
        """The table for a terminal."""
        cells = [list(self.headings), *[list(row) for row in self.rows]]
        widths = [max(len(row[column]) for row in cells) for column in range(len(self.headings))]
        lines = [
            "  ".join(cell.ljust(width) if column == 0 else cell.rjust(width)
                      for column, (cell, width) in enumerate(zip(row, widths, strict=True)))
            for row in cells
        ]  # fmt: skip
        lines.insert(1, "-" * len(lines[0]))
        return "\n".join(line.rstrip() for line in lines)

    def to_html(self) -> str:
        """The table for a page."""

        def line(tag: str, cells: Sequence[str]) -> str:
            opening = [f"<{tag}>", *[f'<{tag} class="number">'] * (len(cells) - 1)]
            pairs = zip(opening, cells, strict=True)
            return "<tr>" + "".join(f"{tag_open}{html.escape(cell)}</{tag}>" for tag_open, cell in pairs) + "</tr>"

        body = "\n".join(line("td", row) for row in self.rows)
        return f"<table>\n<thead>{line('th', self.headings)}</thead>\n<tbody>\n{body}\n</tbody>\n</table>"

    def to_markdown(self) -> str:
        """The table for a README."""
        rule = ["---", *["---:"] * (len(self.headings) - 1)]
        cells = [[cell.replace("|", "\\|") for cell in row] for row in (self.headings, *self.rows)]
        return "\n".join("| " + " | ".join(row) + " |" for row in [cells[0], rule, *cells[1:]])


@dataclass
class Page:
    """A page that grows from top to bottom.

    Attributes:
        title: the heading.
        lead: one sentence below it.
    """

    title: str
    lead: str
    parts: list[tuple[str, str]] = field(default_factory=list)
    images: dict[str, bytes] = field(default_factory=dict)

    def heading(self, text: str) -> None:
        """A section begins."""
        self._add(f"<h2>{html.escape(text)}</h2>", f"## {text}")

    def paragraph(self, text: str) -> None:
        """A paragraph of plain text."""
        self._add(f"<p>{html.escape(text)}</p>", text)

    def findings(self, sentences: Sequence[str]) -> None:
        """Sentences that the numbers say, each marked; what stands before a colon tells where."""
        items = "\n".join(f"<li>{_marked(sentence)}</li>" for sentence in sentences)
        self._add(f'<ul class="findings">\n{items}\n</ul>', "\n".join(f"- {sentence}" for sentence in sentences))

    def table(self, table: Table) -> None:
        """A table."""
        self._add(table.to_html(), table.to_markdown())

    def figure(self, name: str, png: bytes, caption: str) -> None:
        """An image, kept inside the page and as `figures/<name>.png` beside the README."""
        text = html.escape(caption)
        self.images[name] = png
        self._add(
            f'<figure><img alt="{text}" src="{data_uri(png)}"><figcaption>{text}</figcaption></figure>',
            f"![{caption}](figures/{name}.png)",
        )

    def code(self, text: str) -> None:
        """A block to copy."""
        self._add(f"<pre>{html.escape(text)}</pre>", f"```\n{text}\n```")

    def publish(self, folder: RunFolder, footer: str) -> str:
        """Writes `report.html`, `README.md` and the figures.

        Args:
            folder: where to.
            footer: the last line.

        Returns:
            The HTML document.
        """
        document = self.to_html(footer)
        folder.write_text("report.html", document)
        folder.write_text("README.md", self.to_markdown(footer))
        for name, png in self.images.items():
            folder.write_bytes(f"figures/{name}.png", png)
        return document

    def to_markdown(self, footer: str) -> str:
        """The whole page as a README.

        Args:
            footer: the last line.

        Returns:
            A document.
        """
        parts = [f"# {self.title}", self.lead, *[markdown for _, markdown in self.parts if markdown], f"*{footer}*"]
        return "\n\n".join(parts) + "\n"

    def to_html(self, footer: str) -> str:
        """The whole page, which refers to nothing outside itself.

        Args:
            footer: the last line.

        Returns:
            A document.
        """
        body = "\n".join(markup for markup, _ in self.parts)
        title = html.escape(self.title)
        return (
            f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{title}</title>\n'
            f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<style>{STYLE}</style>\n</head>\n'
            f'<body>\n<main>\n<h1>{title}</h1>\n<p class="lead">{html.escape(self.lead)}</p>\n{body}\n'
            f"<footer>{html.escape(footer)}</footer>\n</main>\n</body>\n</html>\n"
        )

    def _add(self, markup: str, markdown: str) -> None:
        self.parts.append((markup, markdown))


def _marked(sentence: str) -> str:
    place, colon, rest = sentence.partition(": ")
    return f"<strong>{html.escape(place)}:</strong> {html.escape(rest)}" if colon else html.escape(sentence)


def describe(environment: Mapping[str, object]) -> str:
    """One line on where a run was made."""
    packages = environment.get("packages")
    found = packages.items() if isinstance(packages, Mapping) else ()
    versions = ", ".join(f"{name} {version}" for name, version in found if version)
    revision = environment.get("revision") or "unknown"
    return f"Python {environment.get('python')}, {versions}; {environment.get('system')}; revision {revision}"
