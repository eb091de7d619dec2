"""`hailo/names.json` of a bundle: which stream of a HEF carries what, and the arithmetic that stays on the host.

A tensor on the device has one scale for all its elements, so scaling raw units to the model's (where a joint is in
degrees beside one in metres) would lose the small ones: it is cut off the graph's ends and done here, in float32.
Only the standard library and NumPy are imported: the worker on the system Python reads it.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from brain_service.errors import CorruptDataError

if TYPE_CHECKING:
    from jaxtyping import Float32

__all__ = ["HAILO_NAMES", "HostOp", "Names", "Stream"]

HAILO_NAMES = "hailo/names.json"

_ELEMENTWISE = {"Add": np.add, "Sub": np.subtract, "Mul": np.multiply, "Div": np.divide}


@dataclass(frozen=True, slots=True)
class HostOp:
    """One operation on a flat tensor: Add, Sub, Mul or Div with `values` (one number, or one an element), or
    Clip to `values` (lower, upper).
    """

    operator: str
    values: tuple[float, ...]

    def apply(self, tensor: "Float32[np.ndarray, 'N']") -> None:
        """Change the tensor, shape `[N]`, in place, in float32."""
        values = np.asarray(self.values, np.float32)
        if self.operator == "Clip":
            np.clip(tensor, values[0], values[1], out=tensor)
        else:
            _ELEMENTWISE[self.operator](tensor, values, out=tensor)


@dataclass(frozen=True, slots=True)
class Stream:
    """One input or output: its part of the step, its tensor in the ONNX graph, and its layer on the device.

    `role` is a carry array's name, observation, previous_action, previous_reward, is_first or action. `layer` is
    empty where only the compiler knows it. `host` is applied before an input or after an output.
    """

    role: str
    tensor: str
    size: int
    host: tuple[HostOp, ...] = ()
    layer: str = ""


@dataclass(frozen=True, slots=True)
class Names:
    """The streams in the order of the graph's inputs and outputs: carry arrays first, then the rest.

    `read_from_compiler` tells whether the layers are what the compiler said, or what it is expected to say.
    """

    network: str
    inputs: tuple[Stream, ...]
    outputs: tuple[Stream, ...]
    read_from_compiler: bool = False

    def to_bytes(self) -> bytes:
        """Return the JSON form."""
        return json.dumps(asdict(self), indent=1).encode() + b"\n"

    @staticmethod
    def from_bytes(data: bytes, source: str) -> "Names":
        """Parse the JSON form; `source` names it in errors.

        Raises:
            CorruptDataError: it is not what `to_bytes` writes.
        """
        try:
            document = json.loads(data)
            names = Names(
                str(document["network"]),
                _streams(document["inputs"]),
                _streams(document["outputs"]),
                bool(document["read_from_compiler"]),
            )
        except (ValueError, TypeError, KeyError) as error:
            raise CorruptDataError(f"{source}: no map of streams ({error!r}); export the bundle again") from error
        return names

    def sizes(self) -> tuple[Mapping[str, int], Mapping[str, int]]:
        """Return the floats of every input and of every output, by role."""
        return {s.role: s.size for s in self.inputs}, {s.role: s.size for s in self.outputs}


def _streams(documents: Sequence[Mapping[str, Any]]) -> tuple[Stream, ...]:
    return tuple(
        Stream(**{**document, "host": tuple(_host_op(each) for each in document["host"])})
        for document in documents
    )


def _host_op(document: Mapping[str, Any]) -> HostOp:
    operator, values = document["operator"], tuple(float(value) for value in document["values"])
    if operator not in _ELEMENTWISE and not (operator == "Clip" and len(values) == 2):
        raise ValueError(f"host operation {operator!r} of {len(values)} numbers")
    return HostOp(operator, values)
