"""What commands show a person: a progress bar, sizes and times as text."""

import contextlib
from collections.abc import Callable, Iterator

__all__ = ["progress_bar", "size_text"]


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


def size_text(size_bytes: float) -> str:
    """Return a size for people, in decimal units: `1.2 MB`."""
    for unit in ("B", "kB", "MB"):
        if size_bytes < 1000:
            return f"{size_bytes:.0f} {unit}" if unit == "B" else f"{size_bytes:.1f} {unit}"
        size_bytes /= 1000
    return f"{size_bytes:.1f} GB"
