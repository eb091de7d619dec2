"""What HailoRT says of streams, and what a HEF says of itself."""

from dataclasses import dataclass
from enum import Enum
from typing import Any

from . import chip
from .exceptions import wrapped
from .network import StreamInfo


class FormatType(Enum):
    AUTO = 0
    UINT8 = 1
    UINT16 = 2
    FLOAT32 = 3


class FormatOrder(Enum):
    AUTO = 0
    NHWC = 1
    NC = 6


@dataclass
class QuantInfo:
    qp_zp: float
    qp_scale: float


@dataclass
class Format:
    type: FormatType
    order: FormatOrder = FormatOrder.NHWC


@dataclass
class VStreamInfo:
    name: str
    shape: tuple[int, ...]
    format: Format
    quant_info: QuantInfo


def hef_bytes(source: Any) -> bytes:
    if type(source) is bytes:
        return source
    if type(source) is str:
        with open(source, "rb") as file:  # noqa: PTH123  as the C library does
            return file.read()
    raise ValueError(f"HEF can only be created from str or bytes, not {type(source)}")


class HEF:
    def __init__(self, hef_source: Any) -> None:
        with wrapped():
            self._code, self._network = chip.read_hef(hef_bytes(hef_source))

    def get_input_vstream_infos(self, name: str | None = None) -> list[VStreamInfo]:
        return [describe(each) for each in self._network.inputs]

    def get_output_vstream_infos(self, name: str | None = None) -> list[VStreamInfo]:
        return [describe(each) for each in sorted(self._network.outputs, key=lambda each: each.name)]

    def get_network_group_names(self) -> list[str]:
        return [self._network.name]

    def get_sorted_output_names(self, network_group_name: str | None = None) -> list[str]:
        """Return the outputs in the order in which the compiler was asked for them."""
        return [each.name for each in self._network.outputs]


def describe(stream: StreamInfo) -> VStreamInfo:
    kind = FormatType.UINT16 if stream.bits == 16 else FormatType.UINT8
    return VStreamInfo(stream.name, (1, 1, stream.size), Format(kind), QuantInfo(stream.zero_point, stream.scale))
