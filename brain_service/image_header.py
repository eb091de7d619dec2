"""What a PNG or JPEG says of itself, read without decoding a pixel: kind, size, and that it is whole.

The daemon takes pictures at the rate of a camera and decodes none. It walks the chunks or markers from the magic
to the end, so a cut or garbled file is refused where it is sent; whether the compressed pixels inside are sound
shows to whoever decodes them. Only the standard library is imported here, since `spec` needs it.
Source: PNG (W3C, Third Edition), sections 5 and 11; JPEG (ITU-T T.81), annex B.
"""

import base64
import re
import zlib
from dataclasses import dataclass
from typing import Any, Literal

from brain_service.errors import InvalidError

__all__ = [
    "CHANNELS",
    "MAX_SIDE",
    "ImageHeader",
    "check_image",
    "image_kind",
    "infer_image",
    "is_reference",
    "read_image_header",
]

CHANNELS = (1, 3, 4)
"""Grey, RGB and RGB with alpha: what an image feature may have."""

MAX_SIDE = 16_384
# A few hundred bytes can claim any size; whoever decodes them pays for it.
_MAX_PIXELS = 2**26

_PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
_JPEG_MAGIC = b"\xff\xd8\xff"
_BASE64_MAGICS = ("iVBORw0KGgo", "/9j/")
# Colour type to channels once decoded; a palette holds RGB. Grey with alpha (4) has no place among CHANNELS.
_PNG_CHANNELS = {0: 1, 2: 3, 3: 3, 6: 4}
# Within a scan `ff 00` is a byte of data and `ff d0` to `ff d7` are restarts: any other marker ends it.
_SCAN_END = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
_FRAMES = (0xC0, 0xC1, 0xC2)
_OTHER_FRAMES = frozenset(range(0xC3, 0xD0)) - {0xC4, 0xC8, 0xCC}
_REFERENCE = re.compile(r"images/[0-9a-f]{64}\.(png|jpg)")

Kind = Literal["png", "jpg"]


@dataclass(frozen=True, slots=True)
class ImageHeader:
    """Kind of file and size of the picture in pixels; `channels` is 1, 3 or 4."""

    kind: Kind
    height: int
    width: int
    channels: int

    @property
    def shape(self) -> tuple[int, int, int]:
        """Height, width, channels: the shape of the decoded uint8 array."""
        return self.height, self.width, self.channels


def is_reference(text: str) -> bool:
    """Tell whether `text` names a stored image: `images/<sha256 in hex>.png` or `.jpg`."""
    return _REFERENCE.fullmatch(text) is not None


def image_kind(data: bytes) -> Kind | None:
    """Return the kind of file by its first bytes, None if it is neither PNG nor JPEG."""
    if data.startswith(_PNG_MAGIC):
        return "png"
    return "jpg" if data.startswith(_JPEG_MAGIC) else None


def read_image_header(data: bytes, field: str) -> ImageHeader:
    """Return what a whole PNG or JPEG says of itself; `field` names it in errors.

    Raises:
        InvalidError: neither of the two, cut short, garbled, or of a kind that has no place in a dataset: more
            than 8 bits a channel, grey with alpha, CMYK, or more than 16,384 pixels a side.
    """
    kind = image_kind(data)
    if kind is None:
        raise InvalidError(f"{field}: the {len(data)} bytes are neither a PNG nor a JPEG file", field=field)
    try:
        header = _read_png(data) if kind == "png" else _read_jpeg(data)
    except (ValueError, IndexError) as error:
        why = str(error) if isinstance(error, ValueError) else "it is cut short"
        raise InvalidError(
            f"{field}: not a whole {'PNG' if kind == 'png' else 'JPEG'}: {why}", field=field
        ) from error
    if max(header.shape) > MAX_SIDE or header.height * header.width > _MAX_PIXELS:
        raise InvalidError(
            f"{field}: {header.width} x {header.height} pixels; the limit is {MAX_SIDE} a side and "
            f"{_MAX_PIXELS} in all",
            field=field,
        )
    return header


def check_image(value: Any, shape: tuple[int, ...], field: str) -> str | bytes:
    """Hold a posted image against its feature's shape `(height, width, channels)` and return its bytes.

    In JSON, which has no bytes, they may come as base64. A reference is returned as it is: whether its image is
    there is for the store to say.

    Raises:
        InvalidError: no image, no whole one, or one of another shape; `field` names it.
    """
    if isinstance(value, str) and is_reference(value):
        return value
    if isinstance(value, str) and value.startswith(_BASE64_MAGICS):
        value = _from_base64(value, field)
    if not isinstance(value, bytes | bytearray | memoryview):
        raise InvalidError(
            f"{field}: expected a PNG or JPEG (its bytes in msgpack or as a form part, or base64 in JSON), or the "
            f"reference 'images/<sha256>.png' of one that this episode holds; got {type(value).__name__}",
            field=field,
        )
    data = bytes(value)
    found = read_image_header(data, field).shape
    if found != shape:
        raise InvalidError(f"{field}: expected an image of shape {list(shape)}, got {list(found)}", field=field)
    return data


def infer_image(value: str | bytes, field: str) -> tuple[int, int, int] | None:
    """Return the shape of an undeclared image, None for text that is none.

    Text is an image if it is a whole one in base64; what begins like a PNG in base64 can be nothing else.

    Raises:
        InvalidError: bytes, or text that begins like a PNG, are no whole image; `field` names it.
    """
    if isinstance(value, bytes):
        return read_image_header(value, field).shape
    if not value.startswith(_BASE64_MAGICS):
        return None
    try:
        return read_image_header(_from_base64(value, field), field).shape
    except InvalidError:
        if value.startswith(_BASE64_MAGICS[0]):
            raise
        return None


def _from_base64(text: str, field: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except ValueError as error:
        raise InvalidError(f"{field}: the image is no base64: {error}", field=field) from error


def _read_png(data: bytes) -> ImageHeader:
    """Walk the chunks of a PNG.

    Raises:
        ValueError: a chunk is missing, cut, out of place or fails its CRC, or the pixels are of no known kind.
    """
    chunks = _png_chunks(data)
    header = _png_header(*chunks[0])
    names = [name for name, _ in chunks]
    if names[-1] != b"IEND":
        raise ValueError("it ends before its IEND chunk")
    if b"IDAT" not in names:
        raise ValueError("it holds no IDAT chunk, so no pixels")
    if data[25] == 3 and b"PLTE" not in names:
        raise ValueError("it has a palette colour type but no PLTE chunk")
    return header


def _png_chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    found = []
    position = len(_PNG_MAGIC)
    while position < len(data):
        size_bytes = int.from_bytes(data[position : position + 4], "big")
        end = position + 12 + size_bytes
        if end > len(data):
            raise ValueError(f"the chunk at byte {position} is cut short")
        name, body = data[position + 4 : position + 8], data[position + 8 : end - 4]
        if zlib.crc32(data[position + 4 : end - 4]) != int.from_bytes(data[end - 4 : end], "big"):
            raise ValueError(f"chunk {name.decode('latin-1')!r} at byte {position} fails its CRC")
        found.append((name, body))
        position = end
        if name == b"IEND":
            break
    if position != len(data):
        raise ValueError(f"{len(data) - position} bytes stand behind its IEND chunk")
    return found or [(b"", b"")]


def _png_header(name: bytes, body: bytes) -> ImageHeader:
    if name != b"IHDR" or len(body) != 13:
        raise ValueError("it does not begin with an IHDR chunk")
    width, height = int.from_bytes(body[:4], "big"), int.from_bytes(body[4:8], "big")
    depth, colour = body[8], body[9]
    if not width or not height:
        raise ValueError("it has no pixels")
    if depth > 8:
        raise ValueError(f"{depth} bits a channel would lose half of them; send 8, or depth as a typed array")
    if colour not in _PNG_CHANNELS:
        raise ValueError(f"colour type {colour} is none of grey, RGB, palette and RGB with alpha")
    return ImageHeader("png", height, width, _PNG_CHANNELS[colour])


def _read_jpeg(data: bytes) -> ImageHeader:
    """Walk the markers of a JPEG; zero bytes behind the end are passed over, as some cameras pad their frames.

    Raises:
        ValueError: a segment is cut or missing, or the frame is of no known kind.
        IndexError: it ends inside a segment.
    """
    header: ImageHeader | None = None
    scans = 0
    position = 2
    while True:
        if data[position] != 0xFF:
            raise ValueError(f"byte {position} begins no marker")
        marker = data[position + 1]
        if marker == 0xFF:  # fill bytes may precede a marker
            position += 1
            continue
        if marker == 0xD9:
            if data[position + 2 :].strip(b"\x00"):
                raise ValueError("bytes stand behind its end marker")
            break
        size_bytes = data[position + 2] << 8 | data[position + 3]
        if size_bytes < 2 or position + 2 + size_bytes > len(data):
            raise ValueError(f"the segment at byte {position} is cut short")
        if marker in _FRAMES:
            header = _jpeg_frame(data[position + 4 : position + 2 + size_bytes])
        elif marker in _OTHER_FRAMES:
            raise ValueError("it is lossless, hierarchical or arithmetic-coded; send baseline or progressive")
        position += 2 + size_bytes
        if marker == 0xDA:
            if header is None:
                raise ValueError("its scan stands before its frame")
            scans += 1
            following = _SCAN_END.search(data, position)
            if following is None:
                raise ValueError("it ends before its end marker")
            position = following.start()
    if header is None or not scans:
        raise ValueError("it holds no frame or no scan, so no pixels")
    return header


def _jpeg_frame(body: bytes) -> ImageHeader:
    depth, height, width, components = body[0], body[1] << 8 | body[2], body[3] << 8 | body[4], body[5]
    if depth != 8:
        raise ValueError(f"{depth} bits a channel; send 8")
    if not width or not height:
        raise ValueError("it has no pixels")
    if components not in (1, 3):
        raise ValueError(f"{components} components are neither grey nor colour")
    return ImageHeader("jpg", height, width, components)
