"""The project's documents as a CommonMark parser reads them: code blocks, code in the text, links and headings."""

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

__all__ = ["PROJECT", "Block", "Document", "Link", "Span", "documents"]

PROJECT = Path(__file__).parent.parent.parent
_PLACES = ("README.md", "docs/**/*.md", "deploy/**/*.md", "systemd/**/*.md")


@dataclass(frozen=True)
class Block:
    """A code block; `line` is that of its first line of code. An indented block has the language "indented"."""

    where: str
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.where}:{self.line}"


@dataclass(frozen=True)
class Span:
    """Code in running text. `column` is the heading of the table's column it stands in."""

    where: str
    line: int
    text: str
    column: str = ""


@dataclass(frozen=True)
class Link:
    """Where a link or a picture points."""

    where: str
    line: int
    target: str


@dataclass(frozen=True)
class Document:
    """One file, parsed; `name` is its path below the project."""

    name: str
    blocks: tuple[Block, ...]
    spans: tuple[Span, ...]
    links: tuple[Link, ...]
    anchors: frozenset[str]

    @classmethod
    def parse(cls, name: str, text: str) -> "Document":
        """Parse Markdown as GitHub does, as far as this project uses it."""
        tokens = MarkdownIt("commonmark").enable("table").parse(text)
        return cls(
            name,
            tuple(_blocks(name, tokens)),
            tuple(_spans(name, tokens)),
            tuple(_links(name, tokens)),
            frozenset(_anchors(tokens)),
        )


@cache
def documents() -> tuple[Document, ...]:
    """Return every document of the project, README first; new ones are found by their place."""
    paths = [path for place in _PLACES for path in sorted(PROJECT.glob(place))]
    return tuple(Document.parse(str(path.relative_to(PROJECT)), path.read_text()) for path in paths)


def _line(token: Token) -> int:
    return (token.map or [0])[0] + 1


def _blocks(name: str, tokens: list[Token]) -> Iterator[Block]:
    for token in tokens:
        if token.type == "fence":
            language = (token.info.split() or [""])[0]
            yield Block(name, _line(token) + 1, language, token.content)
        elif token.type == "code_block":
            yield Block(name, _line(token), "indented", token.content)


def _spans(name: str, tokens: list[Token]) -> Iterator[Span]:
    headings: list[str] = []
    column = 0
    for token in tokens:
        if token.type == "table_open":
            headings = []
        elif token.type == "table_close":
            headings, column = [], 0
        elif token.type == "tr_open":
            column = 0
        elif token.type in ("th_close", "td_close"):
            column += 1
        elif token.type == "th_open":
            headings.append("")
        if token.type == "inline":
            in_head = bool(headings) and column == len(headings) - 1 and not headings[column]
            if in_head:
                headings[column] = token.content
            heading = headings[column] if column < len(headings) and not in_head else ""
            for child, line in _children(token):
                if child.type == "code_inline":
                    yield Span(name, line, child.content, heading)


def _links(name: str, tokens: list[Token]) -> Iterator[Link]:
    for token in tokens:
        for child, line in _children(token):
            target = child.attrGet("href" if child.type == "link_open" else "src")
            if child.type in ("link_open", "image") and target is not None:
                yield Link(name, line, str(target))


def _children(token: Token) -> Iterator[tuple[Token, int]]:
    """Yield the parts of a paragraph, each with its line."""
    line = _line(token)
    for child in token.children or ():
        yield child, line
        line += child.type in ("softbreak", "hardbreak")


def _anchors(tokens: list[Token]) -> Iterator[str]:
    for opening, inline in itertools.pairwise(tokens):
        if opening.type == "heading_open":
            words = "".join(child.content for child in inline.children or ())
            yield re.sub(r"[^\w\- ]", "", words.strip().lower()).replace(" ", "-")
