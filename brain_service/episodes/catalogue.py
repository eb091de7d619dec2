"""Episodes as their files tell them: summaries from the first and the last line, without reading the rest."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from brain_service.episodes.header import EpisodeHeader, is_episode_id
from brain_service.episodes.log import io_problem
from brain_service.episodes.log_format import decode_line
from brain_service.episodes.recovery import scan
from brain_service.errors import BrainError, CorruptDataError, NotFoundError

__all__ = [
    "closed_summary",
    "episode_path",
    "list_ids",
    "read_closed",
    "read_end",
    "read_header",
    "read_span",
    "summary",
]

_TAIL_BYTES = 64 * 1024
Summary = dict[str, Any]


def episode_path(root: Path, episode_id: str) -> Path:
    """Return the log's path.

    Raises:
        NotFoundError: the id is no id, so nothing can be stored under it (nor outside `root`).
    """
    if not is_episode_id(episode_id):
        raise NotFoundError(f"no episode {episode_id!r}: ids are letters, digits, '.', '_' and '-'")
    return root / f"{episode_id}.jsonl"


def list_ids(root: Path) -> list[str]:
    """Return the ids of all files that may be capture logs, newest first.

    Raises:
        UnavailableError: the directory cannot be read.
    """
    try:
        names = [path.stem for path in root.iterdir() if path.suffix == ".jsonl" and is_episode_id(path.stem)]
    except OSError as error:
        raise io_problem(error, f"list {root}") from error
    return sorted(names, reverse=True)


def read_header(path: Path) -> EpisodeHeader:
    """Return the header of a log.

    Raises:
        NotFoundError: no such file, or one without our header (a file of the seed).
        UnavailableError: the medium cannot read it.
    """
    try:
        with path.open("rb") as file:
            return EpisodeHeader.from_record(decode_line(file.readline()))
    except OSError as error:
        raise _missing(path, error) from error
    except BrainError as error:
        raise NotFoundError(f"{path.name} is no capture log: {error.detail}") from error


def read_end(path: Path) -> dict[str, Any] | None:
    """Return the end record if the log's last line is one, else None: the episode is open or torn.

    Raises:
        NotFoundError: no such file.
        UnavailableError: the medium cannot read it.
    """
    window = _TAIL_BYTES
    try:
        with path.open("rb") as file:
            size_bytes = file.seek(0, 2)
            while True:
                file.seek(max(0, size_bytes - window))
                lines = file.read(window).splitlines(keepends=True)
                # The first piece may be the rest of a long line: a final observation can hold an image.
                if len(lines) > 1 or window >= size_bytes:
                    break
                window *= 8
    except OSError as error:
        raise _missing(path, error) from error
    try:
        record = decode_line(lines[-1]) if lines else {}
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
        "metadata": header.all_metadata(),
        "features": None if header.features is None else header.features.to_json(),
    }


def closed_summary(path: Path) -> Summary:
    """Return the summary of a log that this process does not hold open.

    A log without an end belongs to another process; its steps are counted by reading it.

    Raises:
        NotFoundError: no such capture log.
        CorruptDataError: it is damaged.
        UnavailableError: the medium cannot read it.
    """
    header = read_header(path)
    end = read_end(path)
    if end is not None:
        found = summary(header, end["reason"], end["steps"], end["steps"] - 1)
        if header.features is None and end["steps"]:
            found["features"] = read_closed(path, 0, 1)[0].get("features")
        return found
    try:
        return summary(header, "open", len(scan(path).offsets), -1)
    except OSError as error:
        raise _missing(path, error) from error


def read_closed(path: Path, start: int, limit: int) -> list[dict[str, Any]]:
    """Return the records of steps `start` to `start + limit - 1` of a log that is not written now.

    Raises:
        NotFoundError: no such file.
        CorruptDataError: a line fails its checksum; the error names it.
        UnavailableError: the medium cannot read it.
    """
    try:
        with path.open("rb") as file:
            return list(_steps(path, islice(enumerate(file, start=1), 1 + start, 1 + start + limit)))
    except OSError as error:
        raise _missing(path, error) from error


def read_span(path: Path, offset: int, length: int) -> list[dict[str, Any]]:
    """Return the step records in a byte span of whole lines, of a log that may be growing behind it.

    Raises:
        NotFoundError: no such file.
        CorruptDataError: a line fails its checksum.
        UnavailableError: the medium cannot read it.
    """
    try:
        with path.open("rb") as file:
            file.seek(offset)
            lines = file.read(length).splitlines(keepends=True)
    except OSError as error:
        raise _missing(path, error) from error
    return list(_steps(path, iter(enumerate(lines))))


def _steps(path: Path, lines: Iterator[tuple[int, bytes]]) -> Iterator[dict[str, Any]]:
    for number, line in lines:
        try:
            record = decode_line(line)
        except CorruptDataError as error:
            raise CorruptDataError(f"{path.name}:{number}: {error.detail}") from error
        if record.get("type") == "step":
            yield record


def _missing(path: Path, error: OSError) -> BrainError:
    if isinstance(error, FileNotFoundError):
        return NotFoundError(f"no episode {path.stem!r}; GET /episodes lists them")
    return io_problem(error, f"read episode {path.stem!r}")
