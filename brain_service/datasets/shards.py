"""The shards of a split: those of an earlier version that still hold are linked, the rest is written.

Records that are new, or that lay in a shard which holds others no longer, go to the end. A small shard before
them is merged with them, so that sizes at the end halve at least from shard to shard: a thousand small
conversions leave a dozen shards, and a record is copied as often as its shard doubles.
"""

import errno
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from brain_service.datasets.layout import shard_name
from brain_service.datasets.manifest import EpisodeEntry, Manifest, ShardEntry
from brain_service.datasets.membership import Member, Record
from brain_service.errors import CorruptDataError

__all__ = ["Base", "SplitWriter", "entry_of", "group_by_size", "link_or_copy"]

_BLOCK_BYTES = 1 << 20
_NO_LINKS = frozenset((errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK, errno.EXDEV, errno.ENOSYS))


@dataclass(frozen=True)
class Base:
    """The earlier version that a new one builds on."""

    folder: Path
    manifest: Manifest


@dataclass(frozen=True)
class _Plan:
    """A shard to be made of these episodes: linked to `same` of the base, or written anew."""

    members: list[Member]
    same: ShardEntry | None


class SplitWriter:
    """Makes the shards of a version in its folder, split by split. `tick` is called before each shard."""

    def __init__(
        self, folder: Path, dataset: str, base: Base | None, shard_bytes: int, tick: Callable[[], None]
    ) -> None:
        self.shards: list[ShardEntry] = []
        self.linked = 0
        self._folder = folder
        self._dataset = dataset
        self._base = base
        self._shard_bytes = shard_bytes
        self._tick = tick

    def write(self, split: str, members: Sequence[Member]) -> list[EpisodeEntry]:
        """Make the shards of a split and return its episodes in the order in which TFDS will read them.

        Raises:
            CorruptDataError: a record of the base is not what its manifest says.
            OSError: the medium is full.
        """
        entries: list[EpisodeEntry] = []
        for index, plan in enumerate(self._plan(split, members)):
            self._tick()
            name = shard_name(self._dataset, split, index)
            if plan.same is None:
                size_bytes, sha256 = self._copy(plan.members, self._folder / name)
            else:
                assert self._base is not None
                link_or_copy(self._base.folder / plan.same.file, self._folder / name)
                size_bytes, sha256 = plan.same.size_bytes, plan.same.sha256
                self.linked += 1
            self.shards.append(ShardEntry(name, split, len(plan.members), size_bytes, sha256))
            offset_bytes = 0
            for member in plan.members:
                entries.append(entry_of(member, name, offset_bytes))
                offset_bytes += entries[-1].size_bytes
        return entries

    def _plan(self, split: str, members: Sequence[Member]) -> list[_Plan]:
        plans, rest = self._unchanged(split, members)
        rest_bytes = sum(map(_size_bytes, rest))
        while rest and plans:
            last = plans[-1].same
            assert last is not None
            if last.size_bytes > 2 * rest_bytes or last.size_bytes + rest_bytes > self._shard_bytes:
                break
            rest = plans.pop().members + rest
            rest_bytes += last.size_bytes
        return plans + [_Plan(group, None) for group in group_by_size(rest, self._shard_bytes)]

    def _unchanged(self, split: str, members: Sequence[Member]) -> tuple[list[_Plan], list[Member]]:
        """Return the shards of the base that hold nothing but episodes of this split, and the other episodes."""
        held: dict[str, list[Member]] = {}
        for member in members:
            held.setdefault(_record(member).shard, []).append(member)
        plans = []
        for shard in self._base.manifest.shards if self._base is not None else ():
            if shard.split == split and len(held.get(shard.file, ())) == shard.episodes:
                inside = sorted(held.pop(shard.file), key=lambda member: _record(member).offset_bytes)
                plans.append(_Plan(inside, shard))
        rest = {id(member) for group in held.values() for member in group}
        return plans, [member for member in members if id(member) in rest]

    def _copy(self, members: Sequence[Member], path: Path) -> tuple[int, str]:
        """Write the records one after another, and return the shard's size and SHA-256."""
        digest, size_bytes = hashlib.sha256(), 0
        files: dict[Path, int] = {}
        try:
            with path.open("wb") as target:
                for member in members:
                    record = _record(member)
                    if record.file not in files:
                        files[record.file] = os.open(record.file, os.O_RDONLY)
                    own = hashlib.sha256() if record.shard else None
                    for block in _blocks(files[record.file], record):
                        target.write(block)
                        digest.update(block)
                        size_bytes += len(block)
                        if own is not None:
                            own.update(block)
                    # What this conversion wrote itself was hashed a moment ago; an old shard may have rotted.
                    if own is not None and own.hexdigest() != record.sha256:
                        raise CorruptDataError(
                            f"{record.file}: episode {member.episode_id} at byte {record.offset_bytes} "
                            "is not what was written there",
                            file=record.file.name,
                        )
        finally:
            for fd in files.values():
                os.close(fd)
        return size_bytes, digest.hexdigest()


def _blocks(fd: int, record: Record) -> Iterator[bytes]:
    """Yield the bytes of a record, or fewer where its file ends before; never more than a block in memory."""
    offset_bytes, end_bytes = record.offset_bytes, record.offset_bytes + record.size_bytes
    while offset_bytes < end_bytes:
        block = os.pread(fd, min(_BLOCK_BYTES, end_bytes - offset_bytes), offset_bytes)
        if not block:
            return
        yield block
        offset_bytes += len(block)


def group_by_size(members: Sequence[Member], shard_bytes: int) -> list[list[Member]]:
    """Return the episodes of each shard, in order: as many as fit, and at least one."""
    groups: list[list[Member]] = []
    room_bytes = 0
    for member in members:
        if not groups or _size_bytes(member) > room_bytes:
            groups.append([])
            room_bytes = shard_bytes
        groups[-1].append(member)
        room_bytes -= _size_bytes(member)
    return groups


def _record(member: Member) -> Record:
    assert member.record is not None  # read before shards are made
    return member.record


def _size_bytes(member: Member) -> int:
    return _record(member).size_bytes


def entry_of(member: Member, shard: str, offset_bytes: int) -> EpisodeEntry:
    """Return the index entry of an episode at its place in a shard."""
    record = _record(member)
    return EpisodeEntry(
        episode_id=member.episode_id,
        length=record.length,
        shard=shard,
        offset_bytes=offset_bytes,
        size_bytes=record.size_bytes,
        sha256=record.sha256,
        end=record.end,
        source=member.source,
        roles=record.roles,
        place=member.place,
        image_kinds=record.image_kinds,
    )


def link_or_copy(source: Path, target: Path) -> None:
    """Give a file that never changes a second name, or a copy where the file system has no links.

    Raises:
        OSError: the medium is full.
    """
    try:
        target.hardlink_to(source)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        shutil.copyfile(source, target)
