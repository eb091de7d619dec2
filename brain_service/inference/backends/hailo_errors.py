"""What HailoRT's errors mean for an operator. Nothing of HailoRT is imported: errors are told by name and code.

HailoRT's own messages name a status and a log file. Most come from four mistakes: driver and library of different
versions, a device that another program holds, a HEF for another device, and heat.
Source: HailoRT 4.23, `hailort.h`.
"""

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping

from brain_service.errors import BrainError, CorruptDataError, UnavailableError

__all__ = ["GONE", "NO_DEVICE_FREE", "TIMEOUT", "asking", "no_device_free", "status_of", "translate"]

TIMEOUT, NO_DEVICE_FREE = 4, 74
GONE = frozenset({36, 62, 64, 73, 74, 76, 96})
"""Codes after which trying again in this process is of no use."""

_PACKAGES = "both come from apt: hailo-all for a Hailo-8 or 8L, hailo-h10-all for a 10H"
_REASONS: Mapping[int, str] = {
    2: "it refused an argument",
    4: "the device did not answer in time; it may be overheated or hung: `hailortcli fw-control reset`",
    6: "the operation is not allowed now; a model that was given a wrong buffer shuts itself down",
    26: "the HEF is not valid, or for another device (4.20 says the same of both); compile it for this one",
    36: "the driver failed; `dmesg | grep hailo` says why",
    61: "there is nothing of that name in the HEF; it was compiled from another graph",
    62: "the link to the device was closed; check its seat and the supply, then reboot",
    63: "the stream was aborted, as it is when the device overheats (near 120 C) or is reset",
    64: f"the driver is not installed or not loaded; {_PACKAGES}",
    73: "another program holds the device; `lsof /dev/hailo0` names it, stop that one",
    76: f"driver and library are of different versions; {_PACKAGES}: `sudo apt full-upgrade`, then reboot",
    79: "HailoRT 4 drives the Hailo-8 and 8L only, HailoRT 5 the 10H and 15; install the one for this device",
    91: "HailoRT finds the HEF damaged; copy or compile it again",
    92: "this HailoRT does not read what the HEF's compiler wrote; update HailoRT or compile with the older one",
    93: "the HEF was compiled for another device; compile it with --hailo-arch of this one",
    96: "the device was removed or lost its link; check its seat and the supply, then reboot",
    97: "the device is busy with itself for a moment; this is tried again by itself",
}
_CODES: Mapping[str, int] = {
    "HailoRTTimeout": 4,
    "HailoRTInvalidArgumentException": 2,
    "HailoRTInvalidOperationException": 6,
    "HailoRTInvalidHEFException": 26,
    "HailoRTDriverOperationFailedException": 36,
    "HailoRTPCIeDriverException": 36,
    "HailoRTNotFoundException": 61,
    "HailoCommunicationClosedException": 62,
    "HailoRTStreamAborted": 63,
    "HailoRTStreamAbortedByUser": 63,
    "HailoRTHEFNotCompatibleWithDevice": 93,
}


def status_of(error: BaseException) -> int | None:
    """Return the status code behind an error of HailoRT, None where it names none.

    It is the argument of a HailoRTStatusException (which some calls raise as it is and others only as the cause),
    or follows from the class, or stands in the message.
    """
    for each in (error, error.__cause__):
        if type(each).__name__ == "HailoRTStatusException" and each is not None and each.args:
            try:
                return int(each.args[0])
            except (TypeError, ValueError):
                break
    if (code := _CODES.get(type(error).__name__)) is not None:
        return code
    found = re.search(r"(?:error|status)\D{0,3}(\d{1,3})\b", str(error))
    return int(found[1]) if found else None


def translate(error: BaseException, doing: str) -> UnavailableError | CorruptDataError:
    """Return the package's error for one of HailoRT; `doing` says what was tried ("opening the device")."""
    code = status_of(error)
    said = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    reason = _REASONS.get(code or 0, "see hailort.log, and `hailortcli fw-control identify`")
    kind = CorruptDataError if code == 91 else UnavailableError
    return kind(f"Hailo: {doing} failed: {reason} ({said})", hailo_status=code)


@contextlib.contextmanager
def asking(doing: str, scan: Callable[[], list[str]] | None = None) -> Iterator[None]:
    """Translate what HailoRT raises in the block; errors of ours pass. `scan` names the devices there are.

    Raises:
        UnavailableError: HailoRT fails, or no device is free.
        CorruptDataError: it finds the HEF damaged.
    """
    try:
        yield
    except BrainError:
        raise
    except Exception as error:
        # HailoRT's errors have no root of their own, and older releases raise bare ones beside them.
        if scan is not None and status_of(error) == NO_DEVICE_FREE:
            raise no_device_free(scan()) from error
        raise translate(error, doing) from error


def no_device_free(scanned: list[str]) -> UnavailableError:
    """Return the error for code 74, which says the same of no device and of a busy one; a scan tells which."""
    if scanned:
        return UnavailableError(
            f"Hailo: device {', '.join(scanned)} is held by another process; `lsof /dev/hailo0` names it: stop it "
            "(frigate, a camera program, another daemon)",
            hailo_status=NO_DEVICE_FREE,
        )
    return UnavailableError(
        "Hailo: no device found; check its seat (`lspci -d 1e60:`), the driver (`dmesg | grep hailo`) and that "
        f"PCIe is enabled in /boot/firmware/config.txt; {_PACKAGES}",
        hailo_status=NO_DEVICE_FREE,
    )
