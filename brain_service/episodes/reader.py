"""Reading episodes back from any file that holds them: capture logs, and the seed's `.json` and `.jsonl`.

The path of a log stands for its archive once it is compressed.
"""

import contextlib
import hashlib
import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from brain_service.episodes.archive import ARCHIVE_SUFFIX, Archive
from brain_service.episodes.catalogue import stored
from brain_service.episodes.episode import Episode
from brain_service.episodes.header import EpisodeHeader
from brain_service.episodes.images import ImageStore
from brain_service.episodes.legacy import located, read_seed
from brain_service.episodes.log import io_problem
from brain_service.episodes.log_format import decode_line
from brain_service.episodes.packing import StepPacker
from brain_service.episodes.recovery import looks_like_seed
from brain_service.episodes.schema import Step
from brain_service.episodes.text_lines import line_batches, read_blocks
from brain_service.errors import CorruptDataError, InvalidError, NotFoundError
from brain_service.spec import EpisodeSpec, Leaf, check_values
from brain_service.trees import flatten

__all__ = ["Episode", "episode_digest", "read_episode", "read_episodes"]

_STEP = b'{"type":"step"'


def read_episodes(path: Path) -> Iterator[Episode]:
    """Yield every episode of a `.json`, `.jsonl` or `.jsonl.zst` file: any number for a seed file, else one.

    Raises:
        NotFoundError: no such file.
        CorruptDataError: the file is damaged; the error names file and line.
        InvalidError: it holds no steps, or steps that contradict each other (the error names file and line), or it
            is compressed with gzip.
        UnavailableError: the medium cannot read it.
    """
    try:
        found = stored(path)
        if found.suffix == ".gz":
            raise InvalidError(
                f"{path}: it is compressed with gzip, which is not read; unpack it with 'gunzip {path.name}'"
            )
        if found.suffix == ".json" or (found.suffix != ARCHIVE_SUFFIX and looks_like_seed(found)):
            yield from read_seed(found)
        else:
            yield read_episode(path)
    except FileNotFoundError as error:
        raise NotFoundError(f"no file {path}") from error
    except OSError as error:
        raise io_problem(error, f"read {path}") from error


def read_episode(path: Path) -> Episode:
    """Read a capture log, closed or open; of an open one, what is whole. Takes no lock.

    Memory holds the columns of the episode and a few lines of text.

    Raises:
        NotFoundError: no such file.
        CorruptDataError: a line fails its checksum or its order or is longer than 128 MiB, or an image is missing
            or fails its hash; the error names file and line.
        InvalidError: the episode has no steps.
        UnavailableError: the medium cannot read it.
    """
    try:
        found = stored(path)
        with contextlib.ExitStack() as stack:
            if found.suffix == ARCHIVE_SUFFIX:
                blocks = stack.enter_context(Archive(found)).texts()
            else:
                blocks = read_blocks(stack.enter_context(found.open("rb")))
            return _read_log(path, blocks)
    except FileNotFoundError as error:
        raise NotFoundError(f"no file {path}") from error
    except OSError as error:
        raise io_problem(error, f"read {path}") from error


def _read_log(path: Path, blocks: Iterator[bytes]) -> Episode:
    first = next(blocks, None)
    if first is None:
        raise CorruptDataError(f"{path}: the file is empty")
    log = _Log(path)
    for lines, whole in line_batches(itertools.chain([first], blocks), path):
        # A line without its newline is still being written.
        if whole:
            log.read(lines)
    header, packer, end = log.header, log.packer, log.end
    if header is None:
        raise CorruptDataError(f"{path}:1: the line does not end in its checksum: it was cut short or changed")
    if packer is None or not len(packer):
        raise InvalidError(f"{path}: the episode holds no steps; record some or delete it")
    with located(path, log.line):
        return packer.episode(
            header.episode_id,
            header.all_metadata() | {"created_ns": header.created_ns},
            _final_observation(end, packer.spec, log.images),
            None if end is None else end["reason"],
        )


class _Log:
    """What was read of a log so far; `line` is the number of the last line."""

    def __init__(self, path: Path) -> None:
        self.images = ImageStore.beside(path)
        self.header: EpisodeHeader | None = None
        self.packer: StepPacker | None = None
        self.end: dict[str, Any] | None = None
        self.line = 0
        self._path = path

    def read(self, lines: list[bytes]) -> None:
        """Read whole lines that follow: those of steps at once where they are as usual, else one by one."""
        place = 0
        # The header and, where that names no features, the first step tell what the others look like.
        while place < len(lines) and self.packer is None:
            self._read_line(lines[place])
            place += 1
        stop = len(lines) if lines[-1].startswith(_STEP) else len(lines) - 1
        if self.packer is not None and self.end is None and place < stop and self.packer.take(lines[place:stop]):
            self.line += stop - place
            place = stop
        for line in lines[place:]:
            self._read_line(line)

    def _read_line(self, line: bytes) -> None:
        self.line += 1
        with located(self._path, self.line):
            record = decode_line(line + b"\n")
            if self.header is None:
                self.header = EpisodeHeader.from_record(record)
                self.packer = None if self.header.features is None else StepPacker(self.header.features)
            elif self.end is not None:
                raise CorruptDataError("the line stands behind the end of the episode")
            elif record.get("type") == "end":
                self.end = record
            else:
                if self.packer is None:
                    self.packer = StepPacker(EpisodeSpec.from_json(record.get("features")))
                self.packer.add(_step(record, self.packer.spec, len(self.packer), self.images))


def episode_digest(path: Path) -> str:
    """Return the SHA-256 of the file's text in hex, which tells a converter whether it has seen this file.

    Of an archive it is that of the log it was made from, as its index says.

    Raises:
        NotFoundError: no such file.
        CorruptDataError: the index of an archive is damaged.
        UnavailableError: the medium cannot read it.
    """
    try:
        found = stored(path)
        if found.suffix == ARCHIVE_SUFFIX:
            with Archive(found) as archive:
                return archive.sha256
        with found.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError as error:
        raise NotFoundError(f"no file {path}") from error
    except OSError as error:
        raise io_problem(error, f"read {path}") from error


def _step(record: Mapping[str, Any], spec: EpisodeSpec, expected: int, images: ImageStore) -> Step:
    metadata = record.get("step_metadata")
    metadata = metadata if isinstance(metadata, Mapping) else {}
    if record.get("type") != "step" or metadata.get("step_index") != expected:
        raise CorruptDataError(f"the line is not step {expected}")
    executed = record.get("executed_action")
    try:
        time_ns, role = metadata["timestamp_ns"], metadata["control_role"]
        if type(time_ns) is not int or time_ns.bit_length() > 63:
            raise CorruptDataError(f"timestamp_ns: {time_ns!r} is not an integer of 64 bits", field="timestamp_ns")
        if type(role) is not str:
            raise CorruptDataError(f"control_role: {role!r} is not a name", field="control_role")
        return Step(
            step_index=expected,
            observation=_observation(record["observation"], spec, "observation", images),
            action=check_values(flatten(record["action"], "action"), spec.action, "action"),
            reward=_reward(record["reward"]),
            is_terminal=bool(record["is_terminal"]),
            timestamp_ns=time_ns,
            control_role=role,
            executed_action=None
            if executed is None
            else check_values(flatten(executed, "executed_action"), spec.action, "executed_action"),
            policy=metadata.get("policy"),
        )
    except KeyError as error:
        raise CorruptDataError(f"the step has no {error}") from error


def _reward(value: Any) -> np.float32:
    if type(value) is float or type(value) is int:
        with np.errstate(over="ignore"):
            reward = np.float32(value)
        if np.isfinite(reward):
            return reward
    raise CorruptDataError(f"reward: {value!r} is not a number of float32", field="reward")


def _observation(tree: Any, spec: EpisodeSpec, field: str, images: ImageStore) -> dict[str, Leaf]:
    return images.load(check_values(flatten(tree, field), spec.observation, field), spec)


def _final_observation(
    end: Mapping[str, Any] | None, spec: EpisodeSpec, images: ImageStore
) -> dict[str, Leaf] | None:
    if end is None or "final_observation" not in end:
        return None
    return _observation(end["final_observation"], spec, "final_observation", images)
