"""Versions of a dataset on disk: `<root>/<name>/<x.y.z>/`, written once and never changed."""

import fcntl
import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from brain_service.datasets.columns import Profile
from brain_service.datasets.manifest import (
    MANIFEST_FILE,
    RECORD_FORMAT,
    LeftOut,
    Manifest,
    parse_manifest,
    read_manifest,
)
from brain_service.datasets.storage import Folder, LocalFolder
from brain_service.durable import fsync_directory, make_directory
from brain_service.errors import CorruptDataError, NotFoundError

__all__ = [
    "check_index",
    "exclusive_work",
    "find_bases",
    "list_versions",
    "newest_version",
    "next_version",
    "set_orphans_aside",
    "sort_versions",
    "version_after",
]

FIRST_VERSION = "1.0.0"
_VERSION = re.compile(r"(\d+)\.(\d+)\.(\d+)")
_WORK = ".work"
_LOCK = ".lock"
_ORPHANS = "orphans"


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
    return version_after(list_versions(folder))


def version_after(versions: Sequence[str]) -> str:
    """Return the version after the last of these: its patch number plus one."""
    if not versions:
        return FIRST_VERSION
    major, minor, patch = _order(versions[-1])
    return f"{major}.{minor}.{patch + 1}"


def find_bases(folder: Path, profile: Profile) -> Iterator[tuple[Path, Manifest] | LeftOut]:
    """Yield the intact versions that a new one of this profile can build on, newest first.

    A damaged version is passed over, not repaired, and yielded as what is wrong with it.
    """
    for version in reversed(list_versions(folder)):
        path = folder / version
        try:
            manifest = read_manifest(path)
            if manifest.profile == profile and manifest.record_format == RECORD_FORMAT:
                check_index(LocalFolder(path), manifest)
                yield path, manifest
        except CorruptDataError as error:
            yield LeftOut(version, error.detail)


def newest_version(folder: Folder, profile: Profile) -> Manifest | None:
    """Return the manifest of the newest intact version of this profile, on disk or on a bucket; None without one.

    Raises:
        UnavailableError: the folder cannot be listed.
    """
    for version in reversed(sort_versions(folder.subfolders())):
        place = folder.child(version)
        try:
            manifest = parse_manifest(place.read(MANIFEST_FILE), f"{place.location}/{MANIFEST_FILE}")
            if manifest.profile == profile and manifest.record_format == RECORD_FORMAT:
                check_index(place, manifest)
                return manifest
        except (CorruptDataError, NotFoundError):
            continue
    return None


def set_orphans_aside(folder: Path, manifest: Manifest) -> list[str]:
    """Move shards that a version's manifest does not know to `orphans/<version>/` beside it; returns where to.

    No converter writes into a published version: another tool did, or a copy went wrong.

    Raises:
        OSError: the medium refuses.
    """
    known = {shard.file for shard in manifest.shards}
    orphans = sorted(path for path in folder.iterdir() if ".tfrecord" in path.name and path.name not in known)
    return [str(_set_aside(path, folder.parent / _ORPHANS / folder.name)) for path in orphans]


def _set_aside(path: Path, target: Path) -> Path:
    """Move a file into a folder, under a name that nothing has there."""
    make_directory(target)
    names = (target / path.name, *(target / f"{path.name}.{n}" for n in range(1, 1000)))
    free = next(name for name in names if not name.exists())
    path.rename(free)
    fsync_directory(target)
    return free


def check_index(folder: Folder, manifest: Manifest) -> None:
    """Check that every shard is there, has its size, and that the index stays inside it. Reads no data.

    Raises:
        CorruptDataError: names the file and what is wrong.
    """
    sizes = folder.sizes()
    for shard in manifest.shards:
        place = f"{folder.location}/{shard.file}"
        if shard.file not in sizes:
            raise CorruptDataError(
                f"{place} is missing; restore it or convert the episodes again", file=shard.file
            )
        if sizes[shard.file] != shard.size_bytes:
            raise CorruptDataError(
                f"{place} has {sizes[shard.file]} bytes, the manifest says {shard.size_bytes}; "
                "restore it or convert the episodes again",
                file=shard.file,
            )
    for entries in manifest.splits.values():
        for entry in entries:
            if entry.offset_bytes + entry.size_bytes > sizes.get(entry.shard, 0):
                raise CorruptDataError(
                    f"{folder.location}/{entry.shard}: episode {entry.episode_id} would lie at bytes "
                    f"{entry.offset_bytes} to {entry.offset_bytes + entry.size_bytes}, outside the shards of the "
                    "manifest",
                    file=entry.shard,
                )


@contextmanager
def exclusive_work(folder: Path) -> Iterator[Path]:
    """Yield an empty work folder inside a dataset's folder while holding the dataset's lock.

    A second converter of the same dataset waits. What a killed one left is removed, and so is this one's work
    when the block ends: nothing in it was ever seen, and its sources are still there.

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
