"""Runs of the job as real processes."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from brain_service.cloud.run_status import RunStatus
from tests.training.tasks import TINY

MODEL = TINY | {"d_e": 32, "d_h": 32, "cms_sizes": (2,), "cms_periods": (1,), "cms_decays": (0.1,)}
"""Large enough that fsdp has something to spread, small enough to compile soon."""


def arguments(data: str | Path, output: str | Path, *more: str, **settings: Any) -> list[str]:
    """Return the words of a small run; `settings` are options by name."""
    options = {
        "data-path": data,
        "output-dir": output,
        "preset": "development",
        "batch-size": 8,
        "num-steps": 6,
        "learning-rate": 1e-3,
        "sequence-length": 8,
        "checkpoint-every": 1000,
        "log-every": 1,
        "heartbeat-s": 0.5,
    } | {name.replace("_", "-"): value for name, value in settings.items()}
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    return [*words, "--set", "warmup_steps=2", "--set", f"model={json.dumps(MODEL)}", *more]


def cluster(count: int) -> list[list[str]]:
    """Return for each of so many processes on this machine the options by which they meet."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    return [
        ["--coordinator-address", address, "--num-processes", str(count), "--process-id", str(index)]
        for index in range(count)
    ]


def do(
    folder: Path, groups: list[list[dict[str, Any]]], environment: Mapping[str, str] | None = None
) -> list[list[tuple[int, str]]]:
    """Do groups of runs (see `forked`) and return exit code and standard error of each."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "spec.json").write_text(json.dumps(groups))
    # Nobody waits for these steps, but for their compiler.
    quick = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    settings = {
        "JAX_PLATFORMS": "cpu",
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_COMPILATION_CACHE_DIR": str(jax.config.values["jax_compilation_cache_dir"] or folder / "xla"),
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {quick}",
    }
    done = subprocess.run(
        [sys.executable, "-m", "tests.cloud_trainer.forked", str(folder)],
        cwd=Path(__file__).parents[2],
        env=os.environ | settings | dict(environment or {}),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return [
        [(int(code), str(errors)) for code, errors in group] for group in json.loads(done.stdout.splitlines()[-1])
    ]


def status(output: Path) -> RunStatus:
    """Return the heartbeat in a local output directory."""
    path = output / "status.json"
    return RunStatus.from_json(path.read_bytes(), str(path))
