"""What a graceful stop leaves of the live sessions, for the next start: `sessions/live.jsonl`.

A line a session, JSON, arrays as base64 of little-endian float32; every line ends with the CRC-32C of the bytes
before it, as in the capture log. A line that does not verify is one session lost, not all. The file is read once
and removed before the first of its sessions answers: a state that has moved on is never brought back. Every
function blocks: call from a thread.
"""

import base64
import binascii
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import google_crc32c
import numpy as np

from brain_service.durable import fsync_directory, make_directory, write_atomic
from brain_service.errors import CorruptDataError
from brain_service.inference.calls import InferReply
from brain_service.inference.sessions import Session
from brain_service.spec import from_vector
from brain_service.trees import unflatten

if TYPE_CHECKING:
    from jaxtyping import Float32

__all__ = ["SavedSession", "read_snapshot", "remove_snapshot", "restore", "save", "write_snapshot"]

FILE = "live.jsonl"

_MARK = b',"crc32c":"'
_STORED = ("step", "model_id", "backend", "state_step", "timings_us", "warnings", "model_since_step")


@dataclass(frozen=True, slots=True, eq=False)
class SavedSession:
    """A session between two of its steps: carry [C], previous action [A], history [K, R]; `used_ns` in Unix time.

    `stored` is the last answer without its action, which follows from `chunk` ([H * A], empty before step 0).
    """

    session_id: str
    model_id: str
    next_step: int
    since_step: int
    state_steps: int
    used_ns: int
    carry: "Float32[np.ndarray, 'C']"
    previous_action: "Float32[np.ndarray, 'A']"
    history: "Float32[np.ndarray, 'KR']"
    chunk: "Float32[np.ndarray, 'HA']"
    stored: dict[str, Any] | None


def save(session: Session) -> SavedSession:
    """Copy what a session is. A step that is still on its way writes elsewhere and is not part of it."""
    reply = session.stored
    used_ns = time.time_ns() - int((time.monotonic() - session.used_s) * 1e9)
    return SavedSession(
        session_id=session.session_id,
        model_id=session.model.model_id,
        next_step=session.next_step,
        since_step=session.since_step,
        state_steps=session.state_steps,
        used_ns=used_ns,
        carry=session.row.carry[session.slot][0].copy(),
        previous_action=session.previous_action,
        history=np.concatenate(session.history) if session.history else np.zeros(0, np.float32),
        chunk=reply.chunk.ravel() if reply is not None else np.zeros(0, np.float32),
        stored=None if reply is None else {name: getattr(reply, name) for name in _STORED},
    )


def restore(session: Session, saved: SavedSession, idle_s: float) -> None:
    """Make a fresh session of the same model what the saved one was, idle for `idle_s` by now.

    Raises:
        CorruptDataError: an array does not fit the model.
    """
    manifest, layout = session.model.manifest, session.row
    found = (saved.carry.size, saved.previous_action.size, saved.chunk.size)
    expected = (layout.carry[0].size, manifest.action_size, layout.response.size if saved.stored else 0)
    if found != expected or saved.history.size % layout.request.size:
        raise CorruptDataError(f"its arrays are of {found} numbers, the model's of {expected}")
    session.move(session.model, session.row, slot=0, next_step=saved.next_step, state_steps=saved.state_steps)
    session.row.carry[0][0] = saved.carry
    session.since_step = saved.since_step
    session.previous_action = saved.previous_action
    session.history.extend(saved.history.reshape(-1, layout.request.size))
    session.used_s = time.monotonic() - idle_s
    if saved.stored is not None:
        chunk = saved.chunk.reshape(manifest.action_horizon, manifest.action_size)
        action = unflatten(from_vector(chunk[0], manifest.spec.action))
        session.stored = InferReply(action=action, chunk=chunk, **saved.stored)


def write_snapshot(directory: Path, sessions: Sequence[SavedSession]) -> None:
    """Write the sessions, all or none.

    Raises:
        OSError: the medium is full or read-only; there is no snapshot then.
    """
    make_directory(directory)
    write_atomic(directory / FILE, b"".join(map(_encode, sessions)))


def read_snapshot(directory: Path) -> tuple[list[SavedSession], list[str]]:
    """Return the sessions of the last stop, and what is wrong with those that cannot come back."""
    try:
        data = (directory / FILE).read_bytes()
    except FileNotFoundError:
        return [], []
    except OSError as error:
        return [], [f"{directory / FILE} cannot be read: {error}"]
    sessions, problems = [], []
    for number, line in enumerate(data.split(b"\n")[:-1], start=1):
        try:
            sessions.append(_decode(line))
        except CorruptDataError as error:
            problems.append(f"{directory / FILE}, line {number}: {error.detail}")
    return sessions, problems


def remove_snapshot(directory: Path) -> None:
    """Remove the file, so that no later start takes it up.

    Raises:
        OSError: the medium is read-only.
    """
    (directory / FILE).unlink(missing_ok=True)
    if directory.is_dir():
        fsync_directory(directory)


def _encode(saved: SavedSession) -> bytes:
    document = {name: _text(value) if isinstance(value, np.ndarray) else value for name, value in _items(saved)}
    body = json.dumps(document, separators=(",", ":")).encode()[:-1]
    return body + b'%b%08x"}\n' % (_MARK, google_crc32c.value(body))


def _items(saved: SavedSession) -> list[tuple[str, Any]]:
    return [(name, getattr(saved, name)) for name in SavedSession.__slots__]


def _text(array: "Float32[np.ndarray, 'N']") -> str:
    return base64.b64encode(array.astype("<f4").tobytes()).decode()


def _decode(line: bytes) -> SavedSession:
    """Parse a line.

    Raises:
        CorruptDataError: its checksum does not hold, or it is of another version.
    """
    body, mark, checksum = line.rpartition(_MARK)
    if not mark or checksum != b'%08x"}' % google_crc32c.value(body):
        raise CorruptDataError("the checksum does not hold")
    document = json.loads(body + b"}")
    if document.keys() != set(SavedSession.__slots__):
        raise CorruptDataError(f"of another version, with the members {', '.join(document)}")
    try:
        arrays = {
            name: np.frombuffer(base64.b64decode(document[name]), "<f4").astype(np.float32)
            for name in ("carry", "previous_action", "history", "chunk")
        }
    except (ValueError, TypeError, binascii.Error) as error:
        raise CorruptDataError(f"an array cannot be read: {error}") from error
    if (stored := document["stored"]) is not None:
        document["stored"] = stored | {"warnings": tuple(stored["warnings"])}
    return SavedSession(**document | arrays)
