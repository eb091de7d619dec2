"""What the C library says: status codes, the exception that carries one, and how versions differ."""

import os
from dataclasses import dataclass

STATUS = {
    2: "HAILO_INVALID_ARGUMENT",
    4: "HAILO_TIMEOUT",
    6: "HAILO_INVALID_OPERATION",
    26: "HAILO_INVALID_HEF",
    36: "HAILO_DRIVER_OPERATION_FAILED",
    61: "HAILO_NOT_FOUND",
    62: "HAILO_COMMUNICATION_CLOSED",
    63: "HAILO_STREAM_ABORT",
    69: "HAILO_NETWORK_GROUP_NOT_ACTIVATED",
    74: "HAILO_OUT_OF_PHYSICAL_DEVICES",
    76: "HAILO_INVALID_DRIVER_VERSION",
    79: "HAILO_NOT_SUPPORTED",
    91: "HAILO_HEF_FILE_CORRUPTED",
    92: "HAILO_HEF_NOT_SUPPORTED",
    93: "HAILO_HEF_NOT_COMPATIBLE_WITH_DEVICE",
    96: "HAILO_DEVICE_NOT_CONNECTED",
    97: "HAILO_DEVICE_TEMPORARILY_UNAVAILABLE",
}


class HailoRTStatusException(Exception):  # noqa: N818  its real name
    """Raised by the C library with the code alone; not a HailoRTException."""


@dataclass(frozen=True)
class Profile:
    """How one version behaves."""

    version: str
    default_arch: str
    architectures: tuple[str, ...]
    newest_hef: int
    scheduler_by_default: bool
    raw_status: bool
    """Whether `scan`, `Device`, `HEF.get_*` and `release` let the C library's exception through."""
    hef_damaged: int
    hef_unsupported: int
    hef_for_another: int
    removed: int
    transient: int


PROFILES = {
    "4.20": Profile("4.20.0", "HAILO8L", ("HAILO8", "HAILO8L"), 2, False, True, 26, 26, 26, 62, 63),
    "4.23": Profile("4.23.0", "HAILO8L", ("HAILO8", "HAILO8L"), 3, False, True, 91, 92, 93, 62, 63),
    "5.2": Profile("5.2.0", "HAILO10H", ("HAILO10H", "HAILO15H"), 3, True, False, 91, 92, 93, 96, 97),
}


def profile() -> Profile:
    """Return the version that the environment asks for now."""
    return PROFILES[os.environ.get("HAILO_FAKE_PROFILE", "4.23")]


def architecture() -> str:
    """Return the device that the environment asks for now."""
    return os.environ.get("HAILO_FAKE_ARCH", profile().default_arch)
