"""The capture files that a conversion reads: found, hashed, and open ones set aside."""

import contextlib
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from brain_service.datasets.manifest import SourceEntry
from brain_service.episodes.catalogue import read_end, read_header
from brain_service.episodes.reader import episode_digest
from brain_service.errors import NotFoundError

__all__ = ["Inventory", "take_inventory"]

SUFFIXES = (".json", ".jsonl")


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
    """List the `.json` and `.jsonl` files of a directory, without those of folders below, or take one file.

    An open episode of a directory is skipped: it would change under the reader. A file given by itself is
    read as far as it goes.

    Raises:
        NotFoundError: there is no such file or directory.
        UnavailableError: a file cannot be read.
        OSError: the directory cannot be listed.
    """
    if path.is_file():
        return Inventory(path.parent, [SourceEntry(path.name, episode_digest(path))], [])
    if not path.is_dir():
        raise NotFoundError(
            f"no file or directory {str(path)!r} to convert; "
            "give a directory of .json or .jsonl episodes, or one file"
        )
    sources, skipped = [], []
    for file in sorted(path.iterdir()):
        if file.suffix not in SUFFIXES or file.name.startswith(".") or not file.is_file():
            continue
        # An episode that is deleted meanwhile is none of this conversion's.
        with contextlib.suppress(NotFoundError):
            if _is_open(file):
                skipped.append(file.name)
            else:
                sources.append(SourceEntry(file.name, episode_digest(file)))
    return Inventory(path, sources, skipped)


def _is_open(path: Path) -> bool:
    """Return whether a file is a capture log without its end record; what has no header of ours is never open."""
    if path.suffix != ".jsonl":
        return False
    try:
        read_header(path)
    except NotFoundError:
        return False
    return read_end(path) is None
