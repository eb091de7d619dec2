"""Capture logs to an RLDS dataset in TFDS layout, without TensorFlow.

    <output>/<name>/<x.y.z>/   features.json, dataset_info.json, shards: what TFDS reads
                               manifest.json, statistics.json, dataset_statistics.json: what we read
    <output>/<name>/<x.y.z>-archive/   with `compress`: gzipped shards for transport

A version appears whole or not at all, and never changes afterwards. The next one reads only what is new or
changed and shares the shards that hold still. Memory holds one episode a process at a time.
"""

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from brain_service.datasets.archive import write_archive
from brain_service.datasets.build import (
    BuildOptions,
    Changes,
    Progress,
    build_version,
    compare,
    nothing_to_convert,
)
from brain_service.datasets.columns import PROFILES, Profile
from brain_service.datasets.manifest import LeftOut, Manifest, SourceEntry
from brain_service.datasets.shards import Base
from brain_service.datasets.source_cache import SourceCache
from brain_service.datasets.sources import Inventory, require_input, sources_digest, take_inventory
from brain_service.datasets.versions import exclusive_work, find_bases, next_version, set_orphans_aside
from brain_service.durable import publish_directory
from brain_service.errors import CorruptDataError, InvalidError, UnavailableError

__all__ = ["SHARD_BYTES", "ConvertReport", "check_options", "convert_directory_to_tfrecord", "version_digest"]

SHARD_BYTES = 256 * 1024**2
MOST_JOBS = 4
_NAME = re.compile(r"[a-z][a-z0-9_]*")
# Part of the sources' digest: a change in how a version is laid out must not reuse old versions.
_FORMAT = 3


@dataclass(frozen=True)
class ConvertReport:
    """What a conversion made, and what it left out and why.

    `steps` counts stored steps: in the `rlds` profile final observations are steps too. `reused` means that an
    existing version was made of the same input in the same way, and nothing was written.

    The lists from `new` on are names of files: those that were not known, that are other than they were, that
    were not read again; those that are gone while their episodes stay (`kept`), and whose episodes went too
    (`dropped`). `shared_shards` of the `shards` are links to the earlier version's. `passed_over` are damaged
    versions that could not be built upon, `orphans` files that had no place in the earlier version and were moved.
    """

    dataset_dir: Path
    name: str
    version: str
    profile: str
    episodes: int
    steps: int
    splits: dict[str, int]
    quarantined: list[dict[str, str]]
    skipped_open: list[str]
    reused: bool
    archive_dir: Path | None
    new: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    unchanged: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    shards: int = 0
    shared_shards: int = 0
    passed_over: list[dict[str, str]] = field(default_factory=list)
    orphans: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Return the report as a JSON-ready mapping; paths are strings."""
        archive = None if self.archive_dir is None else str(self.archive_dir)
        return asdict(self) | {"dataset_dir": str(self.dataset_dir), "archive_dir": archive}


def check_options(options: BuildOptions) -> None:
    """Check what shapes a version.

    Raises:
        InvalidError: an option is out of its range; names it.
    """
    if not _NAME.fullmatch(options.name):
        raise InvalidError(
            f"dataset name {options.name!r}: use lower-case letters, digits and '_', a letter first", field="name"
        )
    if options.profile not in PROFILES:
        raise InvalidError(f"profile {options.profile!r} is none of {', '.join(PROFILES)}", field="profile")
    if not 0 <= options.val_fraction < 1:
        raise InvalidError(
            f"val_fraction {options.val_fraction} is not in [0, 1): 0.1 keeps a tenth for validation",
            field="val_fraction",
        )
    if options.shard_bytes <= 0:
        raise InvalidError(f"shard_bytes {options.shard_bytes} is not positive", field="shard_bytes")
    if options.jobs <= 0:
        raise InvalidError(f"jobs {options.jobs} is not positive; 1 converts in this process", field="jobs")


def version_digest(sources: Iterable[SourceEntry], options: BuildOptions) -> str:
    """Return what tells a version from others: a hash of its sources and of the options that shape it."""
    shape = {"format": _FORMAT, "profile": options.profile, "val_fraction": options.val_fraction}
    return sources_digest(sources, shape)


def convert_directory_to_tfrecord(
    input_dir: str | Path,
    output_dir: str | Path,
    compress: bool = False,
    *,
    name: str = "episodes",
    profile: Profile = "oxe",
    val_fraction: float = 0.1,
    shard_bytes: int = SHARD_BYTES,
    drop_missing: bool = False,
    jobs: int | None = None,
    progress: Progress | None = None,
) -> ConvertReport:
    """Convert a directory of episodes, or one `.json` or `.jsonl` file, to `<output_dir>/<name>/<x.y.z>/`.

    The newest version of this profile is reused if its input was the same. Otherwise the next version is written:
    it reads new and changed files only, and shares unchanged shards with that version. Episodes of files that are
    gone stay, unless `drop_missing`: logs may be deleted once a dataset holds them. Open episodes of a directory
    are skipped; episodes that cannot be read, or whose features differ from those of most episodes, are left out
    with the reason; all of it is in the report.

    `jobs` processes read large inputs (default: one a core, at most 4); the result does not depend on it.
    `progress(done, total)` counts files, also comes again with the same figures, and may raise to stop.

    `compress` also writes a transport archive of gzipped shards beside the dataset, which itself stays plain
    since TFDS reads nothing else.

    Raises:
        NotFoundError: there is no such input.
        InvalidError: a wrong option, or no episode that can be converted; says what to do.
        UnavailableError: the output cannot be written, the input not read, or a process died; no version appears.
    """
    jobs = min(os.cpu_count() or 1, MOST_JOBS) if jobs is None else jobs
    options = BuildOptions(name, profile, val_fraction, shard_bytes, jobs)
    check_options(options)
    source, folder = Path(input_dir), Path(output_dir) / name
    try:
        require_input(source)
        with exclusive_work(folder) as work:
            cache = SourceCache(folder, source)
            tell = progress or _ignore_progress
            inventory = take_inventory(source, cache, lambda total: tell(0, total))
            if not inventory.sources:
                raise nothing_to_convert(inventory, [])
            report = _Conversion(inventory, folder, work, options, drop_missing, tell).run(compress)
            cache.save()
            return report
    except OSError as error:
        raise UnavailableError(
            f"cannot convert {input_dir} to {folder}: {error.strerror or error}; "
            "check permissions and free space, then start again: nothing half-written was kept"
        ) from error


def _ignore_progress(done: int, total: int) -> None:
    """Stand in where nobody watches."""


@dataclass
class _Conversion:
    """One conversion, its dataset locked."""

    inventory: Inventory
    folder: Path
    work: Path
    options: BuildOptions
    drop_missing: bool
    progress: Progress
    passed_over: list[LeftOut] = field(default_factory=list)
    orphans: list[str] = field(default_factory=list)

    def run(self, compress: bool) -> ConvertReport:
        """Reuse a version or build the next one, then its archive."""
        for base in self._bases():
            changes = compare(self.inventory, base, self.drop_missing)
            digest = self._digest(changes)
            if base is not None and base.manifest.source_digest == digest:
                self.progress(len(self.inventory.sources), len(self.inventory.sources))
                return self._report(base.folder, base.manifest, changes, base, compress, None)
            version = next_version(self.folder)
            attempt = self.work / f"on-{base.folder.name if base is not None else 'nothing'}"
            attempt.mkdir()
            try:
                manifest, shared = build_version(
                    self.inventory, base, changes, attempt, self.options, version, digest, self.progress
                )
            except CorruptDataError as error:
                if base is None:
                    raise
                # What it holds is no longer what it held: an older one, or none, is built upon instead.
                self.passed_over.append(LeftOut(base.folder.name, error.detail))
                continue
            publish_directory(attempt / version, self.folder / version)
            return self._report(self.folder / version, manifest, changes, base, compress, shared)
        raise AssertionError("without a base the build ends in a version or an error")

    def _bases(self) -> Iterator[Base | None]:
        for found in find_bases(self.folder, self.options.profile):
            if isinstance(found, LeftOut):
                self.passed_over.append(found)
            else:
                self.orphans += set_orphans_aside(*found)
                yield Base(*found)
        yield None

    def _digest(self, changes: Changes) -> str:
        return version_digest([*self.inventory.sources, *changes.kept_sources], self.options)

    def _report(
        self,
        path: Path,
        manifest: Manifest,
        changes: Changes,
        base: Base | None,
        compress: bool,
        shared: int | None,
    ) -> ConvertReport:
        """Return the report, once the archive is written; `shared` is None where the version stood already."""
        files = len(self.inventory.sources)
        tick = partial(self.progress, files, files)
        archive = write_archive(path, manifest, self.work, self.options.jobs, base, tick) if compress else None
        return ConvertReport(
            dataset_dir=path,
            name=manifest.name,
            version=manifest.version,
            profile=manifest.profile,
            episodes=sum(manifest.split_episodes().values()),
            steps=sum(entry.length for entries in manifest.splits.values() for entry in entries),
            splits=manifest.split_episodes(),
            quarantined=[{"file": item.file, "reason": item.reason} for item in manifest.quarantined],
            skipped_open=self.inventory.skipped_open,
            reused=shared is None,
            archive_dir=archive,
            new=changes.new,
            changed=changes.changed,
            unchanged=changes.unchanged,
            kept=changes.kept,
            dropped=changes.dropped,
            shards=len(manifest.shards),
            shared_shards=len(manifest.shards) if shared is None else shared,
            passed_over=[{"version": item.file, "reason": item.reason} for item in self.passed_over],
            orphans=self.orphans,
        )
