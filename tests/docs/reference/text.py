"""Docstrings and tables as Markdown."""

import inspect
import re
from collections.abc import Iterable, Sequence

__all__ = ["anchor", "cell", "first_paragraph", "prose", "table"]

_SECTION = re.compile(r"^(Raises|Args|Returns|Yields):[ \t]*$", re.MULTILINE)


def cell(text: str) -> str:
    """Return a text as one cell of a table."""
    return " ".join(text.split()).replace("|", "\\|")


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Return the lines of a table, and an empty one behind it; no lines without rows."""
    lines = [f"| {' | '.join(cell(value) for value in row)} |" for row in rows]
    return [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}", *lines, ""] if lines else []


def prose(docstring: str) -> str:
    """Return a docstring without its sections."""
    found = _SECTION.search(text := inspect.cleandoc(docstring))
    return text[: found.start()].strip() if found else text


def first_paragraph(docstring: str) -> str:
    """Return what a docstring says first, on one line."""
    return " ".join(prose(docstring).partition("\n\n")[0].split())


def anchor(heading: str) -> str:
    """Return what GitHub makes of a heading for links to it."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")
