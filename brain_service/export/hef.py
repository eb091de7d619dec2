"""HEF files: the header, its checksum, and which device and runtime take one.

A HEF is a big-endian header, a protobuf description and the device's configuration words (CCWs):

    all versions    u32 magic, u32 version, u32 size of the description in bytes, then
    version 0       u32 reserved, MD5[16]
    version 1       u32 CRC-32, u64 CCW bytes, u32 reserved
    version 2       u64 XXH3-64, u64 CCW bytes, 2 x u64
    version 3       u64 XXH3-64, u64 CCW bytes, u32 padding, u64 additional bytes, 2 x u64

The checksum covers every byte after the header. Source: HailoRT 4.23, `hef_internal.hpp` and `hef.proto` (MIT).
Standard library only, but for the checksum of versions 2 and 3: the worker on the system Python does without,
where the bundle's SHA-256 has already vouched for the bytes.
"""

import hashlib
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from brain_service.errors import ConfigError, CorruptDataError, UnavailableError

__all__ = ["ACCEPTED", "HefInfo", "check_device", "check_runtime", "parse_hef", "verify_hef"]

MAGIC = 0x01484546
_PREFIX = struct.Struct(">III")

ACCEPTED: Mapping[str, frozenset[str]] = {
    "HAILO8": frozenset({"HAILO8", "HAILO8P", "HAILO8R", "HAILO8L"}),
    "HAILO8L": frozenset({"HAILO8L"}),
    "HAILO10H": frozenset({"HAILO10H", "HAILO15H"}),
    "HAILO15H": frozenset({"HAILO10H", "HAILO15H"}),
    "HAILO15M": frozenset({"HAILO15M"}),
}
"""What each device runs: a Hailo-8 the whole 8 family, an 8L only its own; the 10H and 15 are a line apart."""

_ARCHITECTURES: Mapping[int, str] = {
    0: "HAILO8", 1: "HAILO8P", 2: "HAILO8R", 3: "HAILO8L", 4: "HAILO15M", 5: "HAILO10H", 103: "HAILO15H",
}  # fmt: skip

_NEWEST_VERSION = 3
_NEWEST_VERSION_420 = 2
_AGAIN = "copy or compile it again"


@dataclass(frozen=True, slots=True)
class HefInfo:
    """What a HEF says of itself: header version, architecture, compiler version, sizes in bytes."""

    version: int
    architecture: str
    sdk_version: str
    header_bytes: int
    description_bytes: int
    ccw_bytes: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class _Header:
    """The rest of one version's header: its layout, and how its fields give checksum and bytes that follow."""

    layout: struct.Struct
    checksum: Callable[[bytes], int | bytes]
    checksum_field: int
    size_fields: tuple[int, ...]


def _md5(data: bytes) -> bytes:
    return hashlib.md5(data, usedforsecurity=False).digest()


def _xxh3(data: bytes) -> int:
    try:
        import xxhash
    except ImportError as error:
        raise ConfigError(
            "checking a HEF needs the package xxhash; install continuon-brain's requirements"
        ) from error
    return int(xxhash.xxh3_64_intdigest(data))


_HEADERS: Mapping[int, _Header] = {
    0: _Header(struct.Struct(">I16s"), _md5, 1, ()),
    1: _Header(struct.Struct(">IQI"), zlib.crc32, 0, (1,)),
    2: _Header(struct.Struct(">QQQQ"), _xxh3, 0, (1,)),
    3: _Header(struct.Struct(">QQIQQQ"), _xxh3, 0, (1, 3)),
}


def verify_hef(data: bytes, source: str) -> HefInfo:
    """Check a whole HEF: header, sizes, checksum and description; `source` names it in errors.

    Raises:
        CorruptDataError: it is none, or damaged; member `reason` is empty, truncated, magic, version, size,
            checksum or description.
        ConfigError: xxhash is not installed.
    """
    info, header, fields = _parse(data, source)
    found = header.checksum(data[info.header_bytes :])
    if found != fields[header.checksum_field]:
        raise _corrupt(source, "checksum", f"its checksum does not hold, so a byte was changed; {_AGAIN}")
    return info


def parse_hef(data: bytes, source: str) -> HefInfo:
    """Read header and description without the checksum, for bytes that were already vouched for.

    Raises:
        CorruptDataError: as in `verify_hef`, but for checksum.
    """
    return _parse(data, source)[0]


def check_device(info: HefInfo, device: str, source: str) -> None:
    """Check that a device of this architecture (`HAILO8L`) runs the HEF.

    Raises:
        UnavailableError: it does not; the message says what it runs and how to compile for it.
    """
    accepted = ACCEPTED.get(device.upper())
    if accepted is None:
        raise UnavailableError(f"{source}: device architecture {device!r} is none of {', '.join(ACCEPTED)}")
    if info.architecture not in accepted:
        raise UnavailableError(
            f"{source}: compiled for {info.architecture}, but a {device.upper()} runs only "
            f"{', '.join(sorted(accepted))}; compile it with --hailo-arch {device.lower()}"
        )


def check_runtime(info: HefInfo, runtime: str, source: str) -> None:
    """Check that this version of HailoRT (`4.20.0`) reads the HEF's header version.

    Raises:
        UnavailableError: it does not; the message names what does.
    """
    try:
        release = tuple(int(part) for part in runtime.split(".")[:2])
    except ValueError as error:
        raise UnavailableError(f"{source}: HailoRT version {runtime!r} is not of the form 4.23.0") from error
    newest = _NEWEST_VERSION if release >= (4, 21) else _NEWEST_VERSION_420
    if info.version > newest:
        raise UnavailableError(
            f"{source}: header version {info.version}, but HailoRT {runtime} reads versions 0 to {newest}; "
            "update HailoRT to 4.21 or newer, or compile with the compiler that belongs to this one"
        )


def _parse(data: bytes, source: str) -> tuple[HefInfo, _Header, tuple[int | bytes, ...]]:
    if not data:
        raise _corrupt(source, "empty", f"an empty file is no HEF; {_AGAIN}")
    if len(data) < _PREFIX.size:
        raise _corrupt(source, "truncated", f"{len(data)} bytes are shorter than a HEF's header; {_AGAIN}")
    magic, version, description_bytes = _PREFIX.unpack_from(data)
    if magic != MAGIC:
        raise _corrupt(source, "magic", f"begins with {data[:4]!r}, a HEF with {_PREFIX.pack(MAGIC, 0, 0)[:4]!r}")
    header = _HEADERS.get(version)
    if header is None:
        raise _corrupt(
            source, "version", f"header version {version} cannot be read here, which knows 0 to {_NEWEST_VERSION}"
        )
    header_bytes = _PREFIX.size + header.layout.size
    if len(data) < header_bytes:
        raise _corrupt(source, "truncated", f"{len(data)} of a header's {header_bytes} bytes; {_AGAIN}")
    fields = header.layout.unpack_from(data, _PREFIX.size)
    sizes = [int(fields[place]) for place in header.size_fields]
    expected = header_bytes + description_bytes + sum(sizes)
    # Version 0 does not say how long its CCWs are: they lie inside the description.
    if len(data) != expected:
        reason = "truncated" if len(data) < expected else "size"
        raise _corrupt(source, reason, f"{len(data)} bytes, its header says {expected}; {_AGAIN}")
    architecture, sdk_version = _describe(data[header_bytes : header_bytes + description_bytes], source)
    info = HefInfo(version, architecture, sdk_version, header_bytes, description_bytes, sum(sizes), len(data))
    return info, header, fields


def _describe(description: bytes, source: str) -> tuple[str, str]:
    """Return architecture and compiler version: fields 1 and 3 of the message in field 1."""
    try:
        headers = [value for number, value in _fields(description) if number == 1 and isinstance(value, bytes)]
        fields = dict(_fields(headers[0])) if headers else {}
        code, version = fields.get(1, 0), fields.get(3, b"")
        sdk_version = version.decode() if isinstance(version, bytes) else str(version)
    except ValueError as error:
        raise _corrupt(source, "description", f"its description is not a protobuf message: {error}") from error
    if not headers:
        raise _corrupt(source, "description", f"its description has no header; {_AGAIN}")
    # A field of value 0 is left out: architecture 0 is the Hailo-8.
    architecture = _ARCHITECTURES.get(code) if isinstance(code, int) else None
    return architecture or f"architecture {code!r}", sdk_version


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yield field number and value of a protobuf message: integers of varints, bytes of all else.

    Raises:
        ValueError: it ends inside a field, or has a group, which proto3 does not know.
    """
    place = 0
    while place < len(message):
        key, place = _varint(message, place)
        number, kind = key >> 3, key & 7
        if kind == 0:
            value, place = _varint(message, place)
            yield number, value
            continue
        if kind == 2:
            size, place = _varint(message, place)
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
        else:
            raise ValueError(f"wire type {kind} at byte {place}")
        if place + size > len(message):
            raise ValueError(f"field {number} ends after byte {len(message)}")
        yield number, message[place : place + size]
        place += size


def _varint(message: bytes, place: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if place >= len(message):
            raise ValueError("a number ends after the last byte")
        byte = message[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place
    raise ValueError(f"a number of more than 10 bytes before byte {place}")


def _corrupt(source: str, reason: str, detail: str) -> CorruptDataError:
    return CorruptDataError(f"{source}: {detail}", reason=reason)
