"""What the machine has: accelerators to compute with, and sensors for temperature, supply voltage and battery."""

from typing import TYPE_CHECKING

from brain_service.lazy import lazy_names

if TYPE_CHECKING:
    from brain_service.hardware.detection import detect_jax_backends
    from brain_service.hardware.gate import Gate
    from brain_service.hardware.thermals import Sensors, read_sensors

__all__ = ["Gate", "Sensors", "detect_jax_backends", "read_sensors"]

# Lazily: a worker on an interpreter without pydantic looks for accelerators and needs no settings.
__getattr__ = lazy_names(
    __name__,
    {
        "Gate": "gate",
        "Sensors": "thermals",
        "detect_jax_backends": "detection",
        "read_sensors": "thermals",
    },
)
