"""What the machine's own sensors say: temperatures, supply voltage, battery."""

from brain_service.hardware.gate import Gate
from brain_service.hardware.thermals import Sensors, read_sensors

__all__ = ["Gate", "Sensors", "read_sensors"]
