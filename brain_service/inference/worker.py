"""An inference worker: one bundle on one backend, in a process of its own.

    python -m brain_service.inference.worker --fd N

`N` is its end of the socket pair (`protocol`). It verifies the bundle, loads it, reproduces the golden sequence,
and serves steps one by one until the socket closes: it never outlives the daemon. An error inside a step ends
the process; the daemon answers 503, keeps the carry and starts another.
"""

import argparse
import gc
import importlib
import logging
import os
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np

from brain_service.errors import BrainError, CorruptDataError, UnavailableError
from brain_service.export.bundle import Bundle, Golden, Manifest
from brain_service.inference.arena import Arena, Layout, Row
from brain_service.inference.backends import Policy, PolicyLoader
from brain_service.inference.protocol import (
    PROTOCOL_VERSION,
    Done,
    Kind,
    Status,
    decode_document,
    decode_run,
    encode_document,
    encode_done,
    receive_with_fd,
)
from brain_service.inference.telemetry import Reporter

if TYPE_CHECKING:
    from jaxtyping import Float32

__all__ = ["main"]

log = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None) -> int:
    """Load what the daemon asks for and serve it; returns the exit code."""
    parser = argparse.ArgumentParser(prog="brain_service.inference.worker")
    parser.add_argument("--fd", type=int, required=True, help="this end of the socket pair to the daemon")
    with socket.socket(fileno=parser.parse_args(arguments).fd) as sock:
        try:
            message, memory_fd = receive_with_fd(sock)
            policy, arena, report = _load(message, memory_fd)
        except BrainError as error:
            return _refuse(sock, error)
        except Exception as error:
            # The boundary to foreign runtimes: whatever they raise, the daemon is told.
            log.exception("loading failed")
            return _refuse(sock, UnavailableError(f"{type(error).__name__}: {error}"))
        # What loading left behind is never freed: keep the collector from walking it between two steps.
        gc.collect()
        gc.freeze()
        try:
            sock.send(encode_document(Kind.LOADED, report))
            _serve(sock, policy, arena)
        except (BrokenPipeError, ConnectionResetError):
            log.info("the daemon is gone")
    return 0


def _refuse(sock: socket.socket, error: BrainError) -> int:
    # Cut: a compiler's message can be longer than a packet.
    sock.send(encode_document(Kind.FAILED, {"slug": error.slug, "detail": error.detail[:4000]}))
    return 1


def _load(message: bytes, memory_fd: int) -> tuple[Policy, Arena, dict[str, Any]]:
    started = time.monotonic()
    kind, order = decode_document(message)
    if kind != Kind.LOAD or order.get("protocol") != PROTOCOL_VERSION:
        raise CorruptDataError(
            f"worker protocol: expected LOAD of version {PROTOCOL_VERSION}, got {kind.name} of "
            f"{order.get('protocol')!r}; daemon and worker are of different versions"
        )
    bundle = Bundle.open(Path(order["bundle"]))
    layout = Layout.of(bundle.manifest)
    arena = Arena.attach(memory_fd, layout, order["capacity"])
    backend = order["backend"]
    load: PolicyLoader = importlib.import_module(order["module"]).load
    policy = load(bundle, layout, Path(order["cache_dir"]))
    bound = bundle.manifest.parity[order["parity"]].bound
    parity, step_us = _check_golden(policy, layout, bundle.golden(), bundle.manifest)
    # `not <=` also refuses NaN.
    if not parity <= bound:
        raise CorruptDataError(
            f"{bundle.path}: {backend} differs from the golden vectors by {parity:.2e} of the action range, "
            f"the bound is {bound:.2e}"
        )
    load_s = time.monotonic() - started
    # A stand-in for a device says so in its name.
    name = getattr(policy, "name", backend)
    report: dict[str, Any] = {"backend": name, "parity": parity, "load_s": load_s, "step_us": step_us}
    if measure := getattr(policy, "telemetry", None):
        report["telemetry"] = measure()
    return policy, arena, report


def _check_golden(policy: Policy, layout: Layout, golden: Golden, manifest: Manifest) -> tuple[float, float]:
    """Run the golden sequence, state fed back; return the parity and the median step in microseconds."""
    span = np.asarray(manifest.action_high, np.float32) - np.asarray(manifest.action_low, np.float32)
    span[span == 0.0] = 1.0
    shape = (1, layout.carry_size)
    carry: tuple[Any, Any] = (np.zeros(shape, np.float32), np.zeros(shape, np.float32))
    request = np.zeros((1, layout.request_size), np.float32)
    response = np.zeros((1, layout.response_size), np.float32)
    worst, taken_ns = 0.0, []
    for t, expected in enumerate(golden.action):
        _fill_golden(request, golden, t)
        started_ns = time.monotonic_ns()
        policy.run(carry[t % 2], request, carry[1 - t % 2], response)
        taken_ns.append(time.monotonic_ns() - started_ns)
        difference = np.abs(response.reshape(expected.shape) - expected) / span
        worst = max(worst, float(difference.max())) if np.isfinite(difference).all() else float("nan")
        if not worst <= np.inf:
            break
    return worst, median(taken_ns) / 1e3


def _fill_golden(request: "Float32[np.ndarray, '1 R']", golden: Golden, t: int) -> None:
    request[0] = np.concatenate(
        [
            golden.observation[t],
            golden.previous_action[t],
            [golden.previous_reward[t], golden.is_first[t]],
        ]
    )


def _serve(sock: socket.socket, policy: Policy, arena: Arena) -> None:
    rows: dict[int, Row] = {}
    reporter = Reporter(sock, policy)
    while message := reporter.receive():
        run = decode_run(message)
        start_ns = time.monotonic_ns()
        if start_ns > run.deadline_ns:
            sock.send(encode_done(Done(run.sequence, run.row, Status.EXPIRED, start_ns, start_ns)))
            continue
        row = rows.get(run.row)
        if row is None:
            row = rows[run.row] = arena.row(run.row)
        next_carry = row.carry[1 - run.read_slot]
        policy.run(row.carry[run.read_slot], row.request, next_carry, row.response)
        finite = np.isfinite(row.response).all() and np.isfinite(next_carry).all()
        status = Status.OK if finite else Status.NONFINITE
        sock.send(encode_done(Done(run.sequence, run.row, status, start_ns, time.monotonic_ns())))


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING, format=f"inference worker {os.getpid()}: %(message)s")
    sys.exit(main())
