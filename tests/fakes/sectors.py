"""One file between its flushes: which versions of each sector, and of its size, may be on the medium."""

import itertools
import random
from dataclasses import dataclass, field
from typing import Any, Literal

__all__ = ["SECTOR_BYTES", "Fate", "File", "Version"]

SECTOR_BYTES = 512


@dataclass(frozen=True, slots=True)
class Fate:
    """What becomes of the unflushed: `data` of files and `entries` of folders, by a rule or by lot."""

    data: Literal["lost", "kept", "torn", "mixed"]
    entries: Literal["lost", "kept", "mixed"]


@dataclass(slots=True, eq=False)
class Version:
    """What a sector, or a file's size, became by one change: `born` is its begin, `at` its end (None: running)."""

    value: Any
    born: int
    at: int | None = None
    lost: bool = False
    shrinks: bool = False


@dataclass(slots=True, eq=False)
class File:
    """A file: `data` as processes see it, `base` as the medium surely has it, and what is open between them.

    `base` is padded to whole sectors; `base_size` is the size that is sure.
    """

    base: bytearray = field(default_factory=bytearray)
    base_size: int = 0
    data: bytearray = field(default_factory=bytearray)
    sectors: dict[int, list[Version]] = field(default_factory=dict)
    sizes: list[Version] = field(default_factory=list)

    def change(self, born: int, offset: int, new: bytes, size_bytes: int) -> list[Version]:
        """Apply a write, or with no data a truncation, and return the versions it made."""
        old_size = len(self.data)
        if size_bytes < old_size:
            del self.data[size_bytes:]
        else:
            self.data.extend(bytes(size_bytes - old_size))
        self.data[offset : offset + len(new)] = new
        made = []
        # Writing the last byte again asserts the size again: its block is allocated with it.
        if size_bytes != old_size or (new and offset + len(new) == size_bytes):
            made.append(Version(size_bytes, born, shrinks=size_bytes < old_size))
            self.sizes.append(made[0])
        # A truncation zeroes what it cuts off; a write beyond the end makes a hole of zeros.
        begin, end = (offset, offset + len(new)) if new else (min(size_bytes, old_size), max(size_bytes, old_size))
        for number in range(min(begin, old_size) // SECTOR_BYTES, -(-end // SECTOR_BYTES)):
            version = Version(_sector(self.data, number), born)
            self.sectors.setdefault(number, []).append(version)
            made.append(version)
        return made

    def flush(self, began: int, data_only: bool) -> None:
        """Settle what had returned before a flush began that has now succeeded."""
        for number, versions in list(self.sectors.items()):
            if (version := _settle(versions, began, data_only)) is not None:
                start = number * SECTOR_BYTES
                if len(self.base) < start + SECTOR_BYTES:
                    self.base.extend(bytes(start + SECTOR_BYTES - len(self.base)))
                self.base[start : start + SECTOR_BYTES] = version.value
            if not versions:
                del self.sectors[number]
        if (size := _settle(self.sizes, began, data_only)) is not None:
            self.base_size = size.value

    def lose(self, began: int) -> None:
        """A flush failed: what it should have covered is clean in memory and perhaps not on the medium."""
        for version in itertools.chain(self.sizes, *self.sectors.values()):
            if version.at is not None and version.at < began:
                version.lost = True

    def survive(self, fate: Fate, rng: random.Random, deleted: list[bytes]) -> bytes:
        """Return one content that a file may have after a power cut."""
        if fate.data == "lost":
            return bytes(self.base[: self.base_size])
        if fate.data == "kept":
            return bytes(self.data)
        if fate.data == "torn":
            return _torn(self, rng)
        size = rng.choice([self.base_size, *(version.value for version in self.sizes)])
        content = bytearray(self.base)
        for number, versions in self.sectors.items():
            start = number * SECTOR_BYTES
            choices = [bytes(content[start : start + SECTOR_BYTES]), *(version.value for version in versions)]
            if start >= self.base_size:
                choices += [bytes(SECTOR_BYTES), _stale(rng, deleted, number)]
            _put(content, start, rng.choice(choices))
        return bytes(content[:size].ljust(size, b"\0"))


def _settle(versions: list[Version], began: int, data_only: bool) -> Version | None:
    """Drop all up to the last version that a flush covers, and return that one."""
    for place in range(len(versions) - 1, -1, -1):
        version = versions[place]
        covered = version.at is not None and version.at < began and not version.lost
        if covered and not (version.shrinks and data_only):
            del versions[: place + 1]
            return version
    return None


def _sector(data: bytes | bytearray, number: int) -> bytes:
    piece = bytes(data[number * SECTOR_BYTES : (number + 1) * SECTOR_BYTES])
    return piece.ljust(SECTOR_BYTES, b"\0")


def _torn(file: File, rng: random.Random) -> bytes:
    """Return the content where all open changes up to one are there, and of that one a first part."""
    born = sorted({version.born for version in itertools.chain(file.sizes, *file.sectors.values())})
    torn = rng.choice([*born, float("inf")])
    size = next((v.value for v in reversed(file.sizes) if v.born < torn), file.base_size)
    content = bytearray(file.base)
    pieces: list[tuple[int, bytes]] = []
    for number, versions in sorted(file.sectors.items()):
        whole = next((v.value for v in reversed(versions) if v.born < torn), None)
        if whole is not None:
            _put(content, number * SECTOR_BYTES, whole)
        pieces += [(number * SECTOR_BYTES, v.value) for v in versions if v.born == torn]
    if pieces:
        stop = rng.randrange(pieces[0][0], pieces[-1][0] + SECTOR_BYTES)
        for start, new in pieces:
            _put(content, start, new[: max(0, stop - start)])
        limit = next((v.value for v in file.sizes if v.born == torn), size)
        size = limit if limit < size else max(size, min(stop, limit))
    return bytes(content[:size].ljust(size, b"\0"))


def _put(content: bytearray, start: int, new: bytes) -> None:
    """Write into the content, which grows with zeros where it is too short."""
    if len(content) < start + len(new):
        content.extend(bytes(start + len(new) - len(content)))
    content[start : start + len(new)] = new


def _stale(rng: random.Random, deleted: list[bytes], number: int) -> bytes:
    """Return a sector of a deleted file, of the same place in it if it was long enough; zeros if there is none."""
    return _sector(rng.choice(deleted), number) if deleted else bytes(SECTOR_BYTES)
