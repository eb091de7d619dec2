"""Removing old versions of a dataset: each conversion makes one, and what the newer ones share stays with them."""

import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from brain_service.datasets.archive import archive_path
from brain_service.datasets.manifest import read_manifest
from brain_service.datasets.versions import exclusive_work, list_versions
from brain_service.durable import fsync_directory
from brain_service.errors import CorruptDataError, InvalidError, NotFoundError, UnavailableError

__all__ = ["PruneReport", "prune_versions"]


@dataclass(frozen=True)
class PruneReport:
    """Which versions were removed, or would be in a dry run, and which stay.

    `damaged` cannot be read: they stay too, since nothing tells whether they hold the only copy of an episode.
    `freed_bytes` leaves out what the versions that stay share with them.
    """

    dataset_dir: Path
    removed: list[str]
    kept: list[str]
    damaged: list[str]
    freed_bytes: int
    dry_run: bool

    def to_json(self) -> dict[str, Any]:
        """Return the report as a JSON-ready mapping."""
        return asdict(self) | {"dataset_dir": str(self.dataset_dir)}


def prune_versions(folder: Path, keep: int, *, dry_run: bool = True) -> PruneReport:
    """Remove all but the newest `keep` versions of each profile of a dataset, with their archives and reports.

    A version goes by one rename, so none is ever seen half removed. Waits while a conversion writes.

    Raises:
        InvalidError: `keep` is less than 1: the newest version is never removed.
        NotFoundError: there is no version in `folder`.
        UnavailableError: the medium refuses.
    """
    if keep < 1:
        raise InvalidError(f"keep {keep}: at least 1, the newest version is never removed", field="keep")
    if not list_versions(folder):
        raise NotFoundError(f"no version of a dataset in {folder}; 'brain datasets ls' lists them")
    try:
        with exclusive_work(folder) as work:
            removed, kept, damaged = _choose(folder, keep)
            doomed = [path for version in removed for path in _folders_of(folder / version)]
            freed_bytes = _freed_bytes(doomed)
            if not dry_run:
                # The work folder is emptied when this block ends, or by whoever comes next if we die before.
                for path in doomed:
                    path.rename(work / path.name)
                fsync_directory(folder)
    except OSError as error:
        raise UnavailableError(f"cannot prune {folder}: {error.strerror or error}; check permissions") from error
    return PruneReport(folder, removed, kept, damaged, freed_bytes, dry_run)


def _choose(folder: Path, keep: int) -> tuple[list[str], list[str], list[str]]:
    """Return the versions that go, those that stay, and those that cannot be read, oldest first."""
    removed: list[str] = []
    kept: list[str] = []
    damaged: list[str] = []
    seen: Counter[str] = Counter()
    for version in reversed(list_versions(folder)):
        try:
            profile = read_manifest(folder / version).profile
        except CorruptDataError:
            damaged.append(version)
            continue
        seen[profile] += 1
        (kept if seen[profile] <= keep else removed).append(version)
    return removed[::-1], kept[::-1], damaged[::-1]


def _folders_of(version: Path) -> list[Path]:
    """Return a version and what stands beside it only for its sake."""
    beside = (archive_path(version), version.with_name(f"{version.name}-report"))
    return [version, *(path for path in beside if path.is_dir())]


def _freed_bytes(folders: Iterable[Path]) -> int:
    """Return the size of the files that have no other name outside these folders."""
    names: Counter[int] = Counter()
    stats: dict[int, os.stat_result] = {}
    for folder in folders:
        for path in folder.rglob("*"):
            stat = path.lstat()
            names[stat.st_ino] += 1
            stats[stat.st_ino] = stat
    return sum(stat.st_size for inode, stat in stats.items() if stat.st_nlink == names[inode])
