"""The TPU's compiler in a process of its own: it can be stopped, and what it breaks is not ours.

A process compiles one request after the other; the import of JAX and libtpu is paid once. One libtpu runs at a
time on a machine as far as this module is concerned.
"""

import json
import select
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from types import TracebackType
from typing import Any

from brain_service.cloud.plans import Plan
from brain_service.errors import BrainError, DeadlineExceededError, InvalidError, UnavailableError
from brain_service.settings import child_environment

__all__ = ["Compiler", "StepRequest"]

# Before JAX starts: no TPU is looked for, none is needed, and a second load of libtpu is no error.
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TPU_MIN_LOG_LEVEL": "3",
}
ERRORS: Mapping[str, type[BrainError]] = {"invalid": InvalidError, "unavailable": UnavailableError}


@dataclass(frozen=True, kw_only=True)
class StepRequest:
    """A train step to compile: preset and sizes, on the chips of a slice, of which `fsdp` share a copy."""

    topology: str
    preset: str
    batch_size: int
    sequence_length: int
    obs_dim: int = 128
    action_dim: int = 32
    fsdp: int = 1
    mode: str = "windows"
    model: Mapping[str, Any] = field(default_factory=dict)
    """Overrides of the preset's fields."""


class Compiler:
    """A compiling process, started with the first request; use it as a context manager."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> "Compiler":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def compile(self, request: StepRequest, limit_s: float) -> Plan:
        """Compile one step and return its plan, whether it fits or not.

        Raises:
            InvalidError: a size is impossible: chips that do not divide the batch, an unknown preset or topology.
            UnavailableError: libtpu is not installed here, or it failed; the message says how.
            DeadlineExceededError: it took longer than `limit_s`; the process was stopped.
        """
        process = self._started()
        assert process.stdin is not None and process.stdout is not None
        try:
            process.stdin.write(json.dumps(asdict(request)) + "\n")
            process.stdin.flush()
        except BrokenPipeError as error:
            raise self._died() from error
        until_s = time.monotonic() + limit_s
        while not select.select([process.stdout], [], [], min(1.0, max(until_s - time.monotonic(), 0)))[0]:
            if time.monotonic() >= until_s:
                self.close()
                raise DeadlineExceededError(
                    f"compiling for {request.topology} took longer than {limit_s:.0f} s and was stopped; give "
                    "more time with --limit-s, or plan a smaller batch"
                )
        line = process.stdout.readline()
        if not line:
            raise self._died()
        answer = json.loads(line)
        if "error" in answer:
            raise ERRORS[answer["kind"]](answer["error"], field=answer["field"])
        return Plan.from_json(answer, "the compiling process")

    def close(self) -> None:
        """End the process. Idempotent."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def _started(self) -> "subprocess.Popen[str]":
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "cloud_trainer.topology"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env=child_environment(ENVIRONMENT),
            )
        return self._process

    def _died(self) -> UnavailableError:
        process, self._process = self._process, None
        if process is None:
            return UnavailableError("the compiling process is gone")
        process.kill()
        said = (process.communicate()[1] or "").strip().splitlines()
        return UnavailableError(f"the compiling process ended: {said[-1] if said else 'it said nothing'}")
