"""A folder of work that one process holds and that vanishes with it, beside what it will become."""

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from brain_service.durable import publish_directory
from brain_service.errors import ConflictError

__all__ = ["held_folder", "published_folder"]


@contextmanager
def held_folder(folder: Path) -> Iterator[Path]:
    """Yield `folder`, empty and locked; what a killed holder left in it is removed, and so is this one's rest.

    Raises:
        ConflictError: another process holds it.
        OSError: it cannot be made.
    """
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConflictError(
                f"another process works in {folder}; wait for it, or end it and start again"
            ) from error
        for child in folder.iterdir():
            shutil.rmtree(child) if child.is_dir() else child.unlink()
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(descriptor)


@contextmanager
def published_folder(final: Path) -> Iterator[Path]:
    """Yield a folder that becomes `final` when the block ends without an error: whole or not at all.

    Raises:
        ConflictError: `final` holds something already, or another process writes it.
        OSError: it cannot be written.
    """
    _require_new(final)
    with held_folder(final.with_name(f".{final.name}.work")) as work:
        yield work
        # Whoever held the folder before may have published meanwhile.
        _require_new(final)
        with contextlib.suppress(FileNotFoundError):
            final.rmdir()
        publish_directory(work, final)


def _require_new(final: Path) -> None:
    if final.exists() and (not final.is_dir() or any(final.iterdir())):
        raise ConflictError(f"{final} is there already; give a new folder, or remove it first")
