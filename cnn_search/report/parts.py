"""Parts: what a page is made of: tables, figures with a table each, pictures, sections."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

Plot = dict[str, Any]


@dataclass(frozen=True)
class Table:
    """Texts in rows and columns; a column's name that begins with "#" is set to the right.

    Attributes:
        columns, rows: The names may all be empty: then there is no heading.
        title, note: Above and below it.
        small: Whether several stand beside each other.
    """

    columns: list[str]
    rows: list[list[str]]
    title: str = ""
    note: str = ""
    small: bool = False


@dataclass(frozen=True)
class Figure:
    """A plot and the same numbers as a table.

    Attributes:
        name: Unique in the page.
        title, note: Above and below it.
        plot: `data` and `layout` for plotly.
        table: Its twin.
        height: In pixels.
        width: In pixels at least: on a narrow screen it is scrolled in a box of its own.
        small: Whether several stand beside each other.
    """

    name: str
    title: str
    plot: Plot
    table: Table
    note: str = ""
    height: int = 380
    width: int = 0
    small: bool = False

    @property
    def element(self) -> str:
        """The name of its element in the page."""
        return f"figure-{self.name}"


@dataclass(frozen=True)
class Image:
    """A picture as a data URI, or without one a line that says where it is."""

    title: str
    note: str
    uri: str = ""


@dataclass(frozen=True)
class Section:
    """A part of the report.

    Attributes:
        name: Of its element in the page.
        title: Its heading.
        texts: Paragraphs before its parts.
        parts: Figures, tables and pictures.
        commands: What to type, a line each.
    """

    name: str
    title: str
    texts: list[str] = field(default_factory=list)
    parts: list[Figure | Table | Image] = field(default_factory=list)
    commands: list[str] = field(default_factory=list)
