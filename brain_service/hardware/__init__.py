"""What the machine has: accelerators to compute with, and sensors for temperature, supply voltage and battery."""

from typing import TYPE_CHECKING

from brain_service.lazy import lazy_names

if TYPE_CHECKING:
    from brain_service.hardware.detection import detect_jax_backends
    from brain_service.hardware.gate import Gate
    from brain_service.hardware.thermals import Sensors, read_sensors
    from brain_service.hardware.trainers import TrainerChoice, TrainerOption, select_trainer

__all__ = [
    "Gate",
    "Sensors",
    "TrainerChoice",
    "TrainerOption",
    "detect_jax_backends",
    "read_sensors",
    "select_trainer",
]

# Lazily: a worker on an interpreter without pydantic looks for accelerators and needs no settings.
__getattr__ = lazy_names(
    __name__,
    {
        "Gate": "gate",
        "Sensors": "thermals",
        "TrainerChoice": "trainers",
        "TrainerOption": "trainers",
        "detect_jax_backends": "detection",
        "read_sensors": "thermals",
        "select_trainer": "trainers",
    },
)
