"""The items of the seed, and the tables of docs/seed-map.md as rows."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
MAP = ROOT / "docs" / "seed-map.md"
ITEMS = Path(__file__).with_name("seed_items")
HEADS = ("the seed", "here", "better", "test")

_MARKED = re.compile(r"`([^`]+)`|\*\*([^*]+)\*\*")
_CODE = re.compile(r"`([^`]+)`")
_LINK = re.compile(r"\]\(([^)]+)\)")


@dataclass(frozen=True)
class Row:
    """One line of a table: what of the seed it answers for, and its other cells as they are written."""

    heading: str
    items: tuple[str, ...]
    here: str
    better: str
    test: str

    @property
    def runner(self) -> str:
        """The test that runs it: the first name in the last cell."""
        return (codes(self.test) or ("",))[0]

    @property
    def arguments(self) -> tuple[str, ...]:
        """The flags and keyword arguments among its items, without what takes them."""
        return tuple(item.rsplit(" ", 1)[-1] for item in self.items if is_argument(item.rsplit(" ", 1)[-1]))

    def __str__(self) -> str:
        return f"{self.runner}-{self.heading.lstrip('# ')}-{self.items[0]}"


def codes(cell: str) -> tuple[str, ...]:
    """Return what a cell sets as code."""
    return tuple(_CODE.findall(cell))


def links(cell: str) -> tuple[str, ...]:
    """Return where a cell's links lead."""
    return tuple(_LINK.findall(cell))


def is_argument(name: str) -> bool:
    """Tell a flag (`--batch-size`) or keyword (`reward=`) from what takes it."""
    return name.startswith("--") or name.endswith("=")


def read_items(text: str) -> dict[str, list[str]]:
    """Return the items of each heading."""
    found: dict[str, list[str]] = {}
    heading = ""
    for line in text.splitlines():
        if line.startswith("[#"):
            heading = line[1:-1]
            assert heading not in found, f"{heading} stands twice"
            found[heading] = []
        elif line and not line.startswith("# "):
            found[heading].append(line)
    return found


def read_rows(text: str) -> tuple[list[str], list[Row]]:
    """Return the map's headings, named as in the seed, and its rows."""
    headings, rows = [], []
    for line in text.splitlines():
        if line.startswith("##"):
            # The seed's title is a section here.
            first = line == "## JAX Training Pipeline for Cloud TPU Production"
            headings.append(line[1:] if first else line)
        elif line.startswith("|"):
            cells = tuple(cell.strip() for cell in line.strip("|").split("|"))
            assert len(cells) == len(HEADS), f"{line}\nhas {len(cells)} cells, not {len(HEADS)}"
            if cells != HEADS and not set(line) <= set("|-"):
                rows.append(Row(headings[-1], tuple(_items(cells[0])), *cells[1:]))
    return headings, rows


def _items(cell: str) -> Iterator[str]:
    """Give what the first cell names; an argument with what it stands behind."""
    taker = ""
    for code, bold in _MARKED.findall(cell):
        name = code or bold
        if is_argument(name):
            yield f"{taker} {name}"
        else:
            taker = name
            yield name
