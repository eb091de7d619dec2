"""Messages between the daemon and an inference worker, over a SOCK_SEQPACKET socket pair.

One message a packet; byte 0 is its kind. Tensors never travel here: they lie in the arena, whose memfd comes
with the first message (SCM_RIGHTS).

    daemon -> worker   LOAD    JSON {protocol, bundle, backend, module, parity, capacity, cache_dir} and the memfd
    worker -> daemon   LOADED  JSON {backend, parity, load_s, step_us}    or    FAILED  JSON {slug, detail}
    daemon -> worker   RUN     fixed layout: one step of one row
    worker -> daemon   DONE    fixed layout: what became of it
    worker -> daemon   TELEMETRY  JSON, unasked: what the device says of itself, every few seconds

A closed socket means the other side is gone: the worker exits, the daemon restarts it. Times are
CLOCK_MONOTONIC nanoseconds, which processes of one machine share. Standard library only.
"""

import json
import os
import socket
import struct
from enum import IntEnum
from typing import Any, NamedTuple

from brain_service.errors import CorruptDataError

__all__ = [
    "MAX_MESSAGE_BYTES",
    "PROTOCOL_VERSION",
    "Done",
    "Kind",
    "Run",
    "Status",
    "decode_document",
    "decode_done",
    "decode_run",
    "encode_document",
    "encode_done",
    "encode_run",
    "kind_of",
    "receive_with_fd",
    "send_with_fd",
]

PROTOCOL_VERSION = 2
MAX_MESSAGE_BYTES = 64 * 1024

_RUN = struct.Struct("<BBxxIQQ")
_DONE = struct.Struct("<BBxxIQQQ")


class Kind(IntEnum):
    """Byte 0 of every message."""

    LOAD = 1
    LOADED = 2
    FAILED = 3
    RUN = 4
    DONE = 5
    TELEMETRY = 6


class Status(IntEnum):
    """What became of a RUN.

    OK: the row's write slot and response are filled. EXPIRED: the deadline had passed before the step began,
    nothing was computed. NONFINITE: the step gave NaN or an infinity; the write slot must not be used.
    """

    OK = 0
    EXPIRED = 1
    NONFINITE = 2


class Run(NamedTuple):
    """Compute one step of `row`: read the carry in `read_slot` (0 or 1), write the other slot."""

    sequence: int
    row: int
    read_slot: int
    deadline_ns: int


class Done(NamedTuple):
    """Answer to the Run of the same `sequence`; start and end of the computation in monotonic ns."""

    sequence: int
    row: int
    status: Status
    start_ns: int
    end_ns: int


def kind_of(message: bytes) -> Kind:
    """Return a message's kind.

    Raises:
        CorruptDataError: the message is empty or of no known kind.
    """
    try:
        return Kind(message[0])
    except (IndexError, ValueError) as error:
        raise CorruptDataError(f"worker protocol: no message begins with {message[:1]!r}") from error


def encode_run(run: Run) -> bytes:
    """Pack a RUN message."""
    return _RUN.pack(Kind.RUN, run.read_slot, run.row, run.sequence, run.deadline_ns)


def decode_run(message: bytes) -> Run:
    """Unpack a RUN message.

    Raises:
        CorruptDataError: another kind or length.
    """
    kind, read_slot, row, sequence, deadline_ns = _unpack(_RUN, message)
    if kind != Kind.RUN or read_slot > 1:
        raise CorruptDataError(f"worker protocol: expected RUN, got kind {kind}, slot {read_slot}")
    return Run(sequence, row, read_slot, deadline_ns)


def encode_done(done: Done) -> bytes:
    """Pack a DONE message."""
    return _DONE.pack(Kind.DONE, done.status, done.row, done.sequence, done.start_ns, done.end_ns)


def decode_done(message: bytes) -> Done:
    """Unpack a DONE message.

    Raises:
        CorruptDataError: another kind, length or an unknown status.
    """
    kind, status, row, sequence, start_ns, end_ns = _unpack(_DONE, message)
    if kind != Kind.DONE or status >= len(Status):
        raise CorruptDataError(f"worker protocol: expected DONE, got kind {kind}, status {status}")
    return Done(sequence, row, Status(status), start_ns, end_ns)


def encode_document(kind: Kind, document: dict[str, Any]) -> bytes:
    """Pack a message whose body is JSON.

    Raises:
        ValueError: the message is over MAX_MESSAGE_BYTES.
    """
    message = bytes([kind]) + json.dumps(document).encode()
    if len(message) > MAX_MESSAGE_BYTES:
        raise ValueError(f"{kind.name} message of {len(message)} bytes is over {MAX_MESSAGE_BYTES}")
    return message


def decode_document(message: bytes) -> tuple[Kind, dict[str, Any]]:
    """Unpack a message whose body is JSON.

    Raises:
        CorruptDataError: unknown kind, or the body is not a JSON object.
    """
    kind = kind_of(message)
    try:
        document = json.loads(message[1:])
    except ValueError as error:
        raise CorruptDataError(f"worker protocol: the body of {kind.name} is not JSON") from error
    if not isinstance(document, dict):
        raise CorruptDataError(f"worker protocol: the body of {kind.name} is not a JSON object")
    return kind, document


def send_with_fd(sock: socket.socket, message: bytes, fd: int) -> None:
    """Send one message with a file descriptor; the receiver gets a duplicate of its own."""
    socket.send_fds(sock, [message], [fd])


def receive_with_fd(sock: socket.socket) -> tuple[bytes, int]:
    """Receive one message that carries exactly one file descriptor, which the caller owns.

    Raises:
        CorruptDataError: the message brings no descriptor or several; those are closed.
    """
    message, fds, _, _ = socket.recv_fds(sock, MAX_MESSAGE_BYTES, 2)
    if len(fds) != 1:
        for fd in fds:
            os.close(fd)
        raise CorruptDataError(f"worker protocol: expected one file descriptor, got {len(fds)}")
    return message, fds[0]


def _unpack(layout: struct.Struct, message: bytes) -> tuple[Any, ...]:
    try:
        return layout.unpack(message)
    except struct.error as error:
        raise CorruptDataError(f"worker protocol: expected {layout.size} bytes, got {len(message)}") from error
