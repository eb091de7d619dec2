"""Messages between the daemon and an inference worker, over a SOCK_SEQPACKET socket pair.

One message a packet; byte 0 is its kind. Tensors never travel here: they lie in the arena, whose memfd comes
with the first message (SCM_RIGHTS).

    daemon -> worker   LOAD    JSON {protocol, bundle, backend, module, parity, capacity, cache_dir, buckets?} and
                               the memfd
    worker -> daemon   LOADED  JSON {backend, parity, load_s, step_us, buckets}   or   FAILED  JSON {slug, detail}
    daemon -> worker   RUN     fixed layout: one step of one row
    worker -> daemon   DONE    fixed layout, one record a step: what became of each
    worker -> daemon   WARMED  JSON {cost_in_steps, refused}: the batch sizes that are used from now on
    worker -> daemon   TELEMETRY  JSON, unasked: what the device says of itself, every few seconds

A closed socket means the other side is gone: the worker exits, the daemon restarts it. Times are
CLOCK_MONOTONIC nanoseconds, which processes of one machine share. Standard library only.
"""

import json
import os
import socket
import struct
from collections.abc import Sequence
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
    "decode_dones",
    "decode_run",
    "encode_document",
    "encode_dones",
    "encode_run",
    "kind_of",
    "receive_with_fd",
    "send_with_fd",
]

PROTOCOL_VERSION = 2
MAX_MESSAGE_BYTES = 64 * 1024

_RUN = struct.Struct("<BBHHxxIQQ")
_DONE = struct.Struct("<BBHHxxIQQQ")


class Kind(IntEnum):
    """Byte 0 of every message."""

    LOAD = 1
    LOADED = 2
    FAILED = 3
    RUN = 4
    DONE = 5
    TELEMETRY = 6
    WARMED = 7


class Status(IntEnum):
    """What became of a RUN.

    OK: the row's write slot and response are filled. EXPIRED: the deadline had passed before the step began,
    nothing was computed. NONFINITE: the step gave NaN or an infinity; the write slot must not be used.
    """

    OK = 0
    EXPIRED = 1
    NONFINITE = 2


class Run(NamedTuple):
    """Compute one step of `row`: read the carry in `read_slot` (0 or 1), write the other slot.

    With `bucket` 0 the worker chooses with how many others it is computed. Any other value asks for this step
    alone at `place` in a batch of that size: so a replay meets the very numbers that were answered.
    """

    sequence: int
    row: int
    read_slot: int
    deadline_ns: int
    bucket: int = 0
    place: int = 0


class Done(NamedTuple):
    """Answer to the Run of the same `sequence`; start and end of the computation in monotonic ns.

    It was computed at `place` in a batch of `bucket` rows (0 of 1: alone).
    """

    sequence: int
    row: int
    status: Status
    start_ns: int
    end_ns: int
    bucket: int = 1
    place: int = 0


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
    return _RUN.pack(Kind.RUN, run.read_slot, run.bucket, run.place, run.row, run.sequence, run.deadline_ns)


def decode_run(message: bytes) -> Run:
    """Unpack a RUN message.

    Raises:
        CorruptDataError: another kind or length.
    """
    try:
        kind, read_slot, bucket, place, row, sequence, deadline_ns = _RUN.unpack(message)
    except struct.error as error:
        raise CorruptDataError(f"worker protocol: expected {_RUN.size} bytes, got {len(message)}") from error
    if kind != Kind.RUN or read_slot > 1:
        raise CorruptDataError(f"worker protocol: expected RUN, got kind {kind}, slot {read_slot}")
    return Run(sequence, row, read_slot, deadline_ns, bucket, place)


def encode_dones(dones: Sequence[Done]) -> bytes:
    """Pack a DONE message of one or more records."""
    return b"".join(
        _DONE.pack(Kind.DONE, d.status, d.bucket, d.place, d.row, d.sequence, d.start_ns, d.end_ns) for d in dones
    )


def decode_dones(message: bytes) -> list[Done]:
    """Unpack a DONE message.

    Raises:
        CorruptDataError: another kind, length or an unknown status.
    """
    if not message or len(message) % _DONE.size:
        raise CorruptDataError(f"worker protocol: expected records of {_DONE.size} bytes, got {len(message)}")
    dones = []
    for kind, status, bucket, place, row, sequence, start_ns, end_ns in _DONE.iter_unpack(message):
        if kind != Kind.DONE or status >= len(Status):
            raise CorruptDataError(f"worker protocol: expected DONE, got kind {kind}, status {status}")
        dones.append(Done(sequence, row, Status(status), start_ns, end_ns, bucket, place))
    return dones


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
