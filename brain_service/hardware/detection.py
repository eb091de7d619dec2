"""`detect_jax_backends()`: what this machine can train and act with, each with the reason where it cannot."""

import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
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
from brain_service.hardware.probes import Probe, ask

__all__ = ["INFERENCE_ORDER", "TRAINING_ORDER", "Machine", "detect_jax_backends", "jax_backend"]

TRAINING_ORDER = ("tpu", "gpu", "cpu")
INFERENCE_ORDER = ("hailo", "tpu", "gpu", "cpu")
PLATFORMS: Mapping[str, str] = {"cpu": "cpu", "gpu": "cuda", "tpu": "tpu"}
"""What JAX calls each device."""

SYSTEM_PYTHON = "/usr/bin/python3"

_JAX_DISTRIBUTIONS = ("jax", "jaxlib", "libtpu", "jax-cuda12-plugin", "jax-cuda13-plugin")


@dataclass(frozen=True)
class Machine:
    """Where to look (the kernel's and the system's files), the time a runtime gets, and where answers are kept."""

    sysfs: Path = SYSFS
    dev: Path = DEV
    root: Path = ROOT
    timeout_s: float = 60.0
    cache_dir: Path | None = None


def detect_jax_backends(
    *,
    sysfs: Path = SYSFS,
    dev: Path = DEV,
    root: Path = ROOT,
    timeout_s: float = 60.0,
    cache_dir: Path | None = None,
) -> dict[str, Any]:
    """Return `backends` (cpu, gpu, tpu, hailo), `best_for_training` and `best_for_inference`. Blocking.

    Each backend has `available`, `reason` (why not, and the next step; None where it is) and `devices`; `cpu` also
    has `runtimes`, `hailo` its parts `pci`, `device_node` and `runtime`. The best of nothing is None.

    What only a runtime knows is asked of it in child processes with a time limit, at the same time, and kept (in
    `cache_dir` too, see `probes.ask`): JAX is never imported here. While a worker holds a TPU, a child may be told
    that it is busy; the reason then says so.
    """
    machine = Machine(sysfs, dev, root, timeout_s, cache_dir)
    with ThreadPoolExecutor(4, thread_name_prefix="probe") as pool:
        asked = {device: pool.submit(jax_backend, device, machine) for device in ("cpu", "gpu", "tpu")}
        asked["hailo"] = pool.submit(_hailo, machine)
    backends = {device: told.result() for device, told in asked.items()}
    backends["cpu"]["runtimes"] = [name for name in ("jax", "onnxruntime") if package_obstacle(name) is None]
    return {
        "backends": backends,
        "best_for_training": _best(TRAINING_ORDER, backends),
        "best_for_inference": _best(INFERENCE_ORDER, backends),
    }


def _best(order: Sequence[str], backends: Mapping[str, Mapping[str, Any]]) -> str | None:
    return next((name for name in order if backends[name]["available"]), None)


def jax_backend(device: str, machine: Machine) -> dict[str, Any]:
    """Return what JAX says of `cpu`, `gpu` or `tpu`: `available`, `reason` and `devices`. Blocking.

    A device that is not there, or whose package is not, is not asked for.
    """
    obstacle = _obstacle(device, machine)
    if obstacle is None:
        environment = {"JAX_PLATFORMS": PLATFORMS[device], "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
        command = (sys.executable, "-m", "brain_service.hardware.jax_probe")
        probe = Probe(command, environment, _JAX_DISTRIBUTIONS)
        answer = ask(probe, timeout_s=machine.timeout_s, cache_dir=machine.cache_dir)
        obstacle = answer.get("error")
        if obstacle is None:
            return {
                "available": True,
                "reason": None,
                "devices": answer["devices"],
                "jax_version": answer["version"],
            }
    return {"available": False, "reason": obstacle, "devices": []}


def _obstacle(device: str, machine: Machine) -> str | None:
    if device == "tpu":
        return tpu_obstacle(machine.sysfs)
    return gpu_obstacle(machine.dev) if device == "gpu" else package_obstacle("jax")


def _hailo(machine: Machine) -> dict[str, Any]:
    parts = hailo_parts(machine.sysfs, machine.dev, machine.root)
    if not any(part["reason"] for part in parts.values()):
        python = str(machine.root / SYSTEM_PYTHON.lstrip("/"))
        code = "import json, hailo_platform; print(json.dumps({'version': hailo_platform.__version__}))"
        answer = ask(Probe((python, "-c", code), {}), timeout_s=machine.timeout_s)
        parts["runtime"] |= {"reason": answer.get("error"), "version": answer.get("version")}
    reasons = [f"{name}: {part['reason']}" for name, part in parts.items() if part["reason"]]
    names = [f"{chip['name']} at {chip['address']}" for chip in parts["pci"]["found"]]
    return {"available": not reasons, "reason": "; ".join(reasons) or None, "devices": names} | parts
