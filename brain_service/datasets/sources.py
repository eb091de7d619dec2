"""The capture files that a conversion reads: found, hashed, and open ones set aside."""

import contextlib
import hashlib
import os
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import orjson

from brain_service.datasets.manifest import SourceEntry
from brain_service.datasets.patience import results
from brain_service.datasets.source_cache import SourceCache
from brain_service.episodes.archive import ARCHIVE_SUFFIX
from brain_service.episodes.catalogue import read_end, read_header, stored
from brain_service.episodes.publishing import is_published
from brain_service.episodes.reader import episode_digest
from brain_service.errors import CorruptDataError, NotFoundError

__all__ = ["Inventory", "require_input", "sources_digest", "take_inventory"]

# Those that end in .gz are not read: they are listed so that the report says so.
SUFFIXES = (".json", ".jsonl", ".jsonl.zst", ".json.gz", ".jsonl.gz")
# Hashing lets go of the interpreter: a few threads keep the cores and the medium busy.
_HASH_THREADS = 4


@dataclass(frozen=True)
class Inventory:
    """The files to read, in name order, with their hashes, and the open episodes that are left for later."""

    folder: Path
    sources: list[SourceEntry]
    skipped_open: list[str]

    def size_bytes(self, files: Iterable[str]) -> int:
        """Return the bytes of these files on disk, compressed as they are; one that is gone counts nothing."""
        total = 0
        for file in files:
            with contextlib.suppress(FileNotFoundError):
                total += stored(self.folder / file).stat().st_size
        return total


def sources_digest(sources: Iterable[SourceEntry], options: Mapping[str, Any]) -> str:
    """Return a hash of files and of the options that shape the result."""
    pairs = sorted((source.file, source.sha256) for source in sources)
    document = {"options": options, "sources": pairs}
    return hashlib.sha256(orjson.dumps(document, option=orjson.OPT_SORT_KEYS)).hexdigest()


def require_input(path: Path) -> None:
    """Check that there is something to convert.

    Raises:
        NotFoundError: there is no such file or directory.
    """
    if not path.exists():
        raise NotFoundError(
            f"no file or directory {str(path)!r} to convert; "
            "give a directory of .json, .jsonl or .jsonl.zst episodes, or one file"
        )


def take_inventory(
    path: Path, cache: SourceCache | None = None, tick: Callable[[int], None] | None = None
) -> Inventory:
    """List the `.json`, `.jsonl` and `.jsonl.zst` files of a directory, without folders below, or take one file.

    A compressed log goes by the name that it had before, so that compression makes no new source of it.

    A log whose JSON document is there as well is left out: the document is the episode.

    An open episode of a directory is skipped: it would change under the reader. A file given by itself is
    read as far as it goes. What `cache` knows is not read again. While files are hashed, `tick` is called with
    their number several times a second, and may raise to stop.

    Raises:
        NotFoundError: there is no such file or directory.
        UnavailableError: a file cannot be read.
        OSError: the directory cannot be listed.
    """
    require_input(path)
    if path.is_file():
        return Inventory(path.parent, [SourceEntry(_plain(path).name, _digest(path))], [])
    with os.scandir(path) as entries:
        found = {entry.name for entry in entries if _is_candidate(entry)}
    files = sorted({_plain(path / name) for name in found})
    cache = cache or SourceCache(path, path)
    with ThreadPoolExecutor(_HASH_THREADS, thread_name_prefix="hash") as pool:
        looking = [pool.submit(_look, file, found, cache) for file in files]
        looked = list(results(looking, None if tick is None else lambda: tick(len(files))))
    sources = [entry for entry in looked if isinstance(entry, SourceEntry)]
    return Inventory(
        path, sources, [file.name for file, entry in zip(files, looked, strict=True) if entry == "open"]
    )


def _is_candidate(entry: "os.DirEntry[str]") -> bool:
    return entry.name.endswith(SUFFIXES) and not entry.name.startswith(".") and entry.is_file()


def _look(file: Path, found: set[str], cache: SourceCache) -> SourceEntry | Literal["open", "none"]:
    """Return the source, or that it is open or none: its document is there too, or it was deleted meanwhile."""
    has_document = file.suffix == ".jsonl" and file.with_suffix(".json").name in found
    try:
        on_disk, now_ns = stored(file), time.time_ns()
        stat = on_disk.stat()
        if has_document and is_published(file):
            return "none"
        if (known := cache.get(on_disk.name, stat)) is not None:
            return SourceEntry(file.name, known)
        if _is_open(file):
            return "open"
        digest = _digest(file)
    except (FileNotFoundError, NotFoundError):
        return "none"
    cache.put(on_disk.name, stat, now_ns, digest)
    return SourceEntry(file.name, digest)


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
