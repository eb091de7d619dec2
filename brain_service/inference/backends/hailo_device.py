"""One Hailo device: found, opened, asked how it is, and let go of in the right order.

`hailo_platform` comes as an argument: this module imports only the standard library, and so on any Python.
"""

import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from brain_service.errors import BrainError, CorruptDataError, UnavailableError
from brain_service.export.hailo_names import Names, Stream
from brain_service.inference.backends.hailo_errors import asking, no_device_free, translate

__all__ = ["HailoDevice", "open_device"]

log = logging.getLogger(__name__)

THROTTLED_C, CLOSED_C = 104.0, 120.0
"""Near these the chip halves its clock, and closes its streams."""
_WARM_C = 95.0


@dataclass(slots=True)
class HailoDevice:
    """An open device with a model loaded into HailoRT, not configured yet."""

    hailo: Any
    vdevice: Any
    infer_model: Any
    hef: bytes
    about: dict[str, Any] = field(default_factory=dict)
    chip: Any = None

    @property
    def simulated(self) -> bool:
        """Whether `hailo_platform` is a stand-in that says so."""
        return bool(getattr(self.hailo, "SIMULATED", False))

    def name_streams(self, names: Names, source: str) -> Names:
        """Return the names with the streams of this HEF, all set to float32.

        Where the compiler's word on the outputs is missing, they are in the order in which they were asked for.

        Raises:
            CorruptDataError: the HEF has other streams.
            UnavailableError: HailoRT fails on it.
        """
        with asking("reading the HEF's streams"):
            inputs, outputs = list(self.infer_model.input_names), list(self.infer_model.output_names)
            if not names.read_from_compiler:
                outputs = list(self.hailo.HEF(self.hef).get_sorted_output_names())
                if len(outputs) == len(names.outputs):
                    streams = tuple(
                        replace(stream, layer=layer) for stream, layer in zip(names.outputs, outputs, strict=True)
                    )
                    names = replace(names, outputs=streams)
            _require(names.inputs, inputs, source)
            _require(names.outputs, outputs, source)
            for stream in names.inputs:
                self.infer_model.input(stream.layer).set_format_type(self.hailo.FormatType.FLOAT32)
            for stream in names.outputs:
                self.infer_model.output(stream.layer).set_format_type(self.hailo.FormatType.FLOAT32)
        return names

    def telemetry(self) -> dict[str, Any]:
        """Return device, architecture, versions and temperature in degrees Celsius, with a warning if it is hot.

        The power is not measured: doing so switches the overcurrent protection off.
        """
        found: dict[str, Any] = dict(self.about)
        try:
            if self.chip is None:
                # One chip a policy: the device that was asked for.
                (self.chip,) = self.vdevice.get_physical_devices()
            measured = self.chip.control.get_chip_temperature()
            found["temperature_c"] = max(float(measured.ts0_temperature), float(measured.ts1_temperature))
        except Exception as error:  # noqa: BLE001  a thermometer that fails stops no robot
            return found | {"temperature_c": None, "warning": translate(error, "reading the temperature").detail}
        return found | {"warning": _heat_warning(found["temperature_c"])}

    def close(self) -> None:
        """Release the model before the device."""
        self.infer_model = None
        if self.chip is not None:
            with contextlib.suppress(Exception):
                self.chip.release()
            self.chip = None
        if self.vdevice is not None:
            with contextlib.suppress(Exception):
                self.vdevice.release()
            self.vdevice = None


def open_device(hailo: Any, hef: bytes, accepts: Callable[[str], None]) -> HailoDevice:
    """Open the first device that `accepts` (which raises on an architecture it does not) and load the HEF.

    Raises:
        UnavailableError: there is none, it is busy, or HailoRT fails; the message says which.
        CorruptDataError: HailoRT finds the HEF damaged.
    """
    device_id, about = _choose(hailo, accepts)
    with asking("opening the device", lambda: _scan(hailo)):
        params = hailo.VDevice.create_params()
        # The default is another one in each of HailoRT's lines; with a scheduler nobody calls `activate`.
        params.scheduling_algorithm = hailo.HailoSchedulingAlgorithm.ROUND_ROBIN
        # Here, since the keyword of the same name makes HailoRT forget the params.
        params.device_ids = [device_id]
        vdevice = hailo.VDevice(params)
    try:
        with asking("loading the HEF"):
            model = vdevice.create_infer_model(hef)
    except BrainError:
        with contextlib.suppress(Exception):
            vdevice.release()
        raise
    return HailoDevice(hailo, vdevice, model, hef, about)


def _choose(hailo: Any, accepts: Callable[[str], None]) -> tuple[str, dict[str, Any]]:
    scanned = _scan(hailo)
    if not scanned:
        raise no_device_free([])
    refusals: list[BrainError] = []
    for device_id in scanned:
        about: dict[str, Any] = {"device": device_id, "runtime": str(hailo.__version__)}
        with asking(f"identifying device {device_id}", lambda: scanned):
            device = hailo.Device(device_id)
            try:
                board = device.control.identify()
            finally:
                device.release()
        architecture = str(getattr(board.device_architecture, "name", board.device_architecture))
        about |= {"architecture": architecture, "firmware": str(board.firmware_version)}
        try:
            accepts(architecture)
        except UnavailableError as refusal:
            refusals.append(refusal)
        else:
            return device_id, about
    raise refusals[0]


def _scan(hailo: Any) -> list[str]:
    with asking("looking for devices"):
        return [str(each) for each in hailo.Device.scan()]


def _require(streams: tuple[Stream, ...], layers: list[str], source: str) -> None:
    wanted = [stream.layer for stream in streams]
    if sorted(wanted) != sorted(layers):
        raise CorruptDataError(
            f"{source}: has the streams {', '.join(layers)}, the bundle expects {', '.join(wanted)}; "
            "it was compiled from another graph: use this bundle's hailo/compile.sh"
        )


def _heat_warning(temperature_c: float) -> str | None:
    if temperature_c < _WARM_C:
        return None
    state = (
        "has halved its clock" if temperature_c >= THROTTLED_C else f"halves its clock near {THROTTLED_C:.0f} C"
    )
    return (
        f"Hailo: {temperature_c:.0f} C; the chip {state} and closes its streams near {CLOSED_C:.0f} C: "
        "improve the cooling"
    )
