"""Starting and ending the process of an inference worker. Everything here blocks: call it from a thread."""

import contextlib
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from brain_service.errors import UnavailableError
from brain_service.inference.backends import BackendEntry
from brain_service.inference.protocol import Kind, encode_document, send_with_fd
from brain_service.settings import child_environment

__all__ = ["spawn", "stop"]

_OOM_SCORE = 500
"""Where memory runs out, the kernel takes a worker before the daemon: capture goes on, and a worker comes back."""

_PACKAGE_ROOT = Path(__file__).resolve().parents[2]


def spawn(
    entry: BackendEntry, order: Mapping[str, Any], memory_fd: int
) -> "tuple[subprocess.Popen[bytes], socket.socket]":
    """Start a backend's worker, give it its LOAD `order` and the arena; return it and our end of the socket.

    Raises:
        UnavailableError: no process can be started, or it was gone before it had its order.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        with theirs:
            process = subprocess.Popen(
                [*_program(entry), "--fd", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=2,
                cwd=_PACKAGE_ROOT,
                env=child_environment(entry.environment),
                # Ctrl-C on a terminal goes to the daemon, which stops its workers itself.
                start_new_session=True,
            )
        try:
            send_with_fd(ours, encode_document(Kind.LOAD, dict(order)), memory_fd)
        except OSError:
            # It would wait for its order for ever: the shared memory is gone, or the process is.
            stop(process, 0.0)
            raise
        _offer_to_the_oom_killer(process.pid)
        ours.setblocking(False)
    except OSError as error:
        ours.close()
        raise UnavailableError(f"cannot start an inference worker: {error}") from error
    return process, ours


def _offer_to_the_oom_killer(pid: int) -> None:
    with contextlib.suppress(OSError):
        Path(f"/proc/{pid}/oom_score_adj").write_text(f"{_OOM_SCORE}\n")


def _program(entry: BackendEntry) -> list[str]:
    if entry.python is None:
        return [sys.executable, "-m", "brain_service.inference.worker"]
    return [entry.python, "-P", str(_PACKAGE_ROOT / "brain_service" / "inference" / "foreign_python.py")]


def stop(process: "subprocess.Popen[bytes]", grace_s: float) -> None:
    """Wait `grace_s` seconds for the process to end by itself, then kill it; it is reaped in any case."""
    try:
        process.wait(grace_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
