"""Versions of a dataset on disk: `<root>/<name>/<x.y.z>/`, written once and never changed."""

import fcntl
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from brain_service.datasets.manifest import Manifest, read_manifest
from brain_service.errors import CorruptDataError

__all__ = ["check_files", "exclusive_work", "find_reusable", "list_versions", "next_version", "sort_versions"]

FIRST_VERSION = "1.0.0"
_VERSION = re.compile(r"(\d+)\.(\d+)\.(\d+)")
_WORK = ".work"
_LOCK = ".lock"


def list_versions(folder: Path) -> list[str]:
    """Return the versions `x.y.z` below a dataset's folder, oldest first; empty where there is no folder."""
    if not folder.is_dir():
        return []
    return sort_versions(entry.name for entry in folder.iterdir() if entry.is_dir())


def sort_versions(names: Iterable[str]) -> list[str]:
    """Return those of the names that are versions `x.y.z`, oldest first."""
    return sorted((name for name in names if _VERSION.fullmatch(name)), key=_order)


def _order(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


def next_version(folder: Path) -> str:
    """Return the version after the newest one: its patch number plus one."""
    versions = list_versions(folder)
    if not versions:
        return FIRST_VERSION
    major, minor, patch = _order(versions[-1])
    return f"{major}.{minor}.{patch + 1}"


def find_reusable(folder: Path, source_digest: str) -> tuple[Path, Manifest] | None:
    """Return the newest intact version that was made of the same sources in the same way, if there is one."""
    for version in reversed(list_versions(folder)):
        try:
            manifest = read_manifest(folder / version)
            if manifest.source_digest == source_digest:
                check_files(folder / version, manifest)
                return folder / version, manifest
        except CorruptDataError:
            # A damaged version is passed over, not repaired: the caller writes the next one.
            continue
    return None


def check_files(folder: Path, manifest: Manifest) -> None:
    """Check that every shard is there, has its size, and that the index stays inside it. Reads no data.

    Raises:
        CorruptDataError: names the file and what is wrong.
    """
    sizes: dict[str, int] = {}
    for shard in manifest.shards:
        path = folder / shard.file
        try:
            sizes[shard.file] = path.stat().st_size
        except FileNotFoundError as error:
            raise CorruptDataError(
                f"{path} is missing; restore it or convert the episodes again", file=shard.file
            ) from error
        if sizes[shard.file] != shard.size_bytes:
            raise CorruptDataError(
                f"{path} has {sizes[shard.file]} bytes, the manifest says {shard.size_bytes}; "
                "restore it or convert the episodes again",
                file=shard.file,
            )
    for entries in manifest.splits.values():
        for entry in entries:
            if entry.offset_bytes + entry.size_bytes > sizes.get(entry.shard, 0):
                raise CorruptDataError(
                    f"{folder / entry.shard}: episode {entry.episode_id} would lie at bytes {entry.offset_bytes} "
                    f"to {entry.offset_bytes + entry.size_bytes}, outside the shards of the manifest",
                    file=entry.shard,
                )


@contextmanager
def exclusive_work(folder: Path) -> Iterator[Path]:
    """Yield an empty work folder inside a dataset's folder while holding the dataset's lock.

    A second converter of the same dataset waits. What a killed one left is removed, and so is this one's work
    when the block ends.

    Raises:
        OSError: the folder cannot be made or locked.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / _LOCK).open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        work = folder / _WORK
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        try:
            yield work
        finally:
            shutil.rmtree(work, ignore_errors=True)
