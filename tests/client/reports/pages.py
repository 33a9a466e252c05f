"""Reads reports: the tables of HTML and of Markdown as text, by their title."""

from __future__ import annotations

import html
import re
from dataclasses import dataclass, field
from html.parser import HTMLParser

Tables = dict[str, list[list[str]]]


@dataclass
class _Element:
    tag: str
    attributes: dict[str, str | None]
    parts: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "".join(self.parts)


@dataclass
class Page(HTMLParser):
    """What is in an HTML page: all elements, and the tables. Raises unless every element is closed where it must be."""

    elements: list[_Element] = field(default_factory=list)
    tables: list[list[list[str]]] = field(default_factory=list)
    open: list[_Element] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = _Element(tag, dict(attrs))
        self.elements.append(element)
        if tag not in ("meta", "link", "img", "input", "br"):
            self.open.append(element)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
        elif tag == "small":
            self.tables[-1][-1][-1] += "\n"

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop().tag == tag

    def handle_data(self, data: str) -> None:
        for element in self.open:
            element.parts.append(data)
        if {"td", "th"} & {element.tag for element in self.open}:
            self.tables[-1][-1][-1] += data.strip("\n")

    def named(self, tag: str) -> list[_Element]:
        """Return the elements of a tag."""
        return [element for element in self.elements if element.tag == tag]


def page_from_html(text: str) -> Page:
    page = Page()
    page.feed(text)
    page.close()
    assert page.open == []
    return page


def tables_from_html(page: Page) -> Tables:
    titles = {
        str(element.attributes["id"]): element.text for element in page.elements if str(element.attributes.get("id")).endswith("-title")
    }
    names = [str(table.attributes["aria-labelledby"]) for table in page.named("table")]
    counts = re.compile(r" \d+ rows$")
    return {
        f"{number} {counts.sub('', titles[name])}": [[_flat(cell) for cell in row] for row in rows]
        for number, (name, rows) in enumerate(zip(names, page.tables, strict=True))
    }


def tables_from_markdown(text: str) -> Tables:
    tables: Tables = {}
    title = ""
    lines = text.splitlines()
    for line, following in zip(lines, [*lines[1:], ""], strict=True):
        if line.startswith("#"):
            title = plain(line.lstrip("# "))
        elif line.startswith("|") and following.startswith("|---"):
            tables[f"{len(tables)} {title}"] = [_cells(line)]
        elif line.startswith("|") and not line.startswith("|---"):
            tables[list(tables)[-1]].append(_cells(line))
    return tables


def plain(text: str) -> str:
    """What Markdown shows for escaped text."""
    return re.sub(r"\\(.)", r"\1", html.unescape(text))


def _cells(line: str) -> list[str]:
    return [plain(cell) for cell in line[2:-2].split(" | ")]


def _flat(cell: str) -> str:
    """The text of an HTML cell, with its smaller lines as Markdown has them."""
    first, *details = cell.split("\n")
    return " ".join(re.sub(r"[(),;]", " ", " ".join([first, *details])).split())
