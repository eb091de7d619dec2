"""Camera images as a model takes them: decoded, and shrunk by whole factors. One code for training and serving.

A model sees `[h, w, C]` pixels of 8 bits: each is the mean of a block of the camera's, rounded half up in
integers, so the same file gives the same bytes on every machine. A JPEG is decoded by libjpeg's integer transform,
which is the same everywhere; a PNG is exact. Pillow is imported with the first image only: a robot without one
never pays for it.
"""

import io
import re
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from brain_service.errors import InvalidError
from brain_service.spec import FeatureSpec

if TYPE_CHECKING:
    from jaxtyping import UInt8

__all__ = [
    "AUTO",
    "LARGEST_AUTO_SIDE",
    "NONE",
    "SIZE_FORM",
    "ImageInput",
    "choose_image",
    "decode_image",
    "encode_png",
    "shrink",
]

AUTO, NONE = "auto", "none"
"""Names that choose an image and are none: the only one that there is, and no image at all."""

SIZE_FORM = re.compile(r"([0-9]{1,5})x([0-9]{1,5})")
"""An image's height and width [pixels], as in `48x64`."""

LARGEST_AUTO_SIDE = 96
"""Without a size of its own, a model's image has no side longer than this [pixels]."""

_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
# Pillow's own errors have no common base: what its PNG and JPEG readers raise on a file that is none.
_UNDECODABLE = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error)


@dataclass(frozen=True, slots=True)
class ImageInput:
    """Which image of an observation a model sees: the feature's path, its shape, and the shape that is left of it.

    Both shapes are (height, width, channels) in pixels; each side of `source` is a whole multiple of `shape`'s.
    """

    path: str
    source: tuple[int, int, int]
    shape: tuple[int, int, int]

    @property
    def size_bytes(self) -> int:
        """Bytes of one image as the model takes it."""
        height, width, channels = self.shape
        return height * width * channels

    def pixels(self, value: Any) -> "UInt8[np.ndarray, 'h w C']":
        """Return what the model sees of one image: the bytes of a PNG or JPEG, or its pixels `[H, W, C]`.

        Raises:
            InvalidError: it cannot be decoded, or is of another shape than `source`; names the feature.
        """
        field = f"observation/{self.path}"
        found = value if isinstance(value, np.ndarray) else decode_image(value, self.source[2], field)
        if found.dtype != np.uint8 or found.shape != self.source:
            raise InvalidError(
                f"{field}: expected pixels uint8{list(self.source)}, got {found.dtype}{list(found.shape)}",
                field=field,
            )
        return shrink(found, self.shape[0], self.shape[1])

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready mapping: the inverse of `from_json`."""
        return {"path": self.path, "source": list(self.source), "shape": list(self.shape)}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> "ImageInput":
        """Rebuild from `to_json`'s mapping.

        Raises:
            InvalidError: a member is missing, unknown or of another form, or a side is no multiple of another.
        """
        try:
            source, shape = (tuple(int(side) for side in document[name]) for name in ("source", "shape"))
            (H, W, C), (h, w, c) = source, shape
            whole = document.keys() == {"path", "source", "shape"} and isinstance(document["path"], str)
            if not whole or min(h, w) < 1 or H % h or W % w or c != C:
                raise ValueError("its sides are no whole multiples")
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InvalidError(f"image {document!r} is no path with a source and a shape: {error}") from error
        return cls(document["path"], (H, W, C), (h, w, c))


def choose_image(spec: FeatureSpec, name: str = AUTO, size: str = AUTO) -> ImageInput | None:
    """Return the image that a model of these observations sees, None for none.

    `name` is the feature's path, `auto` (the only one, if there is one) or `none`. `size` is `<height>x<width>` or
    `auto`: both sides are divided by the least factor that leaves none longer than `LARGEST_AUTO_SIDE`.

    Raises:
        InvalidError: there are several images and none is named, none of that name, or it does not have that
            size by whole factors; names what may be chosen.
    """
    images = [path for path, feature in spec.items() if feature.dtype == "image"]
    if name == NONE or (name == AUTO and not images):
        return None
    if name == AUTO and len(images) > 1:
        raise InvalidError(
            f"the observation has the images {', '.join(images)}; name what the model is to see, or 'none'",
            field="image",
        )
    path = images[0] if name == AUTO else name
    if path not in images:
        raise InvalidError(
            f"image {path!r} is none of the observation's images ({', '.join(images) or 'it has none'}); "
            "name one of them, or 'none'",
            field="image",
        )
    height, width, channels = spec[path].shape
    source = (height, width, channels)
    if size == AUTO:
        return ImageInput(path, source, (*_own_size(path, height, width), channels))
    sides = SIZE_FORM.fullmatch(size)
    h, w = (int(side) for side in sides.groups()) if sides else (0, 0)
    if not h or not w or height % h or width % w:
        raise InvalidError(
            f"image_size {size!r} does not divide image {path!r} of {height} x {width} pixels by whole factors; "
            f"heights are {_divisors(height)}, widths {_divisors(width)}",
            field="image_size",
        )
    return ImageInput(path, source, (h, w, channels))


def _own_size(path: str, height: int, width: int) -> tuple[int, int]:
    for factor in range(1, min(height, width) + 1):
        if height % factor == width % factor == 0 and max(height, width) <= factor * LARGEST_AUTO_SIDE:
            return height // factor, width // factor
    raise InvalidError(
        f"image {path!r} of {height} x {width} pixels: no common factor leaves at most {LARGEST_AUTO_SIDE}; "
        f"give image_size: heights are {_divisors(height)}, widths {_divisors(width)}",
        field="image_size",
    )


def _divisors(side: int) -> str:
    return ", ".join(str(size) for size in range(1, side + 1) if side % size == 0)


def decode_image(data: bytes | bytearray | memoryview, channels: int, field: str) -> "UInt8[np.ndarray, 'H W C']":
    """Return the pixels of a PNG or JPEG with 1 (grey), 3 (RGB) or 4 (RGB and alpha) channels.

    Raises:
        InvalidError: the pixels in it cannot be decoded; `field` names it.
    """
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data), formats=("PNG", "JPEG")) as image:
            array = np.asarray(image.convert(_MODES[channels]))
    except (*_UNDECODABLE, Image.DecompressionBombError) as error:
        raise InvalidError(f"{field}: the image's pixels cannot be decoded: {error}", field=field) from error
    return array[..., None] if channels == 1 else array


def encode_png(pixels: "UInt8[np.ndarray, 'H W C']") -> bytes:
    """Return pixels of 1, 3 or 4 channels as a PNG, which holds them exactly."""
    from PIL import Image

    file = io.BytesIO()
    grey = pixels.shape[2] == 1
    # The least compression: it is written once, at the rate of a camera.
    Image.fromarray(pixels[..., 0] if grey else pixels).save(file, "PNG", compress_level=1)
    return file.getvalue()


def shrink(pixels: "UInt8[np.ndarray, 'H W C']", height: int, width: int) -> "UInt8[np.ndarray, 'h w C']":
    """Return the means of equal blocks, rounded half up: `height` and `width` divide the image's sides."""
    H, W, C = pixels.shape
    rows, columns = H // height, W // width
    if rows == columns == 1:
        return pixels
    # The long sum first, over contiguous rows: five times as fast as over both axes at once.
    sums = pixels.reshape(height, rows, W * C).sum(axis=1, dtype=np.uint32)
    sums = sums.reshape(height, width, columns, C).sum(axis=2, dtype=np.uint32)
    count = rows * columns
    means: UInt8[np.ndarray, "h w C"] = ((sums + count // 2) // count).astype(np.uint8)
    return means
