"""Pixels as a model sees them: block means in exact integers, and every wrong image named before it is used."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from brain_service.errors import InvalidError
from brain_service.pixels import ImageInput, choose_image, decode_image, shrink
from brain_service.spec import Feature

from .pictures import decode, picture, pixels

CAMERAS = {"state": Feature("float32", (2,)), "wrist": Feature("image", (480, 640, 3))}
BOTH = {"front": Feature("image", (224, 224, 3)), **CAMERAS}


@given(
    seed=st.integers(0, 2**32 - 1),
    sizes=st.tuples(*[st.integers(1, 6)] * 4),
    channels=st.sampled_from((1, 3, 4)),
)
def test_a_shrunk_pixel_is_the_mean_of_its_block_rounded_half_up(
    seed: int, sizes: tuple[int, int, int, int], channels: int
) -> None:
    height, width, rows, columns = sizes
    image = pixels(seed, height * rows, width * columns, channels)
    found = shrink(image, height, width)
    assert found.shape == (height, width, channels) and found.dtype == np.uint8
    for y, x in np.ndindex(height, width):
        block = image[y * rows : (y + 1) * rows, x * columns : (x + 1) * columns].reshape(-1, channels)
        for c in range(channels):
            total, count = int(block[:, c].astype(object).sum()), len(block)
            assert found[y, x, c] == (2 * total + count) // (2 * count)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_a_png_comes_out_as_it_went_in(channels: int) -> None:
    assert np.array_equal(decode_image(picture(1, channels=channels), channels, "x"), pixels(1, channels=channels))


def test_files_and_their_pixels_give_the_same() -> None:
    image = ImageInput("camera", (6, 8, 3), (3, 2, 3))
    for file in (picture(2), picture(2, "jpeg")):
        assert np.array_equal(image.pixels(file), image.pixels(decode(file)))
    assert ImageInput.from_json(image.to_json()) == image
    assert image.size_bytes == image.pixels(picture(2)).nbytes


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (picture(0, height=4), r"expected pixels uint8\[6, 8, 3\], got uint8\[4, 8, 3\]"),
        (pixels(0).astype(np.float32), "got float32"),
        (picture(0)[:-30], "cannot be decoded"),
        (b"GIF89a", "cannot be decoded"),
    ],
)
def test_another_image_is_refused_by_name(value: object, said: str) -> None:
    with pytest.raises(InvalidError, match=said) as refused:
        ImageInput("camera", (6, 8, 3), (3, 4, 3)).pixels(value)
    assert refused.value.field == "observation/camera"


def test_the_only_image_is_chosen_and_made_small_by_itself() -> None:
    assert choose_image(CAMERAS) == ImageInput("wrist", (480, 640, 3), (60, 80, 3))
    assert choose_image({"state": CAMERAS["state"]}) is None
    assert choose_image(BOTH, "none") is None
    assert choose_image(BOTH, "front") == ImageInput("front", (224, 224, 3), (56, 56, 3))
    assert choose_image(BOTH, "wrist", "48x160") == ImageInput("wrist", (480, 640, 3), (48, 160, 3))


@pytest.mark.parametrize(
    ("spec", "name", "size", "field", "said"),
    [
        (BOTH, "auto", "auto", "image", "has the images front, wrist; name what"),
        (CAMERAS, "front", "auto", "image", r"'front' is none of the observation's images \(wrist\)"),
        (CAMERAS, "state", "auto", "image", "'state' is none"),
        (CAMERAS, "wrist", "50x80", "image_size", "'50x80' does not divide .* heights are 1, 2, 3"),
        (CAMERAS, "wrist", "0x80", "image_size", "does not divide"),
        ({"odd": Feature("image", (97, 101, 3))}, "auto", "auto", "image_size", "no common factor leaves"),
    ],
)
def test_a_choice_that_cannot_be_is_an_error_that_names_what_can(
    spec: dict[str, Feature], name: str, size: str, field: str, said: str
) -> None:
    with pytest.raises(InvalidError, match=said) as refused:
        choose_image(spec, name, size)
    assert refused.value.field == field
