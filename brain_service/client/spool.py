"""The offline buffer on disk: one folder an episode, its steps in segments that vanish once they are durable.

    <spool_dir>/<episode_id>/episode.json          the body that creates the episode
                             000000000000.steps    records: length, CRC-32 (both uint32, little-endian), step
                             continued.json        the first steps of the episodes that followed it, see `parts`
                             end.json              the body that ends it, once that was asked for
                             lock                  held (flock) by the process that records

A step is in the page cache when `append` returns: it survives this process, and once `sync` has covered it a power
cut of this computer too.
Segments are small and short-lived, so that most are gone before the kernel would write them to the card.
"""

import contextlib
import errno
import os
import shutil
import zlib
from dataclasses import dataclass
from pathlib import Path

import msgspec

from brain_service.client.errors import BufferFullError, SpoolError
from brain_service.client.spool_folder import (
    RECORD,
    SET_ASIDE,
    read_continued,
    read_episode,
    read_object,
    read_records,
    set_folder_aside,
    take_lock,
)
from brain_service.client.wire import JsonObject, to_json
from brain_service.durable import fsync_directory, make_directory, write_atomic

__all__ = ["Position", "Spool"]

SEGMENT_BYTES = 1024 * 1024
TIDY_BYTES = 256 * 1024  # a segment of which every step is durable is dropped from this size on


@dataclass(slots=True)
class _Segment:
    path: Path
    first_index: int
    end_index: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Position:
    """Where a step's record begins: the first index of its segment, and the offset in bytes."""

    segment: int
    offset: int


class Spool:
    """The steps of one episode on disk. `append` belongs to the recording thread, the rest to the sender."""

    def __init__(self, path: Path, document: JsonObject, max_bytes: int, lock_fd: int) -> None:
        self.path = path
        self.episode_id: str = document["episode_id"]
        self.create_body: JsonObject = document
        self.continued_at: list[int] = []
        self.size_bytes = 0
        self._max_bytes = max_bytes
        self._lock_fd: int | None = lock_fd
        self._segments: list[_Segment] = []
        self._fd: int | None = None

    @classmethod
    def create(cls, root: Path, create_body: JsonObject, max_bytes: int) -> "Spool":
        """Make the folder of a new episode; `create_body` is that of `POST /episodes`, with its `episode_id`.

        Raises:
            SpoolError: the folder cannot be made, or another recorder uses it.
            EncodeError: the body has no JSON form.
        """
        document = to_json(create_body)
        path = root / create_body["episode_id"]
        with contextlib.ExitStack() as undo:
            try:
                make_directory(root)
                path.mkdir()
                undo.callback(shutil.rmtree, path, ignore_errors=True)
                lock_fd = take_lock(path)
                undo.callback(os.close, lock_fd)
                write_atomic(path / "episode.json", document)
                fsync_directory(root)
            except OSError as error:
                raise SpoolError(
                    f"cannot make the offline buffer {path}: {error.strerror}; see spool_dir"
                ) from error
            undo.pop_all()
        return cls(path, create_body, max_bytes, lock_fd)

    @classmethod
    def resume(cls, path: Path, max_bytes: int) -> "Spool | None":
        """Take over what a recorder that is gone has left; a torn last record (its kill) is cut off.

        None if there is nothing any more: whoever had it brought it home meanwhile. One that is no spool of ours
        is set aside.

        Raises:
            SpoolError: a living process uses it, it cannot be read, or it is damaged.
        """
        try:
            lock_fd = take_lock(path)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise SpoolError(f"cannot take over the offline buffer {path}: {error.strerror}; in use?") from error
        with contextlib.ExitStack() as undo:
            undo.callback(os.close, lock_fd)
            try:
                spool = cls(path, read_episode(path), max_bytes, lock_fd)
                spool.continued_at = read_continued(path)
                spool._scan()
            except FileNotFoundError:
                with contextlib.suppress(OSError):  # amid its removal we may have made the lock file anew
                    (path / "lock").unlink()
                    path.rmdir()
                return None
            except OSError as error:
                raise SpoolError(f"cannot read the offline buffer {path}: {error.strerror}") from error
            except ValueError as error:
                set_folder_aside(path)
                raise SpoolError(f"{path} holds no episode ({error}); it is {path.name}{SET_ASIDE} now") from error
            undo.pop_all()
        return spool

    @property
    def first_index(self) -> int:
        """Index of the oldest step on disk; `next_index` where there is none."""
        return self._segments[0].first_index if self._segments else 0

    @property
    def next_index(self) -> int:
        """Index after the newest step on disk."""
        return self._segments[-1].end_index if self._segments else 0

    @property
    def start(self) -> Position:
        """The place of the oldest step."""
        return Position(self.first_index, 0)

    def end_body(self) -> JsonObject | None:
        """Return what `keep_end` kept, None if the episode was not asked to end."""
        try:
            return read_object(self.path / "end.json")
        except (OSError, ValueError):
            return None

    def keep_end(self, body: bytes) -> None:
        """Note that the episode is to end with this JSON body.

        Raises:
            SpoolError: the medium refuses.
        """
        try:
            write_atomic(self.path / "end.json", body)
        except OSError as error:
            raise SpoolError(f"cannot note the end in {self.path}: {error.strerror}") from error

    def keep_continued(self, first_indices: list[int]) -> None:
        """Note the steps with which the recording's second and later episodes begin.

        Raises:
            SpoolError: the medium refuses.
        """
        try:
            write_atomic(self.path / "continued.json", msgspec.json.encode(first_indices))
        except OSError as error:
            raise SpoolError(f"cannot note the next episode in {self.path}: {error.strerror}") from error
        self.continued_at = first_indices

    def append(self, index: int, step: bytes) -> Position:
        """Add the bytes of one step and return their place.

        Raises:
            BufferFullError: the buffer or the medium is full; nothing was added.
            SpoolError: it is closed, or the medium refuses otherwise; nothing was added.
        """
        if self._lock_fd is None:
            raise SpoolError(f"the offline buffer {self.path} is closed; step {index} was not taken")
        record = RECORD.pack(len(step), zlib.crc32(step)) + step
        if self.size_bytes + len(record) > self._max_bytes:
            raise BufferFullError(
                f"{self.size_bytes} bytes of steps wait on disk, the limit is max_spool_bytes = {self._max_bytes}"
            )
        segment: _Segment | None = None
        try:
            segment = self._writable(index)
            written = os.write(self._writing_fd, record)
            if written != len(record):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            if segment is not None:
                with contextlib.suppress(OSError):
                    os.ftruncate(self._writing_fd, segment.size_bytes)
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise BufferFullError(
                    f"the medium of {self.path} is full; free space or choose another"
                ) from error
            raise SpoolError(f"cannot keep step {index} in {self.path}: {error.strerror}") from error
        place = Position(segment.first_index, segment.size_bytes)
        segment.size_bytes += len(record)
        segment.end_index = index + 1
        self.size_bytes += len(record)
        return place

    def segments_from(self, index: int) -> list[Path]:
        """Return the files of the steps from `index` on."""
        return [segment.path for segment in self._segments if segment.end_index > index]

    def sync(self, segments: list[Path]) -> None:
        """Flush these files and their entries to the medium; one that is gone was tidied away.

        Raises:
            SpoolError: the medium refuses. What it then holds is unknown, and another try would not tell.
        """
        try:
            for path in segments:
                with contextlib.suppress(FileNotFoundError):
                    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
                    try:
                        os.fdatasync(fd)
                    finally:
                        os.close(fd)
            with contextlib.suppress(FileNotFoundError):
                fsync_directory(self.path)
        except OSError as error:
            raise SpoolError(f"cannot flush {self.path} to its medium: {error.strerror}") from error

    def read(self, place: Position, max_bytes: int) -> tuple[list[bytes], Position]:
        """Return steps from `place` on, about `max_bytes` of them or to the end of a segment, and the next place.

        Raises:
            SpoolError: a record is damaged, or the medium cannot be read.
        """
        segment = next((s for s in self._segments if s.first_index == place.segment), None)
        if segment is None or place.offset >= segment.size_bytes:  # read to its end, and perhaps tidied since
            following = next((s for s in self._segments if s.first_index > place.segment), None)
            return ([], place) if following is None else self.read(Position(following.first_index, 0), max_bytes)
        size_bytes = segment.size_bytes
        try:
            with segment.path.open("rb") as file:
                file.seek(place.offset)
                steps, used = read_records(file.read(min(max_bytes, size_bytes - place.offset)))
                if not steps:  # one step larger than `max_bytes`
                    file.seek(place.offset)
                    steps, used = read_records(file.read(size_bytes - place.offset))
        except OSError as error:
            raise SpoolError(f"cannot read {segment.path}: {error.strerror}") from error
        if not steps:
            raise SpoolError(f"{segment.path} is damaged at byte {place.offset}; steps from there on are lost")
        return steps, Position(place.segment, place.offset + used)

    def is_untidy(self, durable_through: int) -> bool:
        """Tell whether `tidy` would delete something."""
        if not self._segments or self._segments[0].end_index - 1 > durable_through:
            return False
        return len(self._segments) > 1 or self._segments[0].size_bytes >= TIDY_BYTES

    def tidy(self, durable_through: int) -> None:
        """Delete the segments of which every step is durable.

        Raises:
            SpoolError: the medium refuses.
        """
        while self.is_untidy(durable_through):
            segment = self._segments[0]
            if len(self._segments) == 1:
                # The next step begins a segment; this keeps its index.
                end = segment.end_index
                self._segments.append(_Segment(self._segment_path(end), end, end, 0))
            try:
                segment.path.unlink(missing_ok=True)
            except OSError as error:
                raise SpoolError(f"cannot delete {segment.path}: {error.strerror}") from error
            self._segments.pop(0)
            self.size_bytes -= segment.size_bytes

    def remove(self) -> None:
        """Delete the folder: all is durable and the episode has ended. Nobody can take it over meanwhile."""
        with contextlib.suppress(OSError):
            (self.path / "episode.json").unlink()  # first: without it, what is left after a kill is no episode
        shutil.rmtree(self.path, ignore_errors=True)
        self.close()

    def set_aside(self) -> None:
        """Rename the folder to `<id>.rejected`: the daemon will not take it, and a person may want to look."""
        set_folder_aside(self.path)
        self.close()

    def close(self) -> None:
        """Release files and lock; what is on disk stays for `resume`."""
        for fd in (self._fd, self._lock_fd):
            if fd is not None:
                with contextlib.suppress(OSError):
                    os.close(fd)
        self._fd = self._lock_fd = None

    @property
    def _writing_fd(self) -> int:
        assert self._fd is not None, "_writable() opens it"
        return self._fd

    def _segment_path(self, first_index: int) -> Path:
        return self.path / f"{first_index:012d}.steps"

    def _writable(self, index: int) -> _Segment:
        """Return the segment that takes the next step, its file open."""
        last = self._segments[-1] if self._segments else None
        if last is None or last.size_bytes >= SEGMENT_BYTES:
            last = _Segment(self._segment_path(index), index, index, 0)
            self._open(last.path)
            self._segments.append(last)
        elif self._fd is None or last.size_bytes == 0:
            self._open(last.path)
        return last

    def _open(self, path: Path) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640)

    def _scan(self) -> None:
        for path in sorted(self.path.glob("*.steps")):
            if not path.stem.isdecimal():
                continue  # somebody's notes
            first = int(path.stem)
            if self._segments and first != self.next_index:
                break  # the segment before it was cut: nothing after a gap can be sent
            data = path.read_bytes()
            steps, used = read_records(data)
            if used < len(data):
                os.truncate(path, used)
            self._segments.append(_Segment(path, first, first + len(steps), used))
            self.size_bytes += used
