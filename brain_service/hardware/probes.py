"""Ask in a child process what only a runtime knows, and keep its answer: in memory, and on disk for others.

A driver that hangs or crashes takes only the child down, and the daemon never loads a framework.
"""

import hashlib
import json
import logging
import platform
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from brain_service.durable import make_directory, write_atomic
from brain_service.processes import boot_id
from brain_service.settings import child_environment

__all__ = ["PROBES_FILE", "Probe", "ask", "forget"]

log = logging.getLogger(__name__)

PROBES_FILE = "probes"
"""In `cache_dir`: a line with the SHA-256 of the rest, which is JSON."""

KEPT_S = 600.0
# What is amiss is often being mended, and a device that was busy may be free.
FAILURE_KEPT_S = 30.0
STORED_S = 86_400.0

# What decides, beside the command's own variables, which code and which devices a child finds.
_DECISIVE = ("PYTHONPATH", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES", "TPU_VISIBLE_CHIPS")
_PACKAGE_ROOT = Path(__file__).resolve().parents[2]

_kept: dict[str, tuple[float, dict[str, Any]]] = {}
_turns: dict[str, threading.Lock] = {}
_guard = threading.Lock()


@dataclass(frozen=True)
class Probe:
    """A command that prints a JSON object last: what it found, or an `error`.

    `distributions` are the installed packages that decide the answer; one that rests on none of this interpreter's
    is never stored.
    """

    command: tuple[str, ...]
    environment: Mapping[str, str]
    distributions: tuple[str, ...] = ()


def ask(probe: Probe, *, timeout_s: float, cache_dir: Path | None = None) -> dict[str, Any]:
    """Return what the child process found, or its `error`. Blocking; the same question is asked once at a time.

    An answer is kept for ten minutes, an error for half a minute. With a `cache_dir` a process that has not asked
    yet takes an answer from there that is of this boot, interpreter and packages and less than a day old.
    """
    key = _key(probe)
    with _guard:
        turn = _turns.setdefault(key, threading.Lock())
    with turn:
        asked_s, answer = _kept.get(key, (0.0, {}))
        if answer and time.monotonic() - asked_s < (FAILURE_KEPT_S if "error" in answer else KEPT_S):
            return answer
        storable = cache_dir if probe.distributions else None
        stored = _stored(storable, key) if storable is not None and not answer else None
        answer = stored or _run(probe.command, probe.environment, timeout_s)
        _kept[key] = time.monotonic(), answer
    if storable is not None and stored is None and "error" not in answer:
        _store(storable, key, answer)
    return answer


def forget() -> None:
    """Drop what this process has been told; files stay."""
    _kept.clear()


def _key(probe: Probe) -> str:
    environment = child_environment({})
    facts = (
        probe.command,
        sorted(probe.environment.items()),
        [environment.get(name) for name in _DECISIVE],
        (sys.executable, platform.python_version()),
        [(name, _version(name)) for name in probe.distributions],
        boot_id(),
    )
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def _run(command: Sequence[str], environment: Mapping[str, str], timeout_s: float) -> dict[str, Any]:
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            stdin=subprocess.DEVNULL,
            timeout=timeout_s,
            text=True,
            errors="replace",
            cwd=_PACKAGE_ROOT,
            env=child_environment(environment),
            check=False,
        )
    except subprocess.TimeoutExpired:
        return {
            "error": f"its runtime gave no answer within {timeout_s:g} s; does another process use the device?"
        }
    except OSError as error:
        return {"error": f"{command[0]} cannot be started: {error.strerror}"}
    last = (done.stdout.strip().splitlines() or [""])[-1]
    try:
        answer = json.loads(last)
    except ValueError:
        answer = None
    if isinstance(answer, dict):
        return answer
    end = (done.stderr.strip().splitlines() or ["it printed nothing"])[-1]
    return {"error": f"its runtime failed with exit code {done.returncode}: {end[:500]}"}


def _stored(cache_dir: Path, key: str) -> dict[str, Any] | None:
    return _entries(cache_dir).get(key, {}).get("answer")


def _entries(cache_dir: Path) -> dict[str, dict[str, Any]]:
    """Return the stored answers that are young enough; a file that is missing or damaged holds none."""
    try:
        digest, _, text = (cache_dir / PROBES_FILE).read_bytes().partition(b"\n")
    except OSError:
        return {}
    if digest != hashlib.sha256(text).hexdigest().encode():
        return {}
    entries: dict[str, dict[str, Any]] = json.loads(text)
    now_ns = time.time_ns()
    return {key: entry for key, entry in entries.items() if 0 <= now_ns - entry["asked_ns"] < STORED_S * 1e9}


def _store(cache_dir: Path, key: str, answer: dict[str, Any]) -> None:
    # Another process may write at the same time: of two answers one is then asked for again some day.
    with _guard:
        entries = _entries(cache_dir) | {key: {"asked_ns": time.time_ns(), "answer": answer}}
        try:
            make_directory(cache_dir)
            text = json.dumps(entries).encode()
            write_atomic(cache_dir / PROBES_FILE, hashlib.sha256(text).hexdigest().encode() + b"\n" + text)
        except OSError as error:
            log.info("cannot keep what a probe found", extra={"reason": str(error)})
