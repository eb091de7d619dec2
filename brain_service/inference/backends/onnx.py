"""ONNX Runtime on the CPU: runs `model.onnx`. Imports no JAX, so it starts in a fraction of a second.

Imported by workers only.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from jaxtyping import Float32

from brain_service.errors import CorruptDataError, UnavailableError
from brain_service.export.bundle import ONNX_MODEL, Bundle
from brain_service.inference.arena import Layout

__all__ = ["load"]

_ERRORS_ONLY = 3


class _OnnxPolicy:
    buckets = (1,)

    def __init__(self, session: Any, layout: Layout) -> None:
        """Bind the graph's inputs and outputs once to buffers of our own, in the layout of the arena's rows.

        That saves the names and allocations of a plain `run`, about a tenth of a small step.
        """
        self._session = session
        self._carry, self._request, self._next_carry, self._response = (
            np.zeros((1, size), np.float32)
            for size in (layout.carry_size, layout.request_size, layout.carry_size, layout.response_size)
        )
        D, A = layout.observation, layout.action
        inputs = _cut(self._carry, layout.carry) | _cut(
            self._request[:, : layout.vector_size],
            {"observation": D, "previous_action": A, "previous_reward": 1, "is_first": 1},
        )
        self._image: Float32[np.ndarray, "h w C"] | None = None
        if layout.image:
            self._pixels = layout.image_of(self._request[0])
            self._image = inputs["image"] = np.zeros(layout.image, np.float32)
        outputs = {f"next_{name}": part for name, part in _cut(self._next_carry, layout.carry).items()}
        outputs["action"] = self._response
        self._binding = session.io_binding()
        for binds, found, expected in (
            (self._binding.bind_input, session.get_inputs(), inputs),
            (self._binding.bind_output, session.get_outputs(), outputs),
        ):
            _check(found, expected)
            for argument in found:
                data = expected[argument.name].ctypes.data
                binds(argument.name, "cpu", 0, np.float32, argument.shape, data)

    def run(
        self,
        carry: Float32[np.ndarray, "1 C"],
        request: Float32[np.ndarray, "1 R"],
        next_carry: Float32[np.ndarray, "1 C"],
        response: Float32[np.ndarray, "1 HA"],
    ) -> None:
        """Run one step; see `Policy.run`."""
        self._carry[...] = carry
        self._request[...] = request
        if self._image is not None:
            # The graph takes its bytes as floats: accelerators compile no cast.
            self._image[...] = self._pixels
        self._session.run_with_iobinding(self._binding)
        next_carry[...] = self._next_carry
        response[...] = self._response


def load(bundle: Bundle, layout: Layout, cache_dir: Path) -> _OnnxPolicy:  # noqa: ARG001  (nothing is compiled)
    """Load a bundle's graph; see `PolicyLoader`.

    Raises:
        UnavailableError: ONNX Runtime cannot load the graph.
        CorruptDataError: the graph's inputs or outputs are not those of the manifest.
    """
    options = onnxruntime.SessionOptions()
    # As for JAX: one robot's step is too small to share, and the other cores belong to capture and training.
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = _ERRORS_ONLY
    graph = bundle.read(ONNX_MODEL)
    try:
        session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        # Its exceptions have no common base below this one.
        raise UnavailableError(
            f"onnxruntime {onnxruntime.__version__} cannot load {ONNX_MODEL}: {error}; export the checkpoint again"
        ) from error
    return _OnnxPolicy(session, layout)


def _cut(block: Float32[np.ndarray, "1 N"], sizes: Mapping[str, int]) -> dict[str, Float32[np.ndarray, "n"]]:
    """Return the parts of a block that lie in it one after the other."""
    ends = np.cumsum(list(sizes.values()))
    return dict(zip(sizes, np.split(block[0], ends[:-1]), strict=True))


def _check(found: list[Any], expected: Mapping[str, np.ndarray[Any, Any]]) -> None:
    """Refuse names, types or sizes other than the manifest's: a graph bound wrongly would write past its buffers.

    Raises:
        CorruptDataError: the first that differs.
    """
    names = [argument.name for argument in found]
    if sorted(names) != sorted(expected):
        raise CorruptDataError(f"{ONNX_MODEL}: has {names}, the manifest asks for {list(expected)}")
    for argument in found:
        sizes = argument.shape
        static = all(type(size) is int for size in sizes)
        if argument.type != "tensor(float)" or not static or np.prod(sizes) != expected[argument.name].size:
            raise CorruptDataError(
                f"{ONNX_MODEL}: {argument.name} is {argument.type}{sizes}, "
                f"the manifest asks for {expected[argument.name].size} float32 values"
            )
