"""The capture files that a conversion reads: found, hashed, and open ones set aside."""

import contextlib
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from brain_service.datasets.manifest import SourceEntry
from brain_service.episodes.archive import ARCHIVE_SUFFIX
from brain_service.episodes.catalogue import read_end, read_header, stored
from brain_service.episodes.publishing import is_published
from brain_service.episodes.reader import episode_digest
from brain_service.errors import CorruptDataError, NotFoundError

__all__ = ["Inventory", "take_inventory"]

SUFFIXES = (".json", ".jsonl", ".jsonl.zst")


@dataclass(frozen=True)
class Inventory:
    """The files to read, in name order, with their hashes, and the open episodes that are left for later."""

    folder: Path
    sources: list[SourceEntry]
    skipped_open: list[str]

    def digest(self, options: Mapping[str, Any]) -> str:
        """Return a hash of the files and of the options that shape the result."""
        document = {"options": options, "sources": [(source.file, source.sha256) for source in self.sources]}
        return hashlib.sha256(orjson.dumps(document, option=orjson.OPT_SORT_KEYS)).hexdigest()


def take_inventory(path: Path) -> Inventory:
    """List the `.json`, `.jsonl` and `.jsonl.zst` files of a directory, without folders below, or take one file.

    A compressed log goes by the name that it had before, so that compression makes no new source of it.

    A log whose JSON document is there as well is left out: the document is the episode.

    An open episode of a directory is skipped: it would change under the reader. A file given by itself is
    read as far as it goes.

    Raises:
        NotFoundError: there is no such file or directory.
        UnavailableError: a file cannot be read.
        OSError: the directory cannot be listed.
    """
    if path.is_file():
        return Inventory(path.parent, [SourceEntry(_plain(path).name, episode_digest(path))], [])
    if not path.is_dir():
        raise NotFoundError(
            f"no file or directory {str(path)!r} to convert; "
            "give a directory of .json, .jsonl or .jsonl.zst episodes, or one file"
        )
    sources, skipped = [], []
    files = [file for file in path.iterdir() if file.name.endswith(SUFFIXES) and not file.name.startswith(".")]
    for file in sorted({_plain(file) for file in files if file.is_file()}):
        # An episode that is deleted meanwhile is none of this conversion's.
        with contextlib.suppress(NotFoundError):
            if _is_open(file):
                skipped.append(file.name)
            elif file.suffix != ".jsonl" or not is_published(file):
                sources.append(SourceEntry(file.name, _digest(file)))
    return Inventory(path, sources, skipped)


def _plain(path: Path) -> Path:
    """Return the path of a log as it was before compression."""
    return path.with_suffix("") if path.suffix == ARCHIVE_SUFFIX else path


def _digest(path: Path) -> str:
    """Return what tells a source from others; a damaged archive goes by its bytes."""
    try:
        return episode_digest(path)
    except CorruptDataError:
        return hashlib.sha256(stored(path).read_bytes()).hexdigest()


def _is_open(path: Path) -> bool:
    """Return whether a file is a capture log without its end record; what has no header of ours is never open."""
    if path.suffix != ".jsonl":
        return False
    try:
        read_header(path)
        return read_end(path) is None
    except (NotFoundError, CorruptDataError):
        return False
