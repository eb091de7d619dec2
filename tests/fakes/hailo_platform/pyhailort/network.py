"""The numbers: a small graph in NumPy, with a scale and a zero point at each of its streams.

A HEF of `tests.fakes.hailo_compiler` holds the graph in the place of the device's words: an `.npz` of the
constants and a JSON document of the nodes and streams.
"""

import io
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
DOCUMENT = "document"


@dataclass(frozen=True)
class StreamInfo:
    """One stream: the layer's name, its tensor, its length, and how its numbers become integers."""

    name: str
    tensor: str
    size: int
    scale: float
    zero_point: float
    bits: int

    @property
    def dtype(self) -> Any:
        return np.uint16 if self.bits == 16 else np.uint8

    def quantise(self, values: Array) -> Array:
        # Beyond the calibrated range a number is cut, as on the device; NaN becomes zero.
        scaled = np.nan_to_num(np.round(values / self.scale + self.zero_point))
        return np.clip(scaled, 0, 2**self.bits - 1).astype(self.dtype)

    def dequantise(self, integers: Array) -> Array:
        return ((integers.astype(np.float32) - np.float32(self.zero_point)) * np.float32(self.scale)).astype(
            np.float32
        )


@dataclass(frozen=True)
class Network:
    """A compiled network."""

    name: str
    inputs: tuple[StreamInfo, ...]
    outputs: tuple[StreamInfo, ...]
    nodes: tuple[Mapping[str, Any], ...]
    constants: Mapping[str, Array]

    def to_bytes(self) -> bytes:
        document = {
            "name": self.name,
            "inputs": [vars(each) for each in self.inputs],
            "outputs": [vars(each) for each in self.outputs],
            "nodes": list(self.nodes),
        }
        buffer = io.BytesIO()
        arrays = {DOCUMENT: np.frombuffer(json.dumps(document).encode(), np.uint8), **self.constants}
        np.savez(buffer, **arrays)  # type: ignore[arg-type]
        return buffer.getvalue()

    @staticmethod
    def from_bytes(data: bytes) -> "Network":
        with np.load(io.BytesIO(data)) as archive:
            document = json.loads(archive[DOCUMENT].tobytes())
            constants = {name: archive[name] for name in archive.files if name != DOCUMENT}
        return Network(
            document["name"],
            tuple(StreamInfo(**each) for each in document["inputs"]),
            tuple(StreamInfo(**each) for each in document["outputs"]),
            tuple(document["nodes"]),
            constants,
        )

    def run(self, integers: Mapping[str, Array]) -> dict[str, Array]:
        """Run one frame: integers by input layer to integers by output layer."""
        values = {each.tensor: each.dequantise(integers[each.name]).reshape(1, -1) for each in self.inputs}
        found = evaluate(self.nodes, self.constants, values)
        return {each.name: each.quantise(found[each.tensor].reshape(-1)) for each in self.outputs}


def evaluate(
    nodes: tuple[Mapping[str, Any], ...], constants: Mapping[str, Array], values: Mapping[str, Array]
) -> dict[str, Array]:
    """Run the nodes, in order, in float32; returns every tensor."""
    known: dict[str, Array] = {**constants, **values}
    for node in nodes:
        arguments = [known[name] if name else None for name in node["inputs"]]
        known[node["output"]] = OPERATORS[node["op"]](arguments, node["attributes"])
    return known


def _clip(arguments: list[Any], _: Mapping[str, Any]) -> Array:
    value, low, high = [*arguments, None, None][:3]
    bounds = -np.inf if low is None else low, np.inf if high is None else high
    result: Array = np.clip(value, *bounds).astype(np.float32)
    return result


def _slice(arguments: list[Any], _: Mapping[str, Any]) -> Array:
    value, starts, stops, axes = arguments
    cut = [slice(None)] * value.ndim
    for start, stop, axis in zip(starts, stops, axes, strict=True):
        cut[axis] = slice(int(start), int(stop))
    result: Array = value[tuple(cut)]
    return result


def _softmax(arguments: list[Any], attributes: Mapping[str, Any]) -> Array:
    value = arguments[0]
    axis = attributes.get("axis", -1)
    powers = np.exp(value - value.max(axis=axis, keepdims=True))
    result: Array = powers / powers.sum(axis=axis, keepdims=True)
    return result


def _sigmoid(arguments: list[Any], _: Mapping[str, Any]) -> Array:
    with np.errstate(over="ignore"):
        result: Array = 1.0 / (1.0 + np.exp(-arguments[0]))
    return result


def _plain(function: Callable[..., Any]) -> Callable[[list[Any], Mapping[str, Any]], Array]:
    return lambda arguments, _: function(*arguments)


OPERATORS: Mapping[str, Callable[[list[Any], Mapping[str, Any]], Array]] = {
    "Add": _plain(np.add),
    "Clip": _clip,
    "Concat": lambda arguments, attributes: np.concatenate(arguments, axis=attributes["axis"]),
    "Div": _plain(np.divide),
    "Exp": _plain(np.exp),
    "MatMul": _plain(np.matmul),
    "Mul": _plain(np.multiply),
    "Reshape": lambda arguments, _: arguments[0].reshape([int(axis) for axis in arguments[1]]),
    "Sigmoid": _sigmoid,
    "Slice": _slice,
    "Softmax": _softmax,
    "Sqrt": _plain(np.sqrt),
    "Sub": _plain(np.subtract),
    "Tanh": _plain(np.tanh),
    "Transpose": lambda arguments, attributes: arguments[0].transpose(attributes["perm"]),
}
