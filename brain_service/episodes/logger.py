"""`EpisodeLogger`: recording from a robot's own Python process, without the daemon."""

import contextlib
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, SupportsFloat

import msgspec
import numpy as np
from pydantic import ValidationError

from brain_service.durable import fsync_directory, make_directory
from brain_service.episodes.answers import Appended, EndReason
from brain_service.episodes.catalogue import list_ids, read_end, read_header
from brain_service.episodes.flusher import Flusher
from brain_service.episodes.header import EpisodeHeader
from brain_service.episodes.log import io_problem
from brain_service.episodes.publishing import is_published, publish_document
from brain_service.episodes.recovery import recover, sweep
from brain_service.episodes.schema import StepIn
from brain_service.episodes.wire import invalid_step
from brain_service.episodes.writer import EpisodeWriter
from brain_service.errors import BrainError, ConflictError, InvalidError
from brain_service.settings import CaptureSettings

__all__ = ["EpisodeLogger"]

_HEADER_MEMBERS = frozenset(
    (
        "episode_id",
        "control_role",
        "tags",
        "robot_id",
        "language_instruction",
        "safety",
        "share",
        "features",
        "durability",
    )
)


class EpisodeLogger:
    """Writes one episode after another into `directory`, each a capture log `<episode_id>.jsonl`.

    With `format="json"` a finished episode becomes one `<episode_id>.json` document; until then the log holds
    it, so a crash loses nothing. Settings are those of `[capture]`, such as `durability="step"`. Logs that a
    dead process left here more than `recover_idle_s` seconds ago are closed as `recovered` on construction.

    Raises:
        InvalidError: an unknown format or setting, or a wrong value.
        UnavailableError: the directory cannot be made or written.
    """

    def __init__(self, directory: str | Path, format: Literal["jsonl", "json"] = "jsonl", **settings: Any) -> None:
        if format not in ("jsonl", "json"):
            raise InvalidError(f"format {format!r} is neither 'jsonl' nor 'json'", field="format")
        self._directory = Path(directory).expanduser()
        self._format = format
        try:
            self._settings = CaptureSettings(**settings)
        except ValidationError as error:
            problem = error.errors()[0]
            name = "/".join(str(part) for part in problem["loc"])
            known = ", ".join(CaptureSettings.model_fields)
            raise InvalidError(f"setting {name!r}: {problem['msg']}; known: {known}", field=name) from error
        try:
            make_directory(self._directory)
        except OSError as error:
            raise io_problem(error, f"make {self._directory}") from error
        self._flusher = Flusher(self._settings.sync_interval_s, side_by_side=1)
        self._flusher.start()
        self._writer: EpisodeWriter | None = None
        self._finish_left_behind()

    def start_episode(self, environment_id: str = "default", xr_mode: str = "trainer", **metadata: Any) -> str:
        """Begin an episode and return its id. Names that a header has no member for are kept as metadata.

        Raises:
            ConflictError: an episode is running; call `end_episode()` first.
            InvalidError: a wrong id, role or feature declaration.
            UnavailableError: the medium refuses.
        """
        if self._writer is not None:
            raise ConflictError(f"episode {self._writer.header.episode_id!r} is running: call end_episode() first")
        body = {name: value for name, value in metadata.items() if name in _HEADER_MEMBERS}
        extra = {name: value for name, value in metadata.items() if name not in _HEADER_MEMBERS}
        header = EpisodeHeader.parse(
            {"environment_id": environment_id, "xr_mode": xr_mode, "metadata": extra, **body}
        )
        path = self._directory / f"{header.episode_id}.jsonl"
        self._writer = EpisodeWriter.create(path, header, self._settings, self._flusher)
        return header.episode_id

    def log_step(
        self,
        obs: Mapping[str, Any],
        action: Mapping[str, Any],
        reward: SupportsFloat = 0.0,
        done: bool = False,
        **members: Any,
    ) -> Appended:
        """Append a step; values are numbers, lists, NumPy arrays, text, or images as the bytes of a PNG or JPEG.

        `done` means `is_terminal`. `members` are the other members of a step, such as `timestamp_ns`,
        `control_role`, `executed_action`.

        Raises:
            ConflictError: no episode is running, or its last step was terminal.
            InvalidError: a wrong name, shape, dtype or value, which the error names; nothing was written.
            UnavailableError: the medium refuses.
        """
        writer = self._running("log_step")
        unknown = sorted(members.keys() - set(StepIn.__struct_fields__))
        if unknown:
            known = ", ".join(StepIn.__struct_fields__)
            raise InvalidError(f"unknown step member {unknown[0]!r}; known: {known}", field=unknown[0])
        done = bool(members.pop("is_terminal", False) or done)
        return writer.append(
            [_step({**members, "observation": obs, "action": action, "is_terminal": done}, reward)]
        )

    def end_episode(
        self, reason: EndReason | None = None, final_observation: Mapping[str, Any] | None = None
    ) -> Path:
        """End the running episode, durable before the return, and return its file.

        Without a reason it is terminated if its last step was (`done=True`), else truncated.

        Raises:
            ConflictError: no episode is running, or `truncated` contradicts a terminal last step.
            InvalidError: the final observation does not fit.
            UnavailableError: the medium refuses; the episode keeps running.
        """
        writer = self._running("end_episode")
        writer.end(reason, final_observation)
        self._writer = None
        path = self._directory / f"{writer.header.episode_id}.jsonl"
        return publish_document(path) if self._format == "json" else path

    def close(self) -> None:
        """Release the directory; a running episode is ended first. Harmless twice."""
        if self._writer is not None:
            self.end_episode()
        self._flusher.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _running(self, call: str) -> EpisodeWriter:
        if self._writer is None:
            raise ConflictError(f"{call}() needs a running episode: call start_episode() first")
        return self._writer

    def _finish_left_behind(self) -> None:
        """Close stale open logs, and publish documents whose log outlived a crash between end and removal."""
        sweep(self._directory)
        for episode_id in list_ids(self._directory):
            path = self._directory / f"{episode_id}.jsonl"
            try:
                read_header(path)
                if read_end(path) is None and _idle_s(path) > self._settings.recover_idle_s:
                    file, found, _ = recover(path)
                    with contextlib.closing(file):
                        if found.end is None:
                            EpisodeWriter(file, found, self._settings, self._flusher).end("recovered")
                if self._format == "json" and read_end(path) is not None and is_published(path):
                    # Whoever published the document may have been killed before its name was flushed.
                    fsync_directory(self._directory)
                    path.unlink()
            except BrainError:
                # Another process writes it, or it is no log of ours: both are for the daemon to report.
                continue


def _idle_s(path: Path) -> float:
    return time.time() - path.stat().st_mtime


def _step(members: dict[str, Any], reward: SupportsFloat) -> StepIn:
    """Hold what the caller gave against the form of a posted step; arrays pass as they are.

    Raises:
        InvalidError: a member has the wrong type.
    """
    plain = {name: value.item() if isinstance(value, np.generic) else value for name, value in members.items()}
    try:
        return msgspec.convert({**plain, "reward": float(reward)}, StepIn)
    except msgspec.ValidationError as error:
        raise invalid_step(error, "") from error
    except (TypeError, ValueError, OverflowError) as error:
        raise InvalidError(f"reward: {reward!r} is no number that a float can hold", field="reward") from error
