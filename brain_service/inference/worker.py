"""An inference worker: one bundle on one backend, in a process of its own.

    python -m brain_service.inference.worker --fd N

`N` is its end of the socket pair (`protocol`). It verifies the bundle, loads it, reproduces the golden sequence,
and serves steps until the socket closes: it never outlives the daemon. An error inside a step ends the process;
the daemon answers 503, keeps the carry and starts another.

It begins with steps one by one. When it first finds several waiting, a second thread compiles the step for
batches: the worker of a single robot, the usual one, pays neither the time nor the memory, and readiness never
waits for a compiler. XLA compiles without holding the interpreter's lock, so steps go on meanwhile.
"""

import argparse
import contextlib
import gc
import importlib
import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from brain_service.errors import BrainError, CorruptDataError, UnavailableError
from brain_service.export.bundle import Bundle
from brain_service.inference.arena import Arena, Layout
from brain_service.inference.backends import Policy, PolicyLoader
from brain_service.inference.batching import Batcher, Warmed, warm_buckets
from brain_service.inference.golden import check_golden
from brain_service.inference.protocol import (
    MAX_MESSAGE_BYTES,
    PROTOCOL_VERSION,
    Kind,
    Run,
    decode_document,
    decode_run,
    encode_document,
    encode_dones,
    receive_with_fd,
)
from brain_service.inference.telemetry import Reporter

__all__ = ["main"]

log = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None) -> int:
    """Load what the daemon asks for and serve it; returns the exit code."""
    parser = argparse.ArgumentParser(prog="brain_service.inference.worker")
    parser.add_argument("--fd", type=int, required=True, help="this end of the socket pair to the daemon")
    with socket.socket(fileno=parser.parse_args(arguments).fd) as sock:
        try:
            message, memory_fd = receive_with_fd(sock)
            loaded = _load(message, memory_fd)
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
            sock.send(encode_document(Kind.LOADED, loaded.report))
            _serve(sock, loaded)
        except (BrokenPipeError, ConnectionResetError):
            log.info("the daemon is gone")
    return 0


def _refuse(sock: socket.socket, error: BrainError) -> int:
    # Cut: a compiler's message can be longer than a packet.
    sock.send(encode_document(Kind.FAILED, {"slug": error.slug, "detail": error.detail[:4000]}))
    return 1


@dataclass(frozen=True)
class _Loaded:
    bundle: Bundle
    policy: Policy
    batcher: Batcher
    report: dict[str, Any]


def _load(message: bytes, memory_fd: int) -> _Loaded:
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
    parity, step_us = check_golden(policy, layout, bundle.golden(), bundle.manifest)
    # `not <=` also refuses NaN.
    if not parity <= bound:
        raise CorruptDataError(
            f"{bundle.path}: {backend} differs from the golden vectors by {parity:.2e} of the action range, "
            f"the bound is {bound:.2e}"
        )
    batcher = Batcher(policy, arena)
    wanted = [size for size in order.get("buckets", ()) if size in policy.buckets[1:]]
    if wanted:
        # A replay wants them from its first step on.
        warmed = _warm(bundle, policy, wanted)
        batcher.use(warmed)
        wanted = [size for size in wanted if size in warmed.cost]
    load_s = time.monotonic() - started
    report: dict[str, Any] = {
        # A stand-in for a device says so in its name.
        "backend": getattr(policy, "name", backend),
        "parity": parity,
        "load_s": load_s,
        "step_us": step_us,
        "buckets": wanted,
    }
    if measure := getattr(policy, "telemetry", None):
        report["telemetry"] = measure()
    return _Loaded(bundle, policy, batcher, report)


def _warm(bundle: Bundle, policy: Policy, sizes: Sequence[int]) -> Warmed:
    layout = Layout.of(bundle.manifest)
    warmed = warm_buckets(policy, layout, bundle.golden(), bundle.manifest, sizes)
    for size, reason in warmed.refused.items():
        log.warning("no batches of %d: %s", size, reason)
    return warmed


def _serve(sock: socket.socket, loaded: _Loaded) -> None:
    batcher, warmer = loaded.batcher, None
    reporter = Reporter(sock, loaded.policy)
    while message := reporter.receive():
        run = decode_run(message)
        runs = [run, *_waiting(sock, batcher.most - 1)] if batcher.most > 1 else [run]
        if len(runs) > 1 and warmer is None:
            warmer = threading.Thread(target=_warm_beside, args=(sock, loaded), name="warmer", daemon=True)
            warmer.start()
        for dones in batcher.run(runs):
            sock.send(encode_dones(dones))


def _waiting(sock: socket.socket, most: int) -> list[Run]:
    """Return the steps that lie ready on the socket, at most so many; waits for none."""
    runs: list[Run] = []
    try:
        while len(runs) < most and (message := sock.recv(MAX_MESSAGE_BYTES, socket.MSG_DONTWAIT)):
            runs.append(decode_run(message))
    except BlockingIOError:
        pass
    return runs


def _warm_beside(sock: socket.socket, loaded: _Loaded) -> None:
    # While it traces it holds the interpreter's lock: the thread that serves gets it back after half a
    # millisecond.
    sys.setswitchinterval(5e-4)
    try:
        warmed = _warm(loaded.bundle, loaded.policy, loaded.policy.buckets[1:])
    except Exception:
        # The boundary to foreign runtimes: without batches the steps go on one by one.
        log.exception("no batches: compiling or timing them failed")
        return
    loaded.batcher.use(warmed)
    report = {
        "cost_in_steps": {str(size): round(cost, 2) for size, cost in warmed.cost.items()},
        "refused": {str(size): reason for size, reason in warmed.refused.items()},
    }
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        sock.send(encode_document(Kind.WARMED, report))


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING, format=f"inference worker {os.getpid()}: %(message)s")
    code = main()
    # Without the interpreter's tidying up: a compile that still runs beside must not outlive the daemon.
    os._exit(code)
