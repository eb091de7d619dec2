"""PNG and JPEG read by their headers: what Pillow writes is taken, what is cut or garbled is not."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from brain_service.errors import InvalidError
from brain_service.image_header import image_kind, is_reference, read_image_header
from tests.pictures import decode, encode, picture, pixels

KINDS = st.sampled_from([("png", 1), ("png", 3), ("png", 4), ("jpeg", 1), ("jpeg", 3)])
COLOURS = Image.fromarray(pixels(0, 9, 7))


@given(KINDS, st.integers(1, 40), st.integers(1, 40), st.integers(0, 9))
def test_size_and_channels_are_those_that_pillow_decodes(
    kind: tuple[str, int], height: int, width: int, seed: int
) -> None:
    data = picture(seed, kind[0], height, width, kind[1])
    header = read_image_header(data, "f")
    assert header.shape == decode(data).shape == (height, width, kind[1])
    assert header.kind == image_kind(data) == ("png" if kind[0] == "png" else "jpg")


@pytest.mark.parametrize(
    "options", [{"progressive": True}, {"restart_marker_blocks": 1}, {"comment": b"\xff\xd9"}]
)
def test_every_way_of_a_jpeg_is_walked_to_its_end(options: dict[str, object]) -> None:
    assert read_image_header(encode(COLOURS, "jpeg", **options), "f").shape == (9, 7, 3)


def test_a_palette_counts_as_colour_and_one_bit_as_grey() -> None:
    assert read_image_header(encode(COLOURS.convert("P"), "png"), "f").channels == 3
    assert read_image_header(encode(COLOURS.convert("1"), "png"), "f").channels == 1


def test_a_cameras_padding_is_passed_over() -> None:
    assert read_image_header(picture(1, "jpeg") + bytes(100), "f").kind == "jpg"


@pytest.mark.parametrize("kind", ["png", "jpeg"])
def test_a_cut_at_any_byte_is_refused(kind: str) -> None:
    data = picture(3, kind)
    for length in range(len(data)):
        with pytest.raises(InvalidError) as refused:
            read_image_header(data[:length], "observation/camera")
        assert refused.value.field == "observation/camera"


def test_a_flip_of_any_byte_of_a_png_is_refused() -> None:
    data = picture(3)
    for place in range(len(data)):
        garbled = bytearray(data)
        garbled[place] ^= 0x20
        with pytest.raises(InvalidError):
            read_image_header(bytes(garbled), "f")


@given(st.integers(0, 2**32), st.sampled_from(["png", "jpeg"]))
def test_garbled_bytes_never_raise_anything_else(seed: int, kind: str) -> None:
    rng = np.random.default_rng(seed)
    data = bytearray(picture(3, kind))
    for place in rng.integers(3, len(data), 3):
        data[place] = rng.integers(256)
    try:
        read_image_header(bytes(data), "f")
    except InvalidError as error:
        assert error.field == "f"


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "neither a PNG nor a JPEG"),
        (b"GIF89a" + bytes(40), "neither a PNG nor a JPEG"),
        (encode(COLOURS.convert("LA"), "png"), "colour type 4"),
        (encode(COLOURS.convert("CMYK"), "jpeg"), "4 components"),
        (encode(Image.fromarray(np.zeros((4, 4), np.uint16)), "png"), "16 bits"),
        (encode(Image.new("L", (16_385, 1)), "png"), "16385 x 1 pixels"),
        (encode(Image.new("1", (9000, 9000)), "png"), "9000 x 9000 pixels"),
        (picture(1) + b"x", "1 bytes stand behind"),
        (picture(1, "jpeg") + b"x", "stand behind its end"),
    ],
)
def test_what_has_no_place_in_a_dataset_says_why(data: bytes, says: str) -> None:
    with pytest.raises(InvalidError, match=says):
        read_image_header(data, "f")


def test_only_a_reference_is_a_reference() -> None:
    name = "0123456789abcdef" * 4
    assert is_reference(f"images/{name}.png") and is_reference(f"images/{name}.jpg")
    for text in (
        name,
        f"images/{name}.gif",
        f"images/../{name}.png",
        f"images/{name[1:]}.png",
        f"images/{name}.png\n",
    ):
        assert not is_reference(text)
