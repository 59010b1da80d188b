"""A page of headings, paragraphs, tables and pictures, as Markdown and as one self-contained HTML file."""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass, field
from pathlib import Path

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup, escape

from utils.reporting.text_tables import markdown_table

TEMPLATE = Path(__file__).with_name("page.html")


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
        environment = Environment(
            autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
        )
        environment.filters["marked"] = _marked
        return environment.from_string(TEMPLATE.read_text("utf-8")).render(
            title=next((p.text for p in self.parts if isinstance(p, Heading)), ""),
            parts=[(type(part).__name__, part) for part in self.parts],
            picture=lambda file: base64.b64encode((folder / file).read_bytes()).decode(),
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
            return f"**{title}**\n\n" + markdown_table(header, rows, numbers=True)


def _marked(text: str) -> Markup:
    """`code` and **bold** as HTML; everything else as it is."""
    text = re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text)))
    return Markup(re.sub(r"\*\*([^*]+)\*\*", r"<strong>\1</strong>", text))
