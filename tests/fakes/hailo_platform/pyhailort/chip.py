"""The device behind the library: whose it is, what is wrong with it, and what it computes.

`$HAILO_FAKE_DIR/faults.json` is read at every call: `{"hang": 1}` makes the next job hang. A number is a count
that goes down with each use, `true` stays. The faults: no_device, driver, job_error, hang, transient, remove; thaw
lets hung jobs end; temperature_c is what the thermometer says. What must not happen is written to
`$HAILO_FAKE_DIR/crimes`.
"""

import fcntl
import json
import os
import struct
import time
import zlib
from pathlib import Path
from typing import Any

from ._pyhailort import HailoRTStatusException, architecture, profile
from .network import Network

DEVICE_ID = "0001:01:00.0"
FAMILIES = {
    "HAILO8": (0, 1, 2, 3),
    "HAILO8L": (3,),
    "HAILO10H": (5, 103),
    "HAILO15H": (5, 103),
}
HEADERS = {0: ">I16s", 1: ">IQI", 2: ">QQQQ", 3: ">QQIQQQ"}


def folder() -> Path:
    return Path(os.environ["HAILO_FAKE_DIR"])


def fault(name: str, where: Path | None = None) -> Any:
    """Return a fault's value, None where there is none; one of a count is used up by a call."""
    path = (where or folder()) / "faults.json"
    try:
        faults = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    value = faults.get(name)
    if type(value) is int and value > 0:
        faults[name] = value - 1
        fresh = path.with_suffix(".new")
        fresh.write_text(json.dumps(faults))
        fresh.replace(path)
    return value or None


def crime(text: str) -> None:
    """Note what would crash the process, or harm the device, were it real."""
    with (folder() / "crimes").open("a") as file:
        file.write(text + "\n")


def scan() -> list[str]:
    if fault("driver"):
        raise HailoRTStatusException(76)
    gone = fault("no_device") or (folder() / "removed").exists()
    return [] if gone else [DEVICE_ID]


class Claim:
    """The one exclusive hold of the device, across processes."""

    def __init__(self) -> None:
        if architecture() not in profile().architectures:
            raise HailoRTStatusException(79)
        if not scan():
            raise HailoRTStatusException(74)
        self._file = (folder() / "device.lock").open("w")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._file.close()
            raise HailoRTStatusException(74) from error

    def release(self) -> None:
        self._file.close()


def temperature_c(where: Path | None = None) -> float:
    found = fault("temperature_c", where)
    return 55.0 if found is None else float(found)


def work(network: Network, integers: Any, where: Path) -> Any:
    """Compute a frame; a hot chip takes twice as long."""
    started = time.perf_counter()
    found = network.run(integers)
    if temperature_c(where) >= 104:
        time.sleep(time.perf_counter() - started)
    return found


def read_hef(data: bytes) -> tuple[int, Network]:
    """Return architecture code and network of a HEF; the reading is this module's own, not that under test."""
    known = profile()
    try:
        magic, version, size = struct.unpack_from(">III", data)
        if magic != 0x01484546 or version not in HEADERS:
            raise HailoRTStatusException(known.hef_damaged)
        if version > known.newest_hef:
            raise HailoRTStatusException(known.hef_unsupported)
        layout = struct.Struct(HEADERS[version])
        fields = layout.unpack_from(data, 12)
        body = data[12 + layout.size :]
        if _checksum(version, body) not in (fields[1 if version == 0 else 0], None):
            raise HailoRTStatusException(known.hef_damaged)
        code = _architecture_code(body[:size])
        return code, Network.from_bytes(body[size:])
    except HailoRTStatusException:
        raise
    except Exception as error:
        raise HailoRTStatusException(known.hef_damaged) from error


def runs_here(code: int) -> bool:
    return code in FAMILIES[architecture()]


def _architecture_code(description: bytes) -> int:
    # Field 1 is the header message, its field 1 the architecture; one-byte lengths and a two-byte varint suffice.
    header = description[2 : 2 + description[1]]
    if header[0] != 0x08:
        return 0
    return header[1] if header[1] < 0x80 else (header[1] & 0x7F) | header[2] << 7


def _checksum(version: int, body: bytes) -> Any:
    if version == 0:
        import hashlib

        return hashlib.md5(body).digest()
    if version == 1:
        return zlib.crc32(body)
    try:
        import xxhash
    except ImportError:
        return None  # on a Python with NumPy alone
    return xxhash.xxh3_64_intdigest(body)
