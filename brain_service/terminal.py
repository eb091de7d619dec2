"""What commands show a person: lines and tables of text, a progress bar, sizes as text."""

import contextlib
import json
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

__all__ = ["byte_bar", "printable", "progress_bar", "say", "say_json", "size_text", "table_lines"]


def printable(text: str) -> str:
    """Return text with what is not printable (control characters, lone surrogates) escaped as Python does.

    Names of files and episodes come from outside: none may move the cursor or make up a line of its own.
    """
    if text.isprintable():
        return text
    return "".join(character if character.isprintable() else ascii(character)[1:-1] for character in text)


def say(line: str = "") -> None:
    """Write one line to standard output, what is not printable escaped.

    Raises:
        BrokenPipeError: nobody reads it any more.
    """
    sys.stdout.write(f"{printable(line)}\n")


def say_json(document: Any) -> None:
    """Write a JSON-ready document to standard output, indented and in ASCII.

    Raises:
        BrokenPipeError: nobody reads it any more.
    """
    sys.stdout.write(f"{json.dumps(document, indent=2)}\n")


def table_lines(rows: Sequence[Sequence[str]], right: Collection[str] = ()) -> list[str]:
    """Return rows as aligned lines; the first row holds the heads, and columns of those in `right` align there."""
    shown = [[printable(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*shown, strict=True)]
    sides = [">" if head in right else "<" for head in rows[0]]
    return [
        "  ".join(f"{cell:{side}{width}}" for cell, side, width in zip(row, sides, widths, strict=True)).rstrip()
        for row in shown
    ]


@contextlib.contextmanager
def progress_bar(label: str) -> Iterator[Callable[..., None]]:
    """Show a progress bar on standard error where that is a terminal; yields `report(done, total, label)`."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        bar = progress.add_task(label, total=None)

        def report(done: int, total: int, description: str = label) -> None:
            progress.update(bar, completed=done, total=total, description=description)

        yield report


@contextlib.contextmanager
def byte_bar(label: str) -> Iterator[Callable[..., None]]:
    """Show how many bytes are done on standard error where that is a terminal, with speed and time left.

    Yields `report(done_bytes, total_bytes, what)`.
    """
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal) as progress:
        bar = progress.add_task(printable(label), total=None)

        def report(done_bytes: int, total_bytes: int, what: str = "") -> None:
            text = f"{label} {what}".rstrip()
            progress.update(bar, completed=done_bytes, total=total_bytes, description=printable(text))

        yield report


def size_text(size_bytes: float) -> str:
    """Return a size for people, in decimal units: `1.2 MB`."""
    for unit in ("B", "kB", "MB"):
        if size_bytes < 1000:
            return f"{size_bytes:.0f} {unit}" if unit == "B" else f"{size_bytes:.1f} {unit}"
        size_bytes /= 1000
    return f"{size_bytes:.1f} GB"
