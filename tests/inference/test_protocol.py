"""The packets between daemon and worker: round trips, refusals, and a real worker's answer to a bad order."""

import contextlib
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from brain_service.errors import CorruptDataError
from brain_service.inference.arena import Arena, Layout
from brain_service.inference.protocol import (
    MAX_MESSAGE_BYTES,
    PROTOCOL_VERSION,
    Done,
    Kind,
    Run,
    Status,
    decode_document,
    decode_dones,
    decode_run,
    encode_document,
    encode_dones,
    encode_run,
    kind_of,
    receive_with_fd,
    send_with_fd,
)

U16 = st.integers(0, 2**16 - 1)
U32 = st.integers(0, 2**32 - 1)
U64 = st.integers(0, 2**64 - 1)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.lists(inner, max_size=4), max_leaves=8
)


RUNS = st.builds(Run, U64, U32, st.integers(0, 1), U64, U16, U16)
DONES = st.builds(Done, U64, U32, st.sampled_from(Status), U64, U64, U16, U16)


@given(RUNS)
def test_run_round_trip(run: Run) -> None:
    assert decode_run(encode_run(run)) == run and kind_of(encode_run(run)) is Kind.RUN


@given(st.lists(DONES, min_size=1, max_size=64))
def test_done_round_trip(dones: list[Done]) -> None:
    message = encode_dones(dones)
    assert decode_dones(message) == dones and len(message) <= MAX_MESSAGE_BYTES


@given(st.sampled_from([Kind.LOAD, Kind.LOADED, Kind.FAILED]), st.dictionaries(st.text(), JSON, max_size=5))
def test_document_round_trip(kind: Kind, document: dict[str, object]) -> None:
    assert decode_document(encode_document(kind, document)) == (kind, document)


@given(st.binary(max_size=64))
def test_other_bytes_are_refused_or_mean_one_thing(data: bytes) -> None:
    with contextlib.suppress(CorruptDataError):
        run = decode_run(data)
        assert decode_run(encode_run(run)) == run and data[:2] == encode_run(run)[:2]
    with contextlib.suppress(CorruptDataError):
        dones = decode_dones(data)
        assert decode_dones(encode_dones(dones)) == dones and data[:2] == encode_dones(dones)[:2]


@pytest.mark.parametrize(
    "message", [b"", b"\x04", encode_run(Run(1, 2, 0, 3))[:-1], encode_run(Run(1, 2, 0, 3)) + b"x"]
)
def test_a_packet_of_another_length_is_refused(message: bytes) -> None:
    with pytest.raises(CorruptDataError, match="worker protocol"):
        decode_run(message)
    with pytest.raises(CorruptDataError, match="worker protocol"):
        decode_dones(message)


@pytest.mark.parametrize(
    "message", [b"", b"\x00", b"\xff{}", bytes([Kind.LOAD]) + b"{", bytes([Kind.LOAD]) + b"[]"]
)
def test_documents_that_cannot_be(message: bytes) -> None:
    with pytest.raises(CorruptDataError, match="worker protocol"):
        decode_document(message)


def test_an_overlong_document_is_an_error_of_the_sender() -> None:
    with pytest.raises(ValueError, match="over"):
        encode_document(Kind.FAILED, {"detail": "x" * MAX_MESSAGE_BYTES})


def test_a_descriptor_travels_and_its_absence_is_noticed() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        fd = os.memfd_create("test")
        os.write(fd, b"shared")
        send_with_fd(ours, b"hello", fd)
        os.close(fd)
        message, received = receive_with_fd(theirs)
        assert message == b"hello" and os.pread(received, 6, 0) == b"shared"
        os.close(received)
        ours.send(b"hello")
        with pytest.raises(CorruptDataError, match="one file descriptor, got 0"):
            receive_with_fd(theirs)


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        ({"protocol": PROTOCOL_VERSION + 1}, "different versions"),
        ({"protocol": PROTOCOL_VERSION, "bundle": "/nowhere", "backend": "cpu"}, "no bundle at /nowhere"),
    ],
)
def test_a_real_worker_refuses_a_bad_order_with_the_reason(order: dict[str, object], expected: str) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    arena = Arena.create(Layout({"h": 1}, 1, 1, 1), 1)
    with ours:
        with theirs:
            command = [sys.executable, "-m", "brain_service.inference.worker", "--fd", str(theirs.fileno())]
            root = Path(__file__).resolve().parents[2]
            process = subprocess.Popen(command, pass_fds=[theirs.fileno()], cwd=root)
        send_with_fd(ours, encode_document(Kind.LOAD, order), arena.fd)
        kind, report = decode_document(ours.recv(MAX_MESSAGE_BYTES))
        assert kind is Kind.FAILED and expected in report["detail"]
        assert process.wait(20) == 1
    arena.close()
