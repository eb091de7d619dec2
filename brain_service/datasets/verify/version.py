"""The check of one dataset version, from its manifest down to every record."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

from brain_service.datasets.manifest import MANIFEST_FILE, Manifest, read_manifest
from brain_service.datasets.verify.damage import Damage, VerifyReport
from brain_service.datasets.verify.record import RecordCheck
from brain_service.datasets.verify.shard import check_shard, walk_shard
from brain_service.datasets.verify.sidecars import check_layout, check_statistics
from brain_service.datasets.versions import list_versions
from brain_service.errors import BrainError, InvalidError, NotFoundError

__all__ = ["verify_dataset", "version_folder"]

Progress = Callable[[int, int], None]
"""Called with the bytes done and their total."""

_SHARDS = "*.tfrecord*"


def version_folder(path: Path) -> Path:
    """Return the version folder that a path means, as `open_dataset` does, whether it is whole or not.

    Raises:
        NotFoundError: nothing there is a dataset.
        InvalidError: a root of several datasets; names them.
    """
    if (path / MANIFEST_FILE).is_file() or any(path.glob(_SHARDS)):
        return path
    if versions := list_versions(path):
        return path / versions[-1]
    names = sorted(child for child in path.iterdir() if list_versions(child)) if path.is_dir() else []
    if len(names) > 1:
        raise InvalidError(
            f"{path} holds several datasets, {', '.join(name.name for name in names)}; give one of their folders"
        )
    if not names:
        raise NotFoundError(f"no dataset at {path}; make one with 'brain convert'")
    return names[0] / list_versions(names[0])[-1]


def verify_dataset(path: str | Path, progress: Progress | None = None) -> VerifyReport:
    """Read every byte of a dataset version and return all that does not hold.

    Raises:
        NotFoundError: nothing there is a dataset.
        InvalidError: a root of several datasets.
    """
    progress = progress or _ignore
    folder = version_folder(Path(path))
    try:
        manifest = read_manifest(folder)
        check = RecordCheck(manifest.episode_spec(), manifest.profile)
    except BrainError as error:
        return _without_manifest(folder, error.detail, progress)
    damages = _index(folder, manifest)
    total = sum(shard.size_bytes for shard in manifest.shards)
    done = sound = 0
    for shard in manifest.shards:
        entries = [entry for entry in manifest.splits.get(shard.split, []) if entry.shard == shard.file]
        good, found = check_shard(folder, shard, entries, check)
        sound += good
        damages += found
        done += shard.size_bytes
        progress(done, total)
    damages += check_layout(folder, manifest) + check_statistics(folder, manifest, check)
    episodes = sum(manifest.split_episodes().values())
    return VerifyReport(str(folder), episodes, sound, len(manifest.shards), total, damages)


def _ignore(done: int, total: int) -> None:
    """Stand in where nobody watches."""


def _without_manifest(folder: Path, reason: str, progress: Progress) -> VerifyReport:
    """Walk the shards that are there: what their own checksums tell."""
    damages = [Damage(MANIFEST_FILE, f"{reason}; without it only the checksums of each record were looked at")]
    files = sorted(folder.glob(_SHARDS))
    sizes = [file.stat().st_size for file in files]
    sound, done = 0, 0
    for file, size_bytes in zip(files, sizes, strict=True):
        good, found = walk_shard(file)
        sound += good
        damages += found
        done += size_bytes
        progress(done, sum(sizes))
    return VerifyReport(str(folder), sound, sound, len(files), done, damages)


def _index(folder: Path, manifest: Manifest) -> list[Damage]:
    """Hold the manifest against itself and the folder's list of files."""
    listed = {shard.file: shard for shard in manifest.shards}
    found = [
        Damage(file.name, "is not in the manifest, so nobody reads it; move it away or convert again")
        for file in sorted(folder.glob(_SHARDS))
        if file.name not in listed
    ]
    messages = []
    ids = Counter(entry.episode_id for entries in manifest.splits.values() for entry in entries)
    messages += [f"lists episode {name} {count} times" for name, count in ids.items() if count > 1]
    if len(listed) < len(manifest.shards):
        messages.append("lists a shard twice")
    for split, entries in manifest.splits.items():
        for entry in entries:
            shard = listed.get(entry.shard)
            if shard is None or shard.split != split:
                messages.append(
                    f"says that episode {entry.episode_id} of {split} lies in {entry.shard}, no such shard"
                )
    for shard in manifest.shards:
        count = sum(entry.shard == shard.file for entry in manifest.splits.get(shard.split, []))
        if count != shard.episodes:
            messages.append(f"counts {shard.episodes} episodes in {shard.file} and lists {count}")
    return found + [Damage(MANIFEST_FILE, message) for message in messages]
