"""Hailo-8, 8L and 10H: runs `hailo/model.hef` through HailoRT's InferModel API.

Imported by workers only, on the Python that has `hailo_platform`: the system's. HailoRT 4 needs NumPy < 2, so
nothing but the standard library and NumPy is imported here. State and scaling stay in float32 on the host; streams
are converted to and from the device's numbers by HailoRT.
"""

import atexit
import contextlib
import importlib
import logging
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from brain_service.errors import CorruptDataError, UnavailableError
from brain_service.export.bundle import HEF, Bundle
from brain_service.export.hailo_names import HAILO_NAMES, HostOp, Names, Stream
from brain_service.export.hef import check_device, check_runtime, parse_hef
from brain_service.inference.arena import Layout
from brain_service.inference.backends.hailo_device import HailoDevice, open_device
from brain_service.inference.backends.hailo_errors import GONE, TIMEOUT, asking, status_of, translate

if TYPE_CHECKING:
    from jaxtyping import Float32

__all__ = ["load"]

log = logging.getLogger(__name__)

JOB_TIMEOUT_MS = 250
"""A step takes about a millisecond. HailoRT may take twice this, a step is tried twice, and the daemon kills a
worker that says nothing for `inference.worker_hang_s`."""


@dataclass(frozen=True, slots=True, eq=False)
class _Port:
    """A stream's buffer in the stream's own shape, the same memory flat, and the part of a row that it carries."""

    name: str
    buffer: "Float32[np.ndarray, '...']"
    flat: "Float32[np.ndarray, 'n']"
    host: tuple[HostOp, ...]
    block: int
    part: slice


class _Job:
    """One submitted step: what HailoRT may still write to, and what its callback said."""

    __slots__ = ("error", "finished", "keep")

    def __init__(self, keep: Any) -> None:
        self.keep = keep
        self.finished = False
        self.error: BaseException | None = None

    def done(self, *, completion_info: Any) -> None:
        """Take the outcome; called by a thread of HailoRT, which an exception here could abort."""
        try:
            self.error = completion_info.exception
        except Exception as error:  # noqa: BLE001  the step's failure, not this thread's
            self.error = error
        self.finished = True


class HailoPolicy:
    """A step on the device. A step that fails is tried once more on a model configured anew; steps are pure."""

    buckets = (1,)

    def __init__(self, device: HailoDevice, names: Names, layout: Layout) -> None:
        self.name = "hailo (simulated)" if device.simulated else "hailo"
        self._device = device
        self._names = names
        self._parts = _parts(layout)
        self._pid = os.getpid()
        self._quarantine: list[_Job] = []
        self._model: Any = None
        self._configure()

    def run(
        self,
        carry: "Float32[np.ndarray, 'B C']",
        request: "Float32[np.ndarray, 'B R']",
        next_carry: "Float32[np.ndarray, 'B C']",
        response: "Float32[np.ndarray, 'B HA']",
    ) -> None:
        """Run one step, with B = 1; see `Policy.run` for the shapes.

        Raises:
            UnavailableError: the device failed twice, or is gone.
        """
        if os.getpid() != self._pid:
            raise UnavailableError("Hailo: a device cannot be used by a fork of the process that opened it")
        source = carry[0], request[0]
        try:
            self._infer(source)
        except Exception as error:
            # HailoRT's errors have no root of their own; a step's own failure comes through its callback.
            failure = translate(error, "a step")
            if status_of(error) in GONE:
                raise failure from error
            log.warning("%s; configuring the model anew", failure.detail)
            self._configure()
            try:
                self._infer(source)
            except Exception as again:
                raise translate(again, "a step, for the second time,") from again
        target = next_carry[0], response[0]
        for port in self._outputs:
            for step in port.host:
                step.apply(port.flat)
            target[port.block][port.part] = port.flat

    def telemetry(self) -> dict[str, Any]:
        """Return what the device says of itself, for the daemon; see `HailoDevice.telemetry`."""
        return self._device.telemetry()

    def close(self) -> None:
        """Let go of the device: the configured model, the model, then the device, or HailoRT crashes."""
        if os.getpid() != self._pid:
            return
        self._shut_down()
        self._inputs: tuple[_Port, ...] = ()
        self._outputs: tuple[_Port, ...] = ()
        self._bindings: Any = None
        self._device.close()

    def _infer(self, source: "tuple[Float32[np.ndarray, 'C'], Float32[np.ndarray, 'R']]") -> None:
        for port in self._inputs:
            port.flat[:] = source[port.block][port.part]
            for step in port.host:
                step.apply(port.flat)
        for port in self._outputs:
            # An output that nobody writes must not pass for one: NaN is refused by the worker.
            port.flat.fill(np.nan)
        self._model.wait_for_async_ready(timeout_ms=JOB_TIMEOUT_MS)
        job = _Job((self._bindings, self._inputs, self._outputs))
        # Until its callback has run HailoRT may write into the buffers, whatever `wait` says.
        self._quarantine.append(job)
        self._model.run_async([self._bindings], job.done).wait(JOB_TIMEOUT_MS)
        if not job.finished:
            raise UnavailableError(
                "HailoRT says that the step is done, its callback did not run", hailo_status=TIMEOUT
            )
        self._quarantine.remove(job)
        # `wait` knows nothing of the step's own failure.
        if job.error is not None:
            raise job.error

    def _configure(self) -> None:
        """Configure the model, anew after any error: one that failed has shut itself down, and its buffers may
        still be written to.
        """
        self._shut_down()
        self._quarantine = [job for job in self._quarantine if not job.finished]
        with asking("configuring the model"):
            model = self._device.infer_model
            self._inputs = self._ports(self._names.inputs, model.input, inputs=True)
            self._outputs = self._ports(self._names.outputs, model.output, inputs=False)
            self._model = model.configure()
            self._bindings = self._model.create_bindings(
                input_buffers={port.name: port.buffer for port in self._inputs},
                output_buffers={port.name: port.buffer for port in self._outputs},
            )

    def _shut_down(self) -> None:
        if self._model is not None:
            with contextlib.suppress(Exception):
                self._model.shutdown()
            with contextlib.suppress(Exception):
                self._model.__exit__(None, None, None)
            self._model = None

    def _ports(self, streams: tuple[Stream, ...], stream_of: Any, *, inputs: bool) -> tuple[_Port, ...]:
        found = []
        for stream in streams:
            shape = tuple(int(axis) for axis in stream_of(stream.layer).shape)
            if int(np.prod(shape)) != stream.size:
                raise CorruptDataError(
                    f"{HEF}: stream {stream.layer} has shape {list(shape)}, the step's {stream.role} has "
                    f"{stream.size} numbers; the HEF was compiled from another graph"
                )
            buffer = np.zeros(shape, np.float32)
            require_buffer(stream.layer, buffer, shape)
            block, part = self._parts[stream.role, inputs]
            found.append(_Port(stream.layer, buffer, buffer.reshape(-1), stream.host, block, part))
        return tuple(found)


def require_buffer(name: str, buffer: "np.ndarray[Any, Any]", shape: tuple[int, ...]) -> None:
    """Check what HailoRT does not: it takes any buffer of the right number of bytes, and shuts the model down at
    another.

    Raises:
        UnavailableError: dtype, shape, memory order or writability is wrong.
    """
    flags = buffer.flags
    if buffer.dtype != np.float32 or buffer.shape != shape or not flags.c_contiguous or not flags.writeable:
        raise UnavailableError(
            f"Hailo: the buffer of {name} is {buffer.dtype}{list(buffer.shape)}"
            f"{'' if flags.c_contiguous else ', not contiguous'}{'' if flags.writeable else ', read-only'}; "
            f"it must be a writable, contiguous float32{list(shape)}"
        )


def load(bundle: Bundle, layout: Layout, cache_dir: Path) -> HailoPolicy:  # noqa: ARG001  nothing is compiled here
    """Open a device that runs the bundle's HEF and configure it; see `PolicyLoader`.

    Raises:
        UnavailableError: no HailoRT, no device, one that is busy or of another kind, or versions that do not fit;
            the message says what to do.
        CorruptDataError: the HEF or its map of streams is not the bundle's.
    """
    hef, source = bundle.read(HEF), str(bundle.path / HEF)
    names = Names.from_bytes(bundle.read(HAILO_NAMES), str(bundle.path / HAILO_NAMES))
    info = parse_hef(hef, source)
    hailo = _import()
    check_runtime(info, str(hailo.__version__), source)
    device = open_device(hailo, hef, accepts=lambda architecture: check_device(info, architecture, source))
    try:
        policy = HailoPolicy(device, device.name_streams(names, source), layout)
    except BaseException:
        # Raised again: whatever it is, the device must be let go.
        device.close()
        raise
    # Before the interpreter takes its modules apart: the order in which HailoRT's objects go matters.
    atexit.register(policy.close)
    return policy


def _import() -> Any:
    try:
        return importlib.import_module("hailo_platform")
    except Exception as error:
        # Beside ImportError, a build for NumPy 1 raises what it likes under NumPy 2.
        raise UnavailableError(
            f"Hailo: {sys.executable} cannot import hailo_platform with NumPy {np.__version__} "
            f"({type(error).__name__}: {error}); install HailoRT (apt: hailo-all or hailo-h10-all), or name the "
            "Python that has it in inference.hailo_python"
        ) from error


def _parts(layout: Layout) -> Mapping[tuple[str, bool], tuple[int, slice]]:
    """Return where each stream lies, by role and whether it is an input: which block of a row, and what part."""
    D, A = layout.observation, layout.action
    found: dict[tuple[str, bool], tuple[int, slice]] = {
        ("observation", True): (1, slice(0, D)),
        ("previous_action", True): (1, slice(D, D + A)),
        ("previous_reward", True): (1, slice(D + A, D + A + 1)),
        ("is_first", True): (1, slice(D + A + 1, D + A + 2)),
        ("action", False): (1, slice(0, layout.response_size)),
    }
    start = 0
    for name, size in layout.carry.items():
        found[name, True] = found[name, False] = (0, slice(start, start + size))
        start += size
    return found
