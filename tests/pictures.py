"""Small PNG and JPEG files, written by Pillow: nobody here wrote their encoder."""

import io

import numpy as np
from PIL import Image

MODES = {1: "L", 3: "RGB", 4: "RGBA"}


def pixels(
    seed: int, height: int = 6, width: int = 8, channels: int = 3
) -> "np.ndarray[tuple[int, ...], np.dtype[np.uint8]]":
    """Random pixels `[height, width, channels]`."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), np.uint8)


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    """Return the file of an image."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def picture(seed: int, kind: str = "png", height: int = 6, width: int = 8, channels: int = 3) -> bytes:
    """Return a PNG or JPEG (`kind` "jpeg") of random pixels."""
    array = pixels(seed, height, width, channels)
    return encode(Image.fromarray(array[..., 0] if channels == 1 else array, MODES[channels]), kind)


def decode(data: bytes) -> "np.ndarray[tuple[int, ...], np.dtype[np.uint8]]":
    """Return the pixels `[height, width, channels]` that Pillow finds in a file."""
    array = np.asarray(Image.open(io.BytesIO(data)))
    return array[..., None] if array.ndim == 2 else array
