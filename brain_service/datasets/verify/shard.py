"""One shard: its size and hash, and every record in it."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from brain_service.datasets.example import decode_example
from brain_service.datasets.manifest import EpisodeEntry, ShardEntry
from brain_service.datasets.tfrecord import FRAME_BYTES, frame, read_record
from brain_service.datasets.verify.damage import Damage
from brain_service.datasets.verify.record import RecordCheck
from brain_service.errors import CorruptDataError

__all__ = ["check_shard", "walk_shard"]


def check_shard(
    folder: Path, shard: ShardEntry, entries: Sequence[EpisodeEntry], check: RecordCheck
) -> tuple[int, list[Damage]]:
    """Return how many of a shard's records are sound, and all that does not hold."""
    sound, damages = 0, []
    try:
        with (folder / shard.file).open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            size_bytes = file.tell()
            if size_bytes != shard.size_bytes:
                message = f"has {size_bytes} bytes, the manifest says {shard.size_bytes}"
                damages.append(Damage(shard.file, message))
            elif digest != shard.sha256:
                damages.append(Damage(shard.file, f"has SHA-256 {digest}, the manifest says {shard.sha256}"))
            damages += _layout(shard, entries, size_bytes)
            for entry in entries:
                problems = _check_record(file, shard, entry, check)
                sound += not problems
                damages += [
                    Damage(shard.file, problem, entry.episode_id, entry.offset_bytes) for problem in problems
                ]
    except OSError as error:
        lost = f"; with it {len(entries) - sound} episodes are unreadable"
        damages.append(Damage(shard.file, f"cannot be read: {error.strerror or error}{lost}"))
        check.miss()
    return sound, damages


def _check_record(file: BinaryIO, shard: ShardEntry, entry: EpisodeEntry, check: RecordCheck) -> list[str]:
    if entry.offset_bytes < 0:
        check.miss()
        return [f"the manifest gives it the offset {entry.offset_bytes}"]
    file.seek(entry.offset_bytes)
    try:
        payload = read_record(file, shard.file)
        if payload is None:
            raise CorruptDataError(f"{shard.file} ends before byte {entry.offset_bytes}")
    except CorruptDataError as error:
        check.miss()
        return [error.detail]
    record = frame(payload)
    if len(record) != entry.size_bytes:
        check.miss()
        return [f"its record has {len(record)} bytes, the manifest says {entry.size_bytes}"]
    problems = check(payload, entry, shard.split)
    digest = hashlib.sha256(record).hexdigest()
    if digest != entry.sha256:
        problems.append(f"its record has SHA-256 {digest}, the manifest says {entry.sha256}")
    return problems


def _layout(shard: ShardEntry, entries: Sequence[EpisodeEntry], size_bytes: int) -> list[Damage]:
    """Return where records overlap or bytes lie between them: readers in order would find something else."""
    found, expected = [], 0
    for entry in entries:
        if entry.offset_bytes != expected:
            message = f"the manifest puts it at byte {entry.offset_bytes}, the record before it ends at {expected}"
            found.append(Damage(shard.file, message, entry.episode_id, min(expected, entry.offset_bytes)))
        expected = entry.offset_bytes + entry.size_bytes
    if expected < size_bytes:
        found.append(Damage(shard.file, f"{size_bytes - expected} bytes after the last record", None, expected))
    return found


def walk_shard(path: Path) -> tuple[int, list[Damage]]:
    """Return how many records a shard begins with that are sound by themselves, and at which byte that ends."""
    sound, offset_bytes = 0, 0
    try:
        with path.open("rb") as file:
            while (payload := read_record(file, path.name)) is not None:
                decode_example(payload, f"{path.name}: the record at byte {offset_bytes}")
                offset_bytes += len(payload) + FRAME_BYTES
                sound += 1
    except CorruptDataError as error:
        return sound, [Damage(path.name, error.detail, None, offset_bytes)]
    except OSError as error:
        return sound, [Damage(path.name, f"cannot be read: {error.strerror or error}", None, offset_bytes)]
    return sound, []
