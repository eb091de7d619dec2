"""Episodes as their files tell them: summaries from the first and the last line, any step without the rest.

A log is `<id>.jsonl`, or `<id>.jsonl.zst` once it is compressed; where a crash left both, the former counts.
Every function takes the path of the former and reads whichever is there.
"""

import contextlib
import math
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Literal

import msgspec
import orjson

from brain_service.episodes.archive import ARCHIVE_SUFFIX, Archive
from brain_service.episodes.header import EpisodeHeader, is_episode_id
from brain_service.episodes.images import FOLDER_SUFFIX
from brain_service.episodes.log import io_problem
from brain_service.episodes.log_format import decode_line, text_of
from brain_service.episodes.plain_log import PlainLog
from brain_service.errors import BrainError, CorruptDataError, InvalidError, NotFoundError
from brain_service.structs import prepared

__all__ = [
    "LOG_SUFFIX",
    "Description",
    "Log",
    "describe",
    "episode_path",
    "file_names",
    "find_log",
    "id_of_file",
    "images_bytes",
    "list_ids",
    "list_names",
    "open_log",
    "read_closed",
    "read_end",
    "read_header",
    "read_span",
    "stored",
    "summary",
]

LOG_SUFFIX = ".jsonl"
_SUFFIXES = (LOG_SUFFIX, LOG_SUFFIX + ARCHIVE_SUFFIX)
Log = PlainLog | Archive
Summary = dict[str, Any]
_Int64 = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]


@prepared
class _Shape(msgspec.Struct):
    """What a summary that a file gives must be, so that the index can hold it and JSON can tell it."""

    episode_id: str
    state: Literal["open", "terminated", "truncated", "recovered"]
    steps: Annotated[int, msgspec.Meta(ge=0, lt=2**62)]
    created_ns: _Int64
    ended_ns: _Int64 | None
    metadata: dict[str, Any]
    features: dict[str, Any] | None
    idempotency_key: str | None


class _StepNumber(msgspec.Struct):
    step_index: int | None = None


@prepared
class _StepHead(msgspec.Struct):
    """What tells which line of a log a record is; the rest of it is checked to be JSON and passed over."""

    type: str = ""
    step_metadata: _StepNumber | None = None


def episode_path(root: Path, episode_id: str) -> Path:
    """Return the path of the log while it is not compressed.

    Raises:
        NotFoundError: the id is no id, so nothing can be stored under it (nor outside `root`).
    """
    if not is_episode_id(episode_id):
        raise NotFoundError(f"no episode {episode_id!r}: ids are letters, digits, '.', '_' and '-'")
    return root / f"{episode_id}{LOG_SUFFIX}"


def stored(path: Path) -> Path:
    """Return where the log of this path is now: its archive if only that is there, else the path itself."""
    if path.suffix == ARCHIVE_SUFFIX or path.exists():
        return path
    archive = path.with_name(path.name + ARCHIVE_SUFFIX)
    return archive if archive.exists() else path


def find_log(root: Path, episode_id: str) -> Path:
    """Return the file that holds an episode, compressed or not.

    Raises:
        NotFoundError: there is none.
    """
    path = stored(episode_path(root, episode_id))
    if not path.exists():
        raise _missing(path, FileNotFoundError())
    return path


def open_log(path: Path) -> Log:
    """Open a log for reading; close it, or use `with`.

    Raises:
        NotFoundError: no such file.
        CorruptDataError: it is an archive without a whole index.
        UnavailableError: the medium cannot read it.
    """
    for _ in range(2):
        found = stored(path)
        try:
            return Archive(found) if found.suffix == ARCHIVE_SUFFIX else PlainLog(found)
        except FileNotFoundError as error:
            problem = error  # compressed in between: the second look finds the archive
        except OSError as error:
            raise io_problem(error, f"read episode {_episode_id(path)!r}") from error
    raise _missing(path, problem) from problem


def list_ids(root: Path) -> list[str]:
    """Return the ids of all uncompressed files that may be capture logs, newest first.

    Raises:
        UnavailableError: the directory cannot be read.
    """
    names = [name for name in list_names(root) if name.endswith(LOG_SUFFIX)]
    return sorted(filter(None, map(id_of_file, names)), reverse=True)


def list_names(root: Path) -> set[str]:
    """Return the names in a directory that may be those of logs, compressed or not; no pipes, sockets or devices.

    Raises:
        UnavailableError: the directory cannot be read.
    """
    try:
        with os.scandir(root) as entries:
            return {
                entry.name
                for entry in entries
                if entry.name.endswith(_SUFFIXES) and (entry.is_file() or entry.is_dir())
            }
    except OSError as error:
        raise io_problem(error, f"list {root}") from error


def id_of_file(name: str) -> str | None:
    """Return the id of the episode that a file of this name holds, None if it is no log's name."""
    episode_id = name.removesuffix(ARCHIVE_SUFFIX).removesuffix(LOG_SUFFIX)
    return episode_id if name.endswith(_SUFFIXES) and is_episode_id(episode_id) else None


def file_names(episode_id: str) -> list[str]:
    """Return the names that a log may have; the first one counts where both are there."""
    return [f"{episode_id}{suffix}" for suffix in _SUFFIXES]


def images_bytes(root: Path, episode_id: str) -> int:
    """Return the bytes that the images of an episode take on the medium, as far as it can tell."""
    try:
        with os.scandir(f"{root}/{episode_id}{FOLDER_SUFFIX}") as entries:
            return sum(entry.stat().st_size for entry in entries)
    except OSError:
        return 0


def read_header(path: Path) -> EpisodeHeader:
    """Return the header of a log.

    Raises:
        NotFoundError: no such file, or one without our header (a file of the seed).
        CorruptDataError: it is a damaged archive.
        UnavailableError: the medium cannot read it.
    """
    with _reading(path) as log:
        return _header(path, log)


def _header(path: Path, log: Log) -> EpisodeHeader:
    try:
        return EpisodeHeader.from_record(decode_line(next(log.read_lines(0, 1), b"")))
    except (InvalidError, RecursionError) as error:
        raise NotFoundError(f"{path.name} is no capture log: {error}") from error
    except CorruptDataError as error:
        if isinstance(log, Archive):
            raise
        raise NotFoundError(f"{path.name} is no capture log: {error.detail}") from error


def read_end(path: Path) -> dict[str, Any] | None:
    """Return the end record if the log's last line is one, else None: the episode is open or torn.

    Raises:
        NotFoundError: no such file.
        CorruptDataError: it is a damaged archive.
        UnavailableError: the medium cannot read it.
    """
    with _reading(path) as log:
        line = log.last_line()
    try:
        record = decode_line(line)
    except CorruptDataError:
        return None
    return record if record.get("type") == "end" else None


def summary(header: EpisodeHeader, state: str, steps: int, durable_through: int) -> Summary:
    """Return what `GET /episodes/{id}` answers."""
    return {
        "episode_id": header.episode_id,
        "state": state,
        "steps": steps,
        "durable_through": durable_through,
        "created_ns": header.created_ns,
        "ended_ns": None,
        "metadata": header.all_metadata(),
        "features": None if header.features is None else header.features.to_json(),
    }


@dataclass(frozen=True, slots=True)
class Description:
    """What a log that this process does not write says of itself; `sha256` of its text, where that is known."""

    header: EpisodeHeader
    summary: Summary
    sha256: str | None


def describe(path: Path) -> Description:
    """Read a log's header, its end and the features of its first step, and nothing in between.

    A log without an end belongs to another process; its last whole line tells how many steps it has.

    Raises:
        NotFoundError: no such capture log.
        CorruptDataError: it is damaged.
        UnavailableError: the medium cannot read it.
    """
    with _reading(path) as log:
        return _describe(path, log)


def _describe(path: Path, log: Log) -> Description:
    header = _header(path, log)
    try:
        end = decode_line(log.last_line())
    except CorruptDataError:
        end = {}
    if end.get("type") == "end":
        found = summary(header, str(end.get("reason")), end.get("steps", -1), -1)
        found["ended_ns"] = end.get("ended_ns")
    else:
        found = summary(header, "open", log.steps() if isinstance(log, PlainLog) else log.lines - 1, -1)
    if header.features is None and found["steps"]:
        line = next(log.read_lines(1, 2), None)
        with _naming_line(path, 2):
            found["features"] = None if line is None else decode_line(line).get("features")
    # Of a copy under another name it is that name which finds it.
    found["episode_id"] = _episode_id(path)
    _require_shape(path, found, header.idempotency_key)
    if found["state"] != "open":
        found["durable_through"] = found["steps"] - 1
    return Description(header, found, log.sha256 if isinstance(log, Archive) else None)


def _require_shape(path: Path, found: Summary, idempotency_key: Any) -> None:
    """Check what a file says of itself: its checksums hold for whatever another program wrote.

    Raises:
        CorruptDataError: a member is missing or of another kind.
    """
    try:
        msgspec.convert(found | {"idempotency_key": idempotency_key}, _Shape)
        orjson.dumps(found)
    except (msgspec.ValidationError, orjson.JSONEncodeError) as error:
        raise CorruptDataError(f"{path.name}: header and end are not those of a capture log: {error}") from error


def read_closed(path: Path, start: int, limit: int, max_bytes: int | None = None) -> list[bytes]:
    """Return the records of steps `start` to `start + limit - 1` of a log that is not written now, as JSON texts.

    Only what lies around them is read. `max_bytes` as `Library.steps` has it.

    Raises:
        NotFoundError: no such file.
        CorruptDataError: a line fails its checksum; the error names it.
        UnavailableError: the medium cannot read it.
    """
    with _reading(path) as log:
        return _texts(path, log.read_lines(1 + start, 1 + start + limit), start, max_bytes)


def read_span(path: Path, offset: int, length: int, start: int, max_bytes: int | None = None) -> list[bytes]:
    """Return the records of the steps from `start` on that a byte span of a log holds, which may grow behind it.

    Raises:
        NotFoundError: no such file.
        CorruptDataError: a line fails its checksum.
        UnavailableError: the medium cannot read it.
    """
    try:
        with path.open("rb") as file:
            file.seek(offset)
            return _texts(path, _lines(file, length), start, max_bytes)
    except OSError as error:
        raise _missing(path, error) from error


def _lines(file: BinaryIO, length: int) -> Iterator[bytes]:
    """Yield the lines of the next `length` bytes."""
    while length > 0 and (line := file.readline()):
        length -= len(line)
        yield line


def _texts(path: Path, lines: Iterable[bytes], start: int, max_bytes: int | None) -> list[bytes]:
    """Return the texts of step lines up to the end of the episode, the first one however long.

    Raises:
        CorruptDataError: a line is damaged, or not the step that stands there.
    """
    texts: list[bytes] = []
    left_bytes = math.inf if max_bytes is None else max_bytes
    for index, line in enumerate(lines, start=start):
        left_bytes -= len(line)
        if texts and left_bytes < 0:
            break
        with _naming_line(path, 2 + index):
            text = text_of(line)
            head = msgspec.json.decode(text, type=_StepHead)
            if head.type == "end":
                break
            if head.type != "step" or head.step_metadata is None or head.step_metadata.step_index != index:
                raise CorruptDataError(f"the line is not step {index}")
        texts.append(text)
    return texts


@contextlib.contextmanager
def _naming_line(path: Path, number: int) -> Iterator[None]:
    """Have damage name the file and the line.

    Raises:
        CorruptDataError: the block found damage.
    """
    try:
        yield
    except CorruptDataError as error:
        raise CorruptDataError(f"{path.name}:{number}: {error.detail}") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise CorruptDataError(f"{path.name}:{number}: {error}") from error


def _episode_id(path: Path) -> str:
    return path.name.removesuffix(ARCHIVE_SUFFIX).removesuffix(LOG_SUFFIX)


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[Log]:
    """Open a log for the block; an OSError in it says that the episode is gone or cannot be read."""
    try:
        with open_log(path) as log:
            yield log
    except OSError as error:
        raise _missing(path, error) from error


def _missing(path: Path, error: OSError) -> BrainError:
    if isinstance(error, FileNotFoundError):
        return NotFoundError(f"no episode {_episode_id(path)!r}; GET /episodes lists them")
    return io_problem(error, f"read episode {_episode_id(path)!r}")
