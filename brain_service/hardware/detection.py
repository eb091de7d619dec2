"""`detect_jax_backends()`: what this machine can train and act with, each with the reason where it cannot."""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from brain_service.hardware.accelerators import (
    DEV,
    ROOT,
    SYSFS,
    gpu_obstacle,
    hailo_parts,
    package_obstacle,
    tpu_obstacle,
)
from brain_service.settings import child_environment

__all__ = ["detect_jax_backends"]

TRAINING_ORDER = ("tpu", "gpu", "cpu")
INFERENCE_ORDER = ("hailo", "tpu", "gpu", "cpu")
PLATFORMS: Mapping[str, str] = {"cpu": "cpu", "gpu": "cuda", "tpu": "tpu"}
"""What JAX calls each device."""

SYSTEM_PYTHON = "/usr/bin/python3"

_KEPT_S = 600.0
_PACKAGE_ROOT = Path(__file__).resolve().parents[2]
_asked: dict[tuple[str, ...], tuple[float, dict[str, Any]]] = {}
_asking = threading.Lock()


def detect_jax_backends(
    *, sysfs: Path = SYSFS, dev: Path = DEV, root: Path = ROOT, timeout_s: float = 60.0
) -> dict[str, Any]:
    """Return `backends` (cpu, gpu, tpu, hailo), `best_for_training` and `best_for_inference`. Blocking.

    Each backend has `available`, `reason` (why not, and the next step; None where it is) and `devices`; `cpu` also
    has `runtimes`, `hailo` its parts `pci`, `device_node` and `runtime`. The best of nothing is None.

    What only a runtime knows is asked of it in a child process with a time limit, and kept for ten minutes: JAX is
    never imported here. While a worker holds a TPU, a child may be told that it is busy; the reason then says so.
    """
    backends = {
        "cpu": _jax("cpu", package_obstacle("jax"), timeout_s)
        | {"runtimes": [name for name in ("jax", "onnxruntime") if package_obstacle(name) is None]},
        "gpu": _jax("gpu", gpu_obstacle(dev), timeout_s),
        "tpu": _jax("tpu", tpu_obstacle(sysfs), timeout_s),
        "hailo": _hailo(sysfs, dev, root, timeout_s),
    }
    return {
        "backends": backends,
        "best_for_training": _best(TRAINING_ORDER, backends),
        "best_for_inference": _best(INFERENCE_ORDER, backends),
    }


def _best(order: Sequence[str], backends: Mapping[str, Mapping[str, Any]]) -> str | None:
    return next((name for name in order if backends[name]["available"]), None)


def _jax(device: str, obstacle: str | None, timeout_s: float) -> dict[str, Any]:
    if obstacle is None:
        environment = {"JAX_PLATFORMS": PLATFORMS[device], "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
        command = (sys.executable, "-m", "brain_service.hardware.jax_probe")
        answer = _ask(command, environment, timeout_s)
        obstacle = answer.get("error")
        if obstacle is None:
            return {
                "available": True,
                "reason": None,
                "devices": answer["devices"],
                "jax_version": answer["version"],
            }
    return {"available": False, "reason": obstacle, "devices": []}


def _hailo(sysfs: Path, dev: Path, root: Path, timeout_s: float) -> dict[str, Any]:
    parts = hailo_parts(sysfs, dev, root)
    if not any(part["reason"] for part in parts.values()):
        python = str(root / SYSTEM_PYTHON.lstrip("/"))
        code = "import json, hailo_platform; print(json.dumps({'version': hailo_platform.__version__}))"
        answer = _ask((python, "-c", code), {}, timeout_s)
        parts["runtime"] |= {"reason": answer.get("error"), "version": answer.get("version")}
    reasons = [f"{name}: {part['reason']}" for name, part in parts.items() if part["reason"]]
    names = [f"{chip['name']} at {chip['address']}" for chip in parts["pci"]["found"]]
    return {"available": not reasons, "reason": "; ".join(reasons) or None, "devices": names} | parts


def _ask(command: tuple[str, ...], environment: Mapping[str, str], timeout_s: float) -> dict[str, Any]:
    """Return the JSON object that a child process prints last, or its `error`; kept for a while."""
    key = (*command, *environment.values())
    with _asking:
        asked_s, answer = _asked.get(key, (0.0, {}))
        if not answer or time.monotonic() - asked_s > _KEPT_S:
            answer = _run(command, environment, timeout_s)
            _asked[key] = time.monotonic(), answer
        return answer


def _run(command: tuple[str, ...], environment: Mapping[str, str], timeout_s: float) -> dict[str, Any]:
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
