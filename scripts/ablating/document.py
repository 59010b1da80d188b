"""A page of headings, paragraphs, tables and pictures, as Markdown and as one self-contained HTML file."""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

STYLE = """
body { font: 16px/1.5 sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums }
th, td { border-bottom: 1px solid #ccc; padding: .25rem .7rem; text-align: right }
th:first-child, td:first-child { text-align: left }
code, pre { background: #f3f3f3; padding: .1rem .3rem } pre { padding: .7rem; overflow-x: auto }
img { max-width: 100% } .table { overflow-x: auto }
"""


@dataclass(frozen=True)
class Heading:
    """A heading; level 1 is the title."""

    text: str
    level: int = 2


@dataclass(frozen=True)
class Paragraph:
    """Text, with `code` and **bold**."""

    text: str


@dataclass(frozen=True)
class Points:
    """A list of texts."""

    texts: tuple[str, ...]


@dataclass(frozen=True)
class Code:
    """Lines to be typed."""

    text: str


@dataclass(frozen=True)
class Table:
    """Rows of cells under a header, with a title that says how the numbers were made."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Picture:
    """A PNG file beside the page."""

    file: str
    text: str


Part = Heading | Paragraph | Points | Code | Table | Picture


@dataclass
class Page:
    """Parts in order."""

    parts: list[Part] = field(default_factory=list)

    def add(self, *parts: Part) -> None:
        """At the end."""
        self.parts.extend(parts)

    def markdown(self) -> str:
        """The page for a reader of the repository."""
        return "\n\n".join(_markdown(part) for part in self.parts) + "\n"

    def html(self, folder: Path) -> str:
        """The page in one file; pictures are read from ``folder``."""
        title = next((p.text for p in self.parts if isinstance(p, Heading)), "")
        body = "\n".join(_html(part, folder) for part in self.parts)
        return (
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
            f"<title>{html.escape(title)}</title><style>{STYLE}</style></head>\n<body>\n{body}\n</body></html>\n"
        )


def _markdown(part: Part) -> str:
    match part:
        case Heading(text, level):
            return f"{'#' * level} {text}"
        case Paragraph(text):
            return text
        case Points(texts):
            return "\n".join(f"- {text}" for text in texts)
        case Code(text):
            return f"```bash\n{text}\n```"
        case Picture(file, text):
            return f"![{text}]({file})"
        case Table(title, header, rows):
            rule = ("---", *("---:" for _ in header[1:]))
            return f"**{title}**\n\n" + "\n".join(_row(cells) for cells in (header, rule, *rows))


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


def _html(part: Part, folder: Path) -> str:
    match part:
        case Heading(text, level):
            return f"<h{level}>{_inline(text)}</h{level}>"
        case Paragraph(text):
            return f"<p>{_inline(text)}</p>"
        case Points(texts):
            return "<ul>" + "".join(f"<li>{_inline(text)}</li>" for text in texts) + "</ul>"
        case Code(text):
            return f"<pre>{html.escape(text)}</pre>"
        case Picture(file, text):
            data = base64.b64encode((folder / file).read_bytes()).decode()
            return f'<p><img alt="{html.escape(text)}" src="data:image/png;base64,{data}"></p>'
        case Table(title, header, rows):
            head = "".join(f"<th>{_inline(cell)}</th>" for cell in header)
            body = "".join(
                "<tr>" + "".join(f"<td>{_inline(cell)}</td>" for cell in row) + "</tr>" for row in rows
            )
            return (
                f"<p><strong>{_inline(title)}</strong></p>"
                f'<div class="table"><table><tr>{head}</tr>{body}</table></div>'
            )


def _inline(text: str) -> str:
    """`code` and **bold**; everything else as it is."""
    text = re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(text, quote=False))
    return re.sub(r"\*\*([^*]+)\*\*", r"<strong>\1</strong>", text)
