"""`model.onnx` of a bundle, cut for Hailo's compiler: the graph on the device, and what the host does at its ends.

See `hailo_names` for why. Imports `onnx`: for jobs only.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper, shape_inference

from brain_service.errors import CorruptDataError
from brain_service.export.hailo_names import HostOp, Names, Stream
from brain_service.export.manifest import Manifest

__all__ = ["NETWORK", "cut_graph"]

NETWORK = "brain_step"
"""Name of the network in compiler and HEF: layers are `brain_step/input_layer1` and so on."""

_ELEMENTWISE = ("Add", "Sub", "Mul", "Div")
_FLOAT_MAX = float(np.finfo(np.float32).max)

Array = np.ndarray[Any, np.dtype[Any]]


def cut_graph(model_bytes: bytes, manifest: Manifest) -> tuple[bytes, Names]:
    """Return the graph for the device, all inputs and outputs of shape [1, n], and the map of its streams.

    The names of layers are those that the compiler is expected to give: input i is `input_layer<i>`.

    Raises:
        CorruptDataError: the bytes are no ONNX graph, or its inputs and outputs are not the policy step's.
    """
    try:
        model = shape_inference.infer_shapes(onnx.load_from_string(model_bytes), strict_mode=True)
    # Protobuf and onnx raise errors of their own, without a common root.
    except Exception as error:
        raise CorruptDataError(
            f"model.onnx cannot be read: {error}; export the bundle's ONNX form again"
        ) from error
    graph = _Graph(model)
    roles = _roles(graph, manifest)
    inputs = [_cut_input(graph, tensor, role) for tensor, role in roles[0].items()]
    taken = {stream.tensor for stream in inputs}
    outputs: list[Stream] = []
    for tensor, role in roles[1].items():
        outputs.append(_cut_output(graph, tensor, role, taken))
        taken.add(outputs[-1].tensor)
    named = [
        Stream(stream.role, stream.tensor, stream.size, stream.host, f"{NETWORK}/input_layer{place}")
        for place, stream in enumerate(inputs, 1)
    ]
    return graph.between(inputs, outputs), Names(NETWORK, tuple(named), tuple(outputs))


def _roles(graph: "_Graph", manifest: Manifest) -> tuple[Mapping[str, str], Mapping[str, str]]:
    """Return the role of each input and output tensor, by its place, checked by its size."""
    rest = {
        "observation": manifest.observation_size,
        "previous_action": manifest.action_size,
        "previous_reward": 1,
        "is_first": 1,
    }
    chunk = {"action": manifest.action_horizon * manifest.action_size}
    found = []
    for infos, sizes in (
        (graph.model.graph.input, dict(manifest.carry) | rest),
        (graph.model.graph.output, dict(manifest.carry) | chunk),
    ):
        here = [(info.name, graph.size(info.name)) for info in infos]
        if [size for _, size in here] != list(sizes.values()):
            raise CorruptDataError(
                f"model.onnx has the tensors {dict(here)}, the step has {sizes}; "
                "export the bundle's ONNX form again"
            )
        found.append({name: role for (name, _), role in zip(here, sizes, strict=True)})
    return found[0], found[1]


def _cut_input(graph: "_Graph", tensor: str, role: str) -> Stream:
    """Follow an input as long as one elementwise operation with constants follows the other."""
    steps: list[tuple[str, HostOp | None]] = []
    here = tensor
    while len(consumers := graph.consumers(here)) == 1 and (step := graph.as_host(consumers[0], here)) is not None:
        here = consumers[0].output[0]
        steps.append((here, step[0]))
    # Only where the tensor is a row, which the device's layers are.
    while steps and graph.shape(steps[-1][0]) != (1, graph.size(tensor)):
        steps.pop()
    cut = steps[-1][0] if steps else tensor
    return Stream(role, cut, graph.size(tensor), _host_ops(steps))


def _cut_output(graph: "_Graph", tensor: str, role: str, taken: set[str]) -> Stream:
    """Go back from an output in the same way, to a tensor that no other stream is."""
    steps: list[tuple[str, HostOp | None]] = []
    here = tensor
    while (node := graph.producer(here)) is not None and (step := graph.as_host(node, None)) is not None:
        here = step[1]
        steps.append((here, step[0]))
    while steps and (
        graph.shape(steps[-1][0]) != (1, graph.size(tensor))
        or steps[-1][0] in taken
        or graph.producer(steps[-1][0]) is None
    ):
        steps.pop()
    cut = steps[-1][0] if steps else tensor
    return Stream(role, cut, graph.size(tensor), _host_ops(steps[::-1]))


def _host_ops(steps: Sequence[tuple[str, HostOp | None]]) -> tuple[HostOp, ...]:
    idle = (HostOp("Add", (0.0,)), HostOp("Mul", (1.0,)))
    return tuple(step for _, step in steps if step is not None and step not in idle)


@dataclass
class _Graph:
    """A graph with inferred shapes, and what its tensors are."""

    model: onnx.ModelProto

    def __post_init__(self) -> None:
        graph = self.model.graph
        self._constants = {each.name: numpy_helper.to_array(each) for each in graph.initializer}
        known = (*graph.input, *graph.output, *graph.value_info)
        self._shapes = {
            info.name: tuple(axis.dim_value for axis in info.type.tensor_type.shape.dim) for info in known
        }
        self._producers = {name: node for node in graph.node for name in node.output}

    def shape(self, tensor: str) -> tuple[int, ...]:
        """Return the shape that inference found."""
        return self._shapes[tensor]

    def size(self, tensor: str) -> int:
        """Return the number of elements."""
        return int(np.prod(self._shapes[tensor], dtype=np.int64))

    def producer(self, tensor: str) -> onnx.NodeProto | None:
        """Return the node that makes a tensor; None for an input or constant."""
        return self._producers.get(tensor)

    def consumers(self, tensor: str) -> list[onnx.NodeProto]:
        """Return the nodes that read a tensor, once for each time they do; an output of the graph has one more."""
        outputs = [info for info in self.model.graph.output if info.name == tensor]
        return [node for node in self.model.graph.node for name in node.input if name == tensor] + outputs

    def as_host(self, node: Any, data: str | None) -> tuple[HostOp | None, str] | None:
        """Return what a node does to its one moving input, and that input's name; None where the host cannot.

        A reshape does nothing to a flat tensor, so its operation is None.
        """
        if not isinstance(node, onnx.NodeProto):
            return None
        moving = [name for name in node.input if name and name not in self._constants]
        if len(moving) != 1 or (data is not None and moving[0] != data):
            return None
        source, result = moving[0], node.output[0]
        if self.size(source) != self.size(result):
            return None
        if node.op_type == "Reshape":
            return None, source
        if node.op_type == "Clip" and node.input[0] == source:
            bounds = [self._constants[name].item() if name else None for name in [*node.input, "", ""][1:3]]
            low, high = (
                default if b is None else b for b, default in zip(bounds, (-_FLOAT_MAX, _FLOAT_MAX), strict=True)
            )
            return HostOp("Clip", (float(low), float(high))), source
        if node.op_type not in _ELEMENTWISE:
            return None
        constant = self._constants[next(name for name in node.input if name != source)]
        if node.op_type in ("Sub", "Div") and node.input[0] != source:
            return None
        values = constant if constant.size == 1 else np.broadcast_to(constant, self.shape(result))
        return HostOp(node.op_type, tuple(float(value) for value in values.ravel())), source

    def between(self, inputs: Sequence[Stream], outputs: Sequence[Stream]) -> bytes:
        """Return the graph from the inputs' tensors to the outputs', both as rows, every node named."""
        first: list[onnx.NodeProto] = []
        last: list[onnx.NodeProto] = []
        shapes: dict[str, Array] = {}
        renamed: dict[str, str] = {}
        for stream in inputs:
            if self.shape(stream.tensor) != (1, stream.size):
                inner = renamed[stream.tensor] = f"{stream.tensor}_inner"
                shapes[f"{inner}_shape"] = np.asarray(self.shape(stream.tensor), np.int64)
                first.append(helper.make_node("Reshape", [stream.tensor, f"{inner}_shape"], [inner]))
        for stream in outputs:
            if self.shape(stream.tensor) != (1, stream.size):
                inner = renamed[stream.tensor] = f"{stream.tensor}_inner"
                shapes[f"{inner}_shape"] = np.asarray((1, stream.size), np.int64)
                last.append(helper.make_node("Reshape", [inner, f"{inner}_shape"], [stream.tensor]))
        nodes = [*first, *self._needed(inputs, outputs, renamed), *last]
        for node in nodes:
            # The compiler is told where to stop by names of nodes.
            node.name = node.output[0]
        used = {name for node in nodes for name in node.input}
        constants = self._constants | shapes
        graph = helper.make_graph(
            nodes,
            NETWORK,
            [_row(stream) for stream in inputs],
            [_row(stream) for stream in outputs],
            [numpy_helper.from_array(array, name) for name, array in constants.items() if name in used],
        )
        model = helper.make_model(
            graph, opset_imports=list(self.model.opset_import), ir_version=self.model.ir_version
        )
        onnx.checker.check_model(model, full_check=True)
        return bytes(model.SerializeToString())

    def _needed(
        self, inputs: Sequence[Stream], outputs: Sequence[Stream], renamed: Mapping[str, str]
    ) -> list[onnx.NodeProto]:
        given = {stream.tensor for stream in inputs}
        wanted = {stream.tensor for stream in outputs}
        kept: list[onnx.NodeProto] = []
        for node in reversed(self.model.graph.node):
            if wanted.intersection(node.output) and not given.intersection(node.output):
                wanted.update(node.input)
                copy = onnx.NodeProto()
                copy.CopyFrom(node)
                for names in (copy.input, copy.output):
                    names[:] = [renamed.get(name, name) for name in names]
                kept.append(copy)
        return kept[::-1]


def _row(stream: Stream) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(stream.tensor, onnx.TensorProto.FLOAT, (1, stream.size))
