"""A stand-in for HailoRT's Python package, at its boundary: real names and traps, simulated numbers.

`HAILO_FAKE_PROFILE` is the version it behaves as (4.20, 4.23 or 5.2), `HAILO_FAKE_ARCH` the device it has, and
`HAILO_FAKE_DIR` a folder for what processes share: the device's lock, and `faults.json` (see `chip`). It needs
NumPy only, of any version, so that it runs where the real one does.
"""

from typing import Any

from .pyhailort._pyhailort import profile
from .pyhailort.pyhailort import (
    HEF,
    AsyncInferJob,
    Device,
    FormatOrder,
    FormatType,
    HailoRTException,
    HailoRTStreamAbortedByUser,
    HailoSchedulingAlgorithm,
    VDevice,
)

__all__ = [
    "HEF",
    "SIMULATED",
    "AsyncInferJob",
    "Device",
    "FormatOrder",
    "FormatType",
    "HailoRTException",
    "HailoRTStreamAbortedByUser",
    "HailoSchedulingAlgorithm",
    "VDevice",
]

SIMULATED = True


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return profile().version
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
