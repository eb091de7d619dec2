"""Foreign episodes into a directory of capture logs, through the one way that appends to them.

An episode is written by an `EpisodeLogger` in a folder of its own and moved into place when it has ended: every
check of capture applies, and no daemon ever sees a half of it. Its header remembers where it came from and a hash
of its content, so that a second run knows it.
"""

import contextlib
import hashlib
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from brain_service.datasets.export_source import Progress
from brain_service.datasets.import_source import ImportSource, Rejected
from brain_service.datasets.staging import held_folder
from brain_service.durable import fsync_directory, make_directory
from brain_service.episodes.catalogue import read_header
from brain_service.episodes.episode import Column, Episode
from brain_service.episodes.images import FOLDER_SUFFIX
from brain_service.episodes.logger import EpisodeLogger
from brain_service.errors import BrainError, ConflictError, InvalidError, NotFoundError, UnavailableError
from brain_service.trees import unflatten

__all__ = ["ImportReport", "import_episodes"]

_WORK = ".importing"
_ORIGIN = "imported"


@dataclass
class ImportReport:
    """What came in, what was there already, and what was left out and why.

    `steps` counts the steps of imported episodes; a final observation is none.
    """

    output_dir: Path
    format: str
    source: str
    episodes: int = 0
    steps: int = 0
    skipped: int = 0
    quarantined: list[dict[str, Any]] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the report as a JSON-ready mapping."""
        return asdict(self) | {"output_dir": str(self.output_dir)}


def import_episodes(source: ImportSource, output_dir: Path, format: str, progress: Progress) -> ImportReport:
    """Write the episodes of a source to `<output_dir>/<episode_id>.jsonl`.

    Raises:
        InvalidError: not one episode could be imported; says why.
        ConflictError: another process imports into this directory.
        UnavailableError: the medium refuses; what was imported stays.
        OSError: the same, on moving an episode into place.
    """
    report = ImportReport(output_dir, format, source.name)
    make_directory(output_dir)
    done = 0
    with (
        held_folder(output_dir / _WORK) as work,
        # A file has no rate; the bound is there for controllers that run wild.
        EpisodeLogger(work, max_steps_per_s=1e9) as logger,
    ):
        for item in source.episodes():
            progress(min(done, source.total), source.total)
            done += item.episodes if isinstance(item, Rejected) else 1
            if isinstance(item, Rejected):
                report.quarantined.append(asdict(item))
                continue
            try:
                _import_one(item, logger, output_dir, report)
            except UnavailableError:
                raise
            except BrainError as error:
                report.quarantined.append(asdict(Rejected(item.episode_id, error.detail)))
                _drop(item.episode_id, logger, work)
    progress(source.total, source.total)
    report.left_out, report.warnings, report.facts = (
        source.notes.left_out,
        source.notes.warnings,
        source.notes.facts,
    )
    if not report.episodes and not report.skipped:
        reasons = [f"{item['place']}: {item['reason']}" for item in report.quarantined[:3]]
        raise InvalidError(
            f"no episode of {source.name} could be imported; " + ("; ".join(reasons) or "it holds none"),
            quarantined=report.quarantined,
        )
    return report


def _import_one(episode: Episode, logger: EpisodeLogger, output_dir: Path, report: ImportReport) -> None:
    sha256 = _digest(episode)
    log = output_dir / f"{episode.episode_id}.jsonl"
    if _is_there(log, sha256):
        report.skipped += 1
        return
    origin = {"format": report.format, "source": report.source, "sha256": sha256}
    # "self" would be taken for the logger.
    metadata = {name: value for name, value in episode.metadata.items() if name not in ("self", _ORIGIN)}
    logger.start_episode(
        **(metadata | {_ORIGIN: origin}), episode_id=episode.episode_id, features=episode.spec.to_json()
    )
    for step in range(len(episode)):
        try:
            logger.log_step(
                _step(episode.observation, step),
                _step(episode.action, step),
                float(episode.reward[step]),
                bool(episode.is_terminal[step]),
                timestamp_ns=int(episode.timestamp_ns[step]),
                control_role=episode.control_role[step],
            )
        except (InvalidError, ConflictError) as error:
            raise InvalidError(f"step {step}: {error.detail}", field=error.field) from error
    final = episode.final_observation
    written = logger.end_episode(final_observation=None if final is None else unflatten(final))
    images = written.with_name(f"{episode.episode_id}{FOLDER_SUFFIX}")
    if images.exists():
        # Of an earlier import that was killed between the two moves; without its log it belongs to nobody.
        shutil.rmtree(output_dir / images.name, ignore_errors=True)
        images.rename(output_dir / images.name)
    written.rename(log)
    fsync_directory(output_dir)
    report.episodes += 1
    report.steps += len(episode)


def _is_there(log: Path, sha256: str) -> bool:
    """Tell whether this very episode was imported before.

    Raises:
        InvalidError: another episode has its id.
    """
    try:
        header = read_header(log)
    except NotFoundError:
        if not log.exists() and not log.with_suffix(".json").exists():
            return False
        origin: Any = None
    else:
        origin = header.metadata.get(_ORIGIN)
    if isinstance(origin, Mapping) and origin.get("sha256") == sha256:
        return True
    raise InvalidError(
        f"{log} is there already and holds another episode; import into another directory, or move it away"
    )


def _drop(episode_id: str, logger: EpisodeLogger, work: Path) -> None:
    """Remove what a refused episode has left in the work folder."""
    with contextlib.suppress(ConflictError):
        logger.end_episode()
    (work / f"{episode_id}.jsonl").unlink(missing_ok=True)
    shutil.rmtree(work / f"{episode_id}{FOLDER_SUFFIX}", ignore_errors=True)


def _step(columns: Mapping[str, Column], index: int) -> dict[str, Any]:
    return unflatten({path: column[index] for path, column in columns.items()})


def _digest(episode: Episode) -> str:
    """Return the SHA-256 of everything in an episode."""
    digest = hashlib.sha256(
        orjson.dumps(
            [episode.episode_id, episode.metadata, episode.spec.to_json(), episode.end, episode.control_role],
            option=orjson.OPT_SORT_KEYS | orjson.OPT_SERIALIZE_NUMPY,
            default=str,
        )
    )
    columns: list[Any] = [
        *episode.observation.values(),
        *episode.action.values(),
        episode.reward,
        episode.is_terminal,
        episode.timestamp_ns,
        *([] if episode.final_observation is None else episode.final_observation.values()),
    ]
    for column in columns:
        parts = column if isinstance(column, list) else [column]
        for part in parts:
            data = part.encode() if isinstance(part, str) else part
            data = data if isinstance(data, bytes) else np.ascontiguousarray(data).tobytes()
            digest.update(len(data).to_bytes(8, "little"))
            digest.update(data)
    return digest.hexdigest()
