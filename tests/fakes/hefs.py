"""HEF files of every header version, as the compiler writes them: big-endian header, description, device words."""

import hashlib
import struct
import zlib

import xxhash


def make_hef(
    version: int = 3,
    code: int = 3,
    sdk: str = "3.33.0",
    words: bytes = b"configuration words" * 20,
    extra: bytes = b"",
) -> bytes:
    """Return a valid HEF; `code` is the architecture, `words` the CCWs, `extra` what only version 3 has."""
    header = (
        (b"" if code == 0 else b"\x08" + varint(code)) + b"\x10" + varint(1_700_000_000) + field(3, sdk.encode())
    )
    description = field(1, header) + field(2, b"\x52" + b"\x0abrain_step")
    if version == 0:
        # Its words lie in the description.
        description += field(7, words)
        words = b""
    body = description + words + extra
    start = struct.pack(">III", 0x01484546, version, len(description))
    if version == 0:
        return start + struct.pack(">I16s", 0, hashlib.md5(body).digest()) + body
    if version == 1:
        return start + struct.pack(">IQI", zlib.crc32(body), len(words), 0) + body
    checksum = xxhash.xxh3_64_intdigest(body)
    if version == 2:
        return start + struct.pack(">QQQQ", checksum, len(words), 0, 0) + body
    return start + struct.pack(">QQIQQQ", checksum, len(words), 0, len(extra), 0, 0) + body


def field(number: int, value: bytes) -> bytes:
    """Return a length-delimited protobuf field."""
    return varint(number << 3 | 2) + varint(len(value)) + value


def varint(value: int) -> bytes:
    """Return a protobuf varint."""
    found = bytearray()
    while True:
        byte = value & 0x7F
        value >>= 7
        found.append(byte | 0x80 if value else byte)
        if not value:
            return bytes(found)
