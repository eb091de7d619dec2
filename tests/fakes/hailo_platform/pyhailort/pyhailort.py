"""The public names of HailoRT's module, where its users import them from."""

import os
from dataclasses import dataclass
from enum import Enum, IntEnum
from typing import Any

from . import chip
from ._pyhailort import HailoRTStatusException, architecture, profile
from .exceptions import (
    HailoCommunicationClosedException,
    HailoRTDriverOperationFailedException,
    HailoRTException,
    HailoRTHEFNotCompatibleWithDevice,
    HailoRTInvalidArgumentException,
    HailoRTInvalidHEFException,
    HailoRTInvalidOperationException,
    HailoRTNetworkGroupNotActivatedException,
    HailoRTNotFoundException,
    HailoRTStreamAborted,
    HailoRTStreamAbortedByUser,
    HailoRTTimeout,
    sometimes_wrapped,
    wrapped,
)
from .formats import HEF, FormatOrder, FormatType, hef_bytes
from .infer_model import AsyncInferJob, ConfiguredInferModel, InferModel

__all__ = [
    "HEF",
    "AsyncInferJob",
    "ConfiguredInferModel",
    "Device",
    "DvmTypes",
    "FormatOrder",
    "FormatType",
    "HailoCommunicationClosedException",
    "HailoRTDriverOperationFailedException",
    "HailoRTException",
    "HailoRTHEFNotCompatibleWithDevice",
    "HailoRTInvalidArgumentException",
    "HailoRTInvalidHEFException",
    "HailoRTInvalidOperationException",
    "HailoRTNetworkGroupNotActivatedException",
    "HailoRTNotFoundException",
    "HailoRTStreamAborted",
    "HailoRTStreamAbortedByUser",
    "HailoRTTimeout",
    "HailoSchedulingAlgorithm",
    "InferModel",
    "VDevice",
    "VDeviceParams",
]


class HailoSchedulingAlgorithm(Enum):
    NONE = 0
    ROUND_ROBIN = 1


class DvmTypes(Enum):
    VDD_CORE = 0
    OVERCURRENT_PROTECTION = 9
    AUTO = 2147483647


class DeviceArchitectureTypes(IntEnum):
    HAILO8_A0 = 0
    HAILO8 = 1
    HAILO8L = 2
    HAILO15H = 3
    HAILO10H = 6


@dataclass
class BoardInformation:
    device_architecture: DeviceArchitectureTypes
    firmware_version: str


@dataclass
class TemperatureInfo:
    ts0_temperature: float
    ts1_temperature: float
    sample_count: int = 8


class Control:
    def identify(self) -> BoardInformation:
        return BoardInformation(DeviceArchitectureTypes[architecture()], profile().version)

    def get_chip_temperature(self) -> TemperatureInfo:
        with sometimes_wrapped():
            if not chip.scan():
                raise HailoRTStatusException(profile().removed)
            found = chip.temperature_c()
        return TemperatureInfo(found - 0.5, found)

    def power_measurement(self, dvm: DvmTypes = DvmTypes.AUTO, measurement_type: Any = None) -> float:
        # AUTO is the overcurrent one where the board has it.
        chip.crime(f"power was measured on {dvm.name}: the overcurrent protection is off")
        return 1.5


class Device:
    def __init__(self, device_id: str | None = None) -> None:
        with sometimes_wrapped():
            if chip.DEVICE_ID not in chip.scan():
                raise HailoRTStatusException(74)
        self.device_id = device_id
        self.control: Any = Control()

    @classmethod
    def scan(cls) -> list[str]:
        with sometimes_wrapped():
            return chip.scan()

    def release(self) -> None:
        self.control = None


class VDeviceParams:
    def __init__(self) -> None:
        self.scheduling_algorithm = (
            HailoSchedulingAlgorithm.ROUND_ROBIN
            if profile().scheduler_by_default
            else HailoSchedulingAlgorithm.NONE
        )
        self.group_id = "UNIQUE"
        self.multi_process_service = False
        self.device_count = 1
        self.device_ids: list[str] = []


class VDevice:
    def __init__(self, params: VDeviceParams | None = None, *, device_ids: list[str] | None = None) -> None:
        # Trap: with `device_ids` the params are not looked at.
        self._params = VDeviceParams() if params is None or device_ids is not None else params
        self._creation_pid = os.getpid()
        self._configured: list[ConfiguredInferModel] = []
        self._claim: chip.Claim | None = None
        with wrapped():
            for wanted in device_ids or self._params.device_ids:
                if wanted != chip.DEVICE_ID:
                    raise HailoRTStatusException(61)
            self._claim = chip.Claim()

    @staticmethod
    def create_params() -> VDeviceParams:
        return VDeviceParams()

    def create_infer_model(self, hef_source: Any, name: str = "") -> "InferModel":
        if os.getpid() != self._creation_pid:
            raise HailoRTException("InferModel can be created only from the process VDevice was created in.")
        if self._claim is None:
            raise HailoRTException("the VDevice was released")
        with wrapped():
            code, network = chip.read_hef(hef_bytes(hef_source))
        return InferModel(self, code, network)

    def get_physical_devices(self) -> list[Device]:
        return [Device(each) for each in self.get_physical_devices_ids()]

    def get_physical_devices_ids(self) -> list[str]:
        return [chip.DEVICE_ID]

    def release(self) -> None:
        if any(not each.released for each in self._configured):
            chip.crime("the VDevice was released before its configured models: HailoRT segfaults")
        if self._claim is not None:
            self._claim.release()
            self._claim = None

    def __enter__(self) -> "VDevice":
        return self

    def __exit__(self, *_: Any) -> None:
        self.release()
