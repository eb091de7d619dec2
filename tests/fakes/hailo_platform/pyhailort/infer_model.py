"""InferModel and what comes of it: bindings, jobs, and the traps of both."""

import os
import threading
import time
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from . import chip
from ._pyhailort import HailoRTStatusException, profile
from .exceptions import HailoRTException, HailoRTTimeout, from_status, wrapped
from .formats import FormatOrder, FormatType, describe
from .network import Network, StreamInfo

T = TypeVar("T")


class InferStream:
    def __init__(self, stream: StreamInfo) -> None:
        self.stream = stream
        self.name = stream.name
        self.shape = (1, 1, stream.size)
        self.format = describe(stream).format
        self.quant_infos = [describe(stream).quant_info]
        self.is_nms = False

    def set_format_type(self, type: FormatType) -> None:
        self.format.type = type

    def set_format_order(self, order: FormatOrder) -> None:
        self.format.order = order

    @property
    def dtype(self) -> Any:
        return {FormatType.FLOAT32: np.float32, FormatType.UINT16: np.uint16}.get(self.format.type, np.uint8)

    def to_device(self, buffer: Any) -> Any:
        # Memory is memory: the bytes are read as the format says, whatever the array's own dtype is.
        values = np.frombuffer(buffer.tobytes(), self.dtype)
        return self.stream.quantise(values) if self.dtype == np.float32 else values

    def from_device(self, integers: Any) -> Any:
        return self.stream.dequantise(integers) if self.dtype == np.float32 else integers.astype(self.dtype)


class InferModel:
    def __init__(self, vdevice: Any, code: int, network: Network) -> None:
        self._vdevice, self._code, self._network = vdevice, code, network
        self._inputs = {each.name: InferStream(each) for each in network.inputs}
        # As in the C library's map: by name.
        self._outputs = {
            each.name: InferStream(each) for each in sorted(network.outputs, key=lambda each: each.name)
        }

    @property
    def inputs(self) -> list[InferStream]:
        return list(self._inputs.values())

    @property
    def outputs(self) -> list[InferStream]:
        return list(self._outputs.values())

    @property
    def input_names(self) -> list[str]:
        return list(self._inputs)

    @property
    def output_names(self) -> list[str]:
        return list(self._outputs)

    def input(self, name: str = "") -> InferStream:
        with wrapped():
            return _by_name(self._inputs, name)

    def output(self, name: str = "") -> InferStream:
        with wrapped():
            return _by_name(self._outputs, name)

    def set_batch_size(self, batch_size: int) -> None:
        pass

    def set_power_mode(self, power_mode: Any) -> None:
        pass

    def configure(self) -> "ConfiguredInferModel":
        with wrapped():
            if self._vdevice._claim is None:
                raise HailoRTStatusException(6)
            if not chip.scan():
                raise HailoRTStatusException(profile().removed)
            if not chip.runs_here(self._code):
                raise HailoRTStatusException(profile().hef_for_another)
        return ConfiguredInferModel(self, self._vdevice)


def _by_name(found: dict[str, T], name: str) -> T:
    if name == "":
        if len(found) != 1:
            raise HailoRTStatusException(6)
        return next(iter(found.values()))
    if name not in found:
        raise HailoRTStatusException(61)
    return found[name]


class Binding:
    def __init__(self) -> None:
        self._buffer: Any = None

    def set_buffer(self, buffer: Any) -> None:
        if not buffer.flags.c_contiguous:
            raise HailoRTException("Buffer must be C_CONTIGUOUS")
        if not buffer.flags.writeable:
            raise ValueError("array is not writeable")
        self._buffer = buffer

    def get_buffer(self, tf_format: Any = False) -> Any:
        return self._buffer


class Bindings:
    def __init__(self, model: InferModel) -> None:
        self._inputs = {name: Binding() for name in model.input_names}
        self._outputs = {name: Binding() for name in model.output_names}

    def input(self, name: str = "") -> Binding:
        with wrapped():
            return _by_name(self._inputs, name)

    def output(self, name: str = "") -> Binding:
        with wrapped():
            return _by_name(self._outputs, name)


@dataclass
class AsyncInferCompletionInfo:
    exception: Exception | None


class AsyncInferJob:
    def __init__(self) -> None:
        self.done = threading.Event()

    def wait(self, timeout_ms: float) -> None:
        # Trap: first for the job, then again for its callback; and nothing here says how the job ended.
        if not (self.done.wait(timeout_ms / 1000) or self.done.wait(timeout_ms / 1000)):
            raise HailoRTTimeout("Received a timeout - hailort has failed because a timeout had occurred")


class ConfiguredInferModel:
    def __init__(self, model: InferModel, vdevice: Any) -> None:
        self._model, self._vdevice = model, vdevice
        self._scheduled = vdevice._params.scheduling_algorithm.name != "NONE"
        self._active = self._scheduled
        self._dead = False
        self.released = False
        # A job may outlive the environment that it was started in.
        self._folder, self._profile = chip.folder(), profile()
        vdevice._configured.append(self)

    def __enter__(self) -> "ConfiguredInferModel":
        return self

    def __exit__(self, *_: Any) -> None:
        self._dead = self.released = True

    def activate(self) -> None:
        if self._scheduled:
            raise from_status(6)
        self._active = True

    def deactivate(self) -> None:
        if self._scheduled:
            raise from_status(6)
        self._active = False

    def create_bindings(self, input_buffers: Any = None, output_buffers: Any = None) -> Bindings:
        bindings = Bindings(self._model)
        for name, buffer in (input_buffers or {}).items():
            bindings.input(name).set_buffer(buffer)
        for name, buffer in (output_buffers or {}).items():
            bindings.output(name).set_buffer(buffer)
        return bindings

    def wait_for_async_ready(self, timeout_ms: int = 1000, frames_count: int = 1) -> None:
        self._require_alive()

    def get_async_queue_size(self) -> int:
        return 16

    def set_scheduler_timeout(self, timeout_ms: int) -> None:
        pass

    def set_scheduler_threshold(self, threshold: int) -> None:
        pass

    def set_scheduler_priority(self, priority: int) -> None:
        pass

    def shutdown(self) -> None:
        self._dead = True

    def run(self, bindings: list[Bindings], timeout: int) -> None:
        self.run_async(bindings).wait(timeout)

    def run_async(self, bindings: list[Bindings], callback: Any = None) -> AsyncInferJob:
        self._require_alive()
        if not self._active:
            raise from_status(69)
        for binding in bindings:
            self._require_sizes(binding)
        for binding in bindings:
            for output in binding._outputs.values():
                # Until the job is done there is nothing in it that anybody could want.
                np.frombuffer(output._buffer, np.uint8)[:] = 0xAB
        job = AsyncInferJob()
        thread = threading.Thread(target=self._work, args=(bindings, callback, job), daemon=True)
        thread.start()
        return job

    def _require_alive(self) -> None:
        if self._vdevice._claim is None:
            chip.crime("a model was used after its VDevice was released: HailoRT segfaults")
        if self._dead:
            raise from_status(6)

    def _require_sizes(self, binding: Bindings) -> None:
        for streams, buffers in (
            (self._model._inputs, binding._inputs),
            (self._model._outputs, binding._outputs),
        ):
            for name, stream in streams.items():
                expected = stream.stream.size * np.dtype(stream.dtype).itemsize
                buffer = buffers[name]._buffer
                if buffer is None or buffer.nbytes != expected:
                    # Trap: the whole model is shut down for it.
                    self._dead = True
                    raise from_status(6)

    def _work(self, bindings: list[Bindings], callback: Any, job: AsyncInferJob) -> None:
        status = 0
        if chip.fault("hang", self._folder):
            while not chip.fault("thaw", self._folder):
                if self._vdevice._claim is None:
                    return
                time.sleep(0.01)
            status = 63
        elif chip.fault("remove", self._folder):
            (self._folder / "removed").touch()
            status = self._profile.removed
        elif chip.fault("transient", self._folder):
            status = self._profile.transient
        elif chip.fault("job_error", self._folder):
            status = 63
        if status:
            self._dead = True
        for binding in bindings:
            integers = {
                name: stream.to_device(binding._inputs[name]._buffer)
                for name, stream in self._model._inputs.items()
            }
            # Trap: the memory is copied whatever became of the job.
            found = chip.work(self._model._network, integers, self._folder)
            for name, stream in self._model._outputs.items():
                values = found[name] if not status else found[name] // 3
                target = np.frombuffer(binding._outputs[name]._buffer, np.uint8)
                target[:] = np.frombuffer(stream.from_device(values).tobytes(), np.uint8)
        if callback is not None:
            try:
                callback(completion_info=AsyncInferCompletionInfo(from_status(status) if status else None))
            except BaseException:  # noqa: BLE001  whatever it is
                os.abort()  # as an exception that leaves a thread of the C library may
        job.done.set()
