"""Opening a log that a dead process left behind: keep every good line, cut a torn one, set aside the rest.

A kill or a power cut tears at most the last line; it has no newline and was never answered. A bad line with
more behind it is damage of another kind (a flipped bit, a lost sector): what follows is moved to
`<id>.jsonl.corrupt-<n>`, never destroyed, because the steps of a robot cannot be recorded again.
"""

import contextlib
import itertools
import logging
import os
import stat
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import msgspec

from brain_service.durable import fsync_directory, write_atomic
from brain_service.episodes.header import EpisodeHeader
from brain_service.episodes.images import ImageStore
from brain_service.episodes.log import EpisodeFile, io_problem
from brain_service.episodes.log_format import check_line, decode_line
from brain_service.episodes.offsets import StepOffsets
from brain_service.episodes.page_cache import bring_file_to_medium
from brain_service.episodes.plain_log import PlainLog
from brain_service.errors import (
    BrainError,
    ConflictError,
    CorruptDataError,
    InvalidError,
    NotFoundError,
    UnavailableError,
)
from brain_service.spec import EpisodeSpec

__all__ = ["LogScan", "RecoveryReport", "looks_like_seed", "quarantine", "recover", "scan", "settle", "sweep"]

_LOG = logging.getLogger(__name__)
_CREATION_S = 60.0
_PIECE_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class RecoveryReport:
    """What recovery found in one file and did with it. Sizes in bytes; `lines_lost` counts a torn one too."""

    episode_id: str
    steps: int
    bytes_cut: int = 0
    lines_lost: int = 0
    moved_to: str | None = None
    reason: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the report as a JSON-ready map."""
        return asdict(self)


@dataclass(slots=True)
class LogScan:
    """The good lines of a log: byte offset of each step, and where the first bad line begins.

    `problem` says why the line at `good_bytes` is bad; None means that the file ends there.
    """

    header: EpisodeHeader
    good_bytes: int
    spec: EpisodeSpec | None
    offsets: StepOffsets = field(default_factory=StepOffsets)
    last_is_terminal: bool = False
    end: dict[str, Any] | None = None
    problem: str | None = None


def scan(path: Path, images: ImageStore | None = None) -> LogScan:
    """Read a log line by line up to its first bad line.

    With `images` a line is bad as well if one that it refers to is missing or fails its hash; the others are
    flushed.

    Raises:
        CorruptDataError: the header line is bad, or that of another episode than the file is named after.
        UnavailableError: an image cannot be read or flushed, which says nothing of its line.
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        line = file.readline()
        try:
            header = EpisodeHeader.from_record(decode_line(line))
        except (CorruptDataError, InvalidError) as error:
            raise CorruptDataError(f"{path}:1: {error.detail}") from error
        if header.episode_id != path.stem:
            # A copy of a log that goes on: whoever wrote here would believe to write there.
            raise CorruptDataError(
                f"{path}:1: this is a log of episode {header.episode_id!r}; remove the file, or name it "
                f"{header.episode_id}{path.suffix} where that is missing"
            )
        found = LogScan(header, len(line), header.features)
        for line in file:
            try:
                check_line(line)
                if not _take_usual(found, line):
                    _take(found, decode_line(line), images)
            except UnavailableError:
                raise
            except BrainError as error:
                found.problem = error.detail
                break
            found.good_bytes += len(line)
    return found


class _Place(msgspec.Struct):
    step_index: int


class _UsualStep(msgspec.Struct):
    """What the scan wants of a step: its numbers are skipped, which takes a third of the time of parsing them."""

    type: Literal["step"]
    is_terminal: bool
    step_metadata: _Place
    episode_id: str


_USUAL_STEP = msgspec.json.Decoder(_UsualStep)


def _take_usual(found: LogScan, line: bytes) -> bool:
    """Add a step whose line holds no surprise, and no image, to the scan; False leaves it to `_take`."""
    if found.spec is None or found.spec.image_paths or found.end is not None:
        return False
    try:
        step = _USUAL_STEP.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    if step.episode_id != found.header.episode_id or step.step_metadata.step_index != len(found.offsets):
        return False
    found.offsets.append(found.good_bytes)
    found.last_is_terminal = step.is_terminal
    return True


def _take(found: LogScan, record: Mapping[str, Any], images: ImageStore | None) -> None:
    """Add one record to the scan.

    Raises:
        CorruptDataError: it stands behind the end, is of no known type or of another episode (a block that a
            file system gave to this file and never wrote), its step index does not follow, or an image of it is
            missing or damaged.
        InvalidError: the features it carries are garbled.
        UnavailableError: an image cannot be read or flushed.
    """
    if found.end is not None:
        raise CorruptDataError("a line stands behind the end of the episode")
    if record.get("episode_id", found.header.episode_id) != found.header.episode_id:
        raise CorruptDataError(f"the line belongs to episode {record['episode_id']!r}")
    if record.get("type") == "end":
        if record.get("steps") != len(found.offsets):
            raise CorruptDataError(f"an end after {record.get('steps')} steps stands behind {len(found.offsets)}")
        if images is not None and found.spec is not None:
            images.verify_all(record.get("final_observation"), found.spec)
        found.end = dict(record)
        return
    expected = len(found.offsets)
    metadata = record.get("step_metadata", {})
    if record.get("type") != "step" or metadata.get("step_index") != expected:
        raise CorruptDataError(f"the line is not step {expected}")
    spec = found.spec or EpisodeSpec.from_json(record.get("features"))
    if images is not None:
        images.verify_all(record.get("observation"), spec)
    found.spec = spec
    found.offsets.append(found.good_bytes)
    found.last_is_terminal = bool(record.get("is_terminal"))


def recover(path: Path) -> tuple[EpisodeFile, LogScan, RecoveryReport]:
    """Lock a log, cut or set aside what follows its last good line, and flush it.

    Afterwards all that the scan found is on the medium, although a flush by the dead process may have failed:
    then the cache has what the medium lacks, and the scan alone would believe the cache.

    Raises:
        ConflictError: a living process holds the lock.
        CorruptDataError: the header is bad or another episode's; the file is untouched.
        NotFoundError: no such file.
        UnavailableError: the medium refuses to read, cut or flush.
    """
    file = EpisodeFile.open(path)
    try:
        file.settle()
        images = ImageStore.beside(path)
        found = scan(path, images)
        report = _cut(file, found)
        images.sync_names()
        file.sync()
        # Whoever made it may have been killed between giving it its name and flushing that.
        fsync_directory(path.parent)
    except OSError as error:
        file.close()
        raise io_problem(error, f"recover episode {path.stem!r}") from error
    except BaseException:
        # Raised again: whatever it is, the log and its lock must not stay held.
        file.close()
        raise
    return file, found, report


def settle(path: Path, *, name: bool = True) -> None:
    """Bring a log that has its end to the medium: whoever wrote that may have been killed before it was flushed.

    The lines before the end are there: none is written before they were flushed. `name` flushes its name, too.

    Raises:
        UnavailableError: the medium refuses.
    """
    try:
        with PlainLog(path) as log:
            start = path.stat().st_size - len(log.last_line())
        bring_file_to_medium(path, start)
        if name:
            fsync_directory(path.parent)
    except FileNotFoundError:
        return  # deleted or compressed meanwhile
    except OSError as error:
        raise io_problem(error, f"flush episode {path.stem!r} to the medium") from error


def _cut(file: EpisodeFile, found: LogScan) -> RecoveryReport:
    bad_bytes = file.size_bytes - found.good_bytes
    if bad_bytes == 0:
        return RecoveryReport(found.header.episode_id, len(found.offsets))
    lines, last = 0, b""
    for piece in _pieces(file, found.good_bytes):
        lines, last = lines + piece.count(b"\n"), piece[-1:]
    moved_to: Path | None = None
    if lines:
        moved_to = _free_name(file.path.with_name(f"{file.path.name}.corrupt"))
        _set_aside(file, found.good_bytes, moved_to)
    file.truncate(found.good_bytes)
    return RecoveryReport(
        episode_id=found.header.episode_id,
        steps=len(found.offsets),
        bytes_cut=bad_bytes,
        lines_lost=lines + (last != b"\n"),
        moved_to=None if moved_to is None else moved_to.name,
        reason=found.problem,
    )


def _pieces(file: EpisodeFile, start: int) -> Iterator[bytes]:
    """Yield what follows `start`: one read takes 2 GiB at most, and damage may be longer than the memory."""
    while piece := file.read(start, _PIECE_BYTES):
        yield piece
        start += len(piece)


def _set_aside(file: EpisodeFile, start: int, target: Path) -> None:
    """Copy what follows `start` into a file of its own, whole and on the medium before the return.

    Raises:
        UnavailableError: the log cannot be read, or another number of bytes arrived than it has.
        OSError: the copy cannot be written.
    """
    temporary = target.with_name(f".{target.name}.tmp")
    try:
        with temporary.open("wb") as aside:
            for piece in _pieces(file, start):
                # A hole stays one: what a power cut adds to a file may be larger than the medium.
                if piece.count(0) == len(piece):
                    aside.seek(len(piece), os.SEEK_CUR)
                else:
                    aside.write(piece)
            aside.truncate()
            os.fsync(aside.fileno())
        size_bytes = temporary.stat().st_size
        if size_bytes != file.size_bytes - start:
            raise UnavailableError(
                f"{size_bytes} of the {file.size_bytes - start} damaged bytes of {file.path.name} could be set "
                "aside; it is recovered once all can be read"
            )
        temporary.rename(target)
    except BaseException:
        # Raised again: whatever it is, no half-written file stays.
        temporary.unlink(missing_ok=True)
        raise
    fsync_directory(target.parent)


def looks_like_seed(path: Path) -> bool:
    """Tell whether a `.jsonl` file is of the seed's kind: its first line carries no checksum, but a step.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        line = file.readline()
    ours = b'"crc32c":"' in line or b'"schema_version":"' in line
    return not ours and (b'"observation"' in line or b'"steps"' in line)


def sweep(root: Path) -> None:
    """Remove files whose creator died before they had their name: new logs, documents and the like.

    No step was ever in them alone. One that cannot be removed stays and is named in the log.
    """
    for path in root.glob(".*.tmp"):
        try:
            _sweep_one(path)
        except FileNotFoundError:
            continue  # another process swept it or gave it its name
        except (BrainError, OSError) as error:
            _LOG.warning("%s is left over from a start that was cut short; remove it: %s", path, error)


def _sweep_one(path: Path) -> None:
    """Remove a left-over file.

    Raises:
        UnavailableError: it cannot be opened.
        OSError: it is gone, or cannot be removed.
    """
    # A living creator holds the lock, but for the instant between making the file and locking it.
    found = path.lstat()
    if not stat.S_ISREG(found.st_mode) or time.time() - found.st_mtime < _CREATION_S:
        return
    if found.st_nlink > 1:
        # The log has its name too; locking this one would lock out the robot that goes on with it.
        path.unlink(missing_ok=True)
        return
    with contextlib.suppress(ConflictError, NotFoundError):
        file = EpisodeFile.open(path)
        try:
            path.unlink(missing_ok=True)
        finally:
            file.close()


def quarantine(path: Path, reason: str) -> Path:
    """Move a file that cannot be an episode to `quarantine/` beside it, its reason in a `.reason.txt`.

    Raises:
        UnavailableError: the medium refuses; the file stays where it is.
    """
    folder = path.parent / "quarantine"
    try:
        folder.mkdir(exist_ok=True)
        target = folder / path.name
        if target.exists():
            target = _free_name(target)
        write_atomic(target.with_name(f"{target.name}.reason.txt"), f"{reason}\n".encode())
        path.rename(target)
        fsync_directory(folder)
        fsync_directory(path.parent)
    except OSError as error:
        raise io_problem(error, f"move {path.name} to quarantine") from error
    return target


def _free_name(path: Path) -> Path:
    numbered = (path.with_name(f"{path.name}-{n}") for n in itertools.count(1))
    return next(name for name in numbered if not name.exists())
