"""Capture logs to an RLDS dataset in TFDS layout, without TensorFlow.

    <output>/<name>/<x.y.z>/   features.json, dataset_info.json, shards: what TFDS reads
                               manifest.json, statistics.json, dataset_statistics.json: what we read
    <output>/<name>/<x.y.z>-archive/   with `compress`: gzipped shards for transport

A version appears whole or not at all, and never changes afterwards. Memory holds one episode at a time.
"""

import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from brain_service.datasets.archive import write_archive
from brain_service.datasets.build import BuildOptions, Progress, build_version, nothing_to_convert
from brain_service.datasets.columns import PROFILES, Profile
from brain_service.datasets.sources import Inventory, take_inventory
from brain_service.datasets.versions import exclusive_work, find_reusable, next_version
from brain_service.durable import publish_directory
from brain_service.errors import InvalidError, UnavailableError

__all__ = ["ConvertReport", "convert_directory_to_tfrecord"]

SHARD_BYTES = 256 * 1024**2
_NAME = re.compile(r"[a-z][a-z0-9_]*")
# Part of the sources' digest: a change in what is written for the same input must not reuse old versions.
_FORMAT = 2


@dataclass(frozen=True)
class ConvertReport:
    """What a conversion made, and what it left out and why.

    `steps` counts stored steps: in the `rlds` profile final observations are steps too. `reused` means that an
    existing version was made of the same input in the same way, and nothing was written.
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

    def to_json(self) -> dict[str, Any]:
        """Return the report as a JSON-ready mapping; paths are strings."""
        archive = None if self.archive_dir is None else str(self.archive_dir)
        return asdict(self) | {"dataset_dir": str(self.dataset_dir), "archive_dir": archive}


def _check(options: BuildOptions) -> None:
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


def convert_directory_to_tfrecord(
    input_dir: str | Path,
    output_dir: str | Path,
    compress: bool = False,
    *,
    name: str = "episodes",
    profile: Profile = "oxe",
    val_fraction: float = 0.1,
    shard_bytes: int = SHARD_BYTES,
    progress: Progress | None = None,
) -> ConvertReport:
    """Convert a directory of episodes, or one `.json` or `.jsonl` file, to `<output_dir>/<name>/<x.y.z>/`.

    The same input as an existing version is reused, otherwise the next version is written. Open episodes of a
    directory are skipped; episodes that cannot be read, or whose features differ from those of most episodes,
    are left out with the reason; both are in the report. `progress(done, total)` counts files.

    `compress` also writes a transport archive of gzipped shards beside the dataset, which itself stays plain
    since TFDS reads nothing else.

    Raises:
        NotFoundError: there is no such input.
        InvalidError: a wrong option, or no episode that can be converted; says what to do.
        UnavailableError: the output cannot be written or the input not read; no version appears.
    """
    options = BuildOptions(name, profile, val_fraction, shard_bytes)
    _check(options)
    folder = Path(output_dir) / name
    try:
        inventory = take_inventory(Path(input_dir))
        if not inventory.sources:
            raise nothing_to_convert(inventory, [])
        with exclusive_work(folder) as work:
            return _convert(inventory, folder, work, options, compress, progress or _ignore_progress)
    except OSError as error:
        raise UnavailableError(
            f"cannot convert {input_dir} to {folder}: {error.strerror or error}; "
            "check permissions and free space, then start again: nothing half-written was kept"
        ) from error


def _ignore_progress(done: int, total: int) -> None:
    """Stand in where nobody watches."""


def _convert(
    inventory: Inventory,
    folder: Path,
    work: Path,
    options: BuildOptions,
    compress: bool,
    progress: Progress,
) -> ConvertReport:
    digest = inventory.digest(
        {"format": _FORMAT, "profile": options.profile, "val_fraction": options.val_fraction}
    )
    found = find_reusable(folder, digest)
    if found is not None:
        path, manifest = found
        progress(len(inventory.sources), len(inventory.sources))
    else:
        version = next_version(folder)
        path = folder / version
        manifest = build_version(inventory, work, options, version, digest, progress)
        publish_directory(work / version, path)
    archive = write_archive(path, manifest, work) if compress else None
    return ConvertReport(
        dataset_dir=path,
        name=manifest.name,
        version=manifest.version,
        profile=manifest.profile,
        episodes=sum(len(entries) for entries in manifest.splits.values()),
        steps=sum(entry.length for entries in manifest.splits.values() for entry in entries),
        splits={split: len(entries) for split, entries in manifest.splits.items()},
        quarantined=[{"file": item.file, "reason": item.reason} for item in manifest.quarantined],
        skipped_open=inventory.skipped_open,
        reused=found is not None,
        archive_dir=archive,
    )
