"""Reading episodes back from any file that holds them: capture logs, and the seed's `.json` and `.jsonl`.

The path of a log stands for its archive once it is compressed.
"""

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from brain_service.episodes.archive import ARCHIVE_SUFFIX, Archive
from brain_service.episodes.catalogue import stored
from brain_service.episodes.episode import Episode, episode_from_steps
from brain_service.episodes.header import EpisodeHeader
from brain_service.episodes.images import ImageStore
from brain_service.episodes.legacy import located, read_seed
from brain_service.episodes.log import io_problem
from brain_service.episodes.log_format import decode_line
from brain_service.episodes.recovery import looks_like_seed
from brain_service.episodes.schema import Step
from brain_service.errors import CorruptDataError, InvalidError, NotFoundError
from brain_service.spec import EpisodeSpec, Leaf, check_values, flatten

__all__ = ["Episode", "episode_digest", "read_episode", "read_episodes"]


def read_episodes(path: Path) -> Iterator[Episode]:
    """Yield every episode of a `.json`, `.jsonl` or `.jsonl.zst` file: any number for a seed file, else one.

    Raises:
        NotFoundError: no such file.
        CorruptDataError: the file is damaged; the error names file and line.
        InvalidError: it holds no steps, or steps that contradict each other; the error names file and line.
        UnavailableError: the medium cannot read it.
    """
    try:
        found = stored(path)
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

    Raises:
        NotFoundError: no such file.
        CorruptDataError: a line fails its checksum or its order, or an image is missing or fails its hash; the
            error names file and line.
        InvalidError: the episode has no steps.
        UnavailableError: the medium cannot read it.
    """
    try:
        found = stored(path)
        if found.suffix == ARCHIVE_SUFFIX:
            with Archive(found) as archive:
                lines = list(archive.read_lines())
        else:
            lines = found.read_bytes().splitlines(keepends=True)
    except FileNotFoundError as error:
        raise NotFoundError(f"no file {path}") from error
    except OSError as error:
        raise io_problem(error, f"read {path}") from error
    if not lines:
        raise CorruptDataError(f"{path}: the file is empty")
    torn = not lines[-1].endswith(b"\n")
    with located(path, 1):
        header = EpisodeHeader.from_record(decode_line(lines[0]))
    spec = header.features
    images = ImageStore.beside(path)
    steps: list[Step] = []
    end: dict[str, Any] | None = None
    for number, line in enumerate(lines[1:-1] if torn else lines[1:], start=2):
        with located(path, number):
            record = decode_line(line)
            if end is not None:
                raise CorruptDataError("the line stands behind the end of the episode")
            if record.get("type") == "end":
                end = record
                continue
            spec = spec or EpisodeSpec.from_json(record.get("features"))
            steps.append(_step(record, spec, len(steps), images))
    if spec is None or not steps:
        raise InvalidError(f"{path}: the episode holds no steps; record some or delete it")
    with located(path, len(lines)):
        final = _final_observation(end, spec, images)
        reason = None if end is None else end["reason"]
        return episode_from_steps(
            header.episode_id,
            header.all_metadata() | {"created_ns": header.created_ns},
            spec,
            steps,
            final,
            reason,
        )


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
    metadata = record.get("step_metadata", {})
    if record.get("type") != "step" or metadata.get("step_index") != expected:
        raise CorruptDataError(f"the line is not step {expected}")
    executed = record.get("executed_action")
    try:
        return Step(
            step_index=expected,
            observation=_observation(record["observation"], spec, "observation", images),
            action=check_values(flatten(record["action"], "action"), spec.action, "action"),
            reward=np.float32(record["reward"]),
            is_terminal=bool(record["is_terminal"]),
            timestamp_ns=int(metadata["timestamp_ns"]),
            control_role=metadata["control_role"],
            executed_action=None
            if executed is None
            else check_values(flatten(executed, "executed_action"), spec.action, "executed_action"),
            policy=metadata.get("policy"),
        )
    except KeyError as error:
        raise CorruptDataError(f"the step has no {error}") from error


def _observation(tree: Any, spec: EpisodeSpec, field: str, images: ImageStore) -> dict[str, Leaf]:
    return images.load(check_values(flatten(tree, field), spec.observation, field), spec)


def _final_observation(
    end: Mapping[str, Any] | None, spec: EpisodeSpec, images: ImageStore
) -> dict[str, Leaf] | None:
    if end is None or "final_observation" not in end:
        return None
    return _observation(end["final_observation"], spec, "final_observation", images)
