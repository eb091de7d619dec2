"""The folder of a spooled episode: who holds it, what its files say, and which of them wait to be resent."""

import contextlib
import fcntl
import os
import struct
import zlib
from pathlib import Path

import msgspec

from brain_service.client.errors import SpoolError
from brain_service.client.wire import JsonObject

__all__ = [
    "RECORD",
    "SET_ASIDE",
    "read_continued",
    "read_episode",
    "read_object",
    "read_records",
    "set_folder_aside",
    "take_lock",
    "waiting_spools",
]

RECORD = struct.Struct("<II")
SET_ASIDE = ".rejected"


def read_records(data: bytes) -> tuple[list[bytes], int]:
    """Return the whole, undamaged records at the start of `data`, and how many bytes they take."""
    steps: list[bytes] = []
    place = 0
    while place + RECORD.size <= len(data):
        length, crc = RECORD.unpack_from(data, place)
        step = data[place + RECORD.size : place + RECORD.size + length]
        if len(step) < length or zlib.crc32(step) != crc:
            break
        steps.append(step)
        place += RECORD.size + length
    return steps, place


def read_object(path: Path) -> JsonObject:
    """Return the JSON object in a file.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no JSON object.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=JsonObject)
    except RecursionError as error:
        raise ValueError(f"{path.name}: {error}") from error


def read_episode(path: Path) -> JsonObject:
    """Return the body that creates the episode.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no such body.
    """
    document = read_object(path / "episode.json")
    if not isinstance(document.get("episode_id"), str):
        raise ValueError("episode.json has no episode_id")
    return document


def read_continued(path: Path) -> list[int]:
    """Return the first steps of the recording's second and later episodes.

    Raises:
        OSError: the note cannot be read.
        ValueError: it is damaged.
    """
    try:
        return msgspec.json.decode((path / "continued.json").read_bytes(), type=list[int])
    except FileNotFoundError:
        return []


def set_folder_aside(path: Path) -> None:
    """Rename it to `<id>.rejected`, where nobody resends it."""
    with contextlib.suppress(OSError):
        path.rename(path.with_name(path.name + SET_ASIDE))


def take_lock(path: Path) -> int:
    """Return the open lock file, which is held until it is closed.

    Raises:
        OSError: another process or recorder holds it, or there is no such folder.
    """
    fd = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        raise
    return fd


def waiting_spools(root: Path) -> list[Path]:
    """Return the folders under `root` that hold an episode to be resent, oldest first.

    Raises:
        SpoolError: they cannot be read.
    """
    found: list[tuple[int, str, Path]] = []
    try:
        for path in root.iterdir() if root.is_dir() else ():
            with contextlib.suppress(FileNotFoundError, NotADirectoryError, PermissionError):
                # The suppressed are no spools of ours, or were brought home just now.
                if path.suffix != SET_ASIDE:
                    found.append(((path / "episode.json").stat().st_mtime_ns, path.name, path))
    except OSError as error:
        raise SpoolError(f"cannot list the offline buffers in {root}: {error.strerror}; see spool_dir") from error
    return [path for _, _, path in sorted(found)]
