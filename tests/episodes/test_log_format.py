"""The line: what goes in comes out, and no damage passes."""

import json

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from brain_service.episodes.log_format import decode_line, encode_line, json_ready
from brain_service.errors import CorruptDataError, InvalidError

LINE = encode_line({"type": "step", "observation": {"text": "grün", "x": [0.1, -3]}, "reward": 0.5})


@given(st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=20))
@example([0x15AE43FD, 0x95AE43FD])  # 7.038531e-26: its shortest text read as a double rounds to its neighbour
@example([0x00000001, 0x7F7FFFFF, 0x80000000])
def test_every_finite_float32_reads_back_bit_for_bit(bits: list[int]) -> None:
    values = np.array(bits, np.uint32).view(np.float32)
    values = np.where(np.isfinite(values), values, np.float32(0))
    record = decode_line(encode_line({"v": json_ready(values), "s": json_ready(values[0])}))
    again = np.array(record["v"], np.float64).astype(np.float32)
    assert again.tobytes() == values.tobytes()
    assert np.float32(record["s"]).tobytes() == values[0].tobytes()


def test_a_float_is_its_shortest_text() -> None:
    assert b'"v":[0.1,1e-7]' in encode_line({"v": np.array([0.1, 1e-7], np.float32)})


def test_integers_keep_64_bits_and_strided_arrays_their_values() -> None:
    values = np.array([[2**62 + 1, 0], [-(2**63), 7]], np.int64)[:, 0]
    assert decode_line(encode_line({"v": json_ready(values)}))["v"] == [2**62 + 1, -(2**63)]


def test_the_line_is_plain_json_with_its_checksum_last() -> None:
    document = json.loads(LINE)
    assert list(document)[-1] == "crc32c"
    assert LINE.endswith(f',"crc32c":"{document["crc32c"]}"}}\n'.encode())


def test_every_flipped_bit_is_found() -> None:
    for place in range(len(LINE)):
        for bit in range(8):
            damaged = bytearray(LINE)
            damaged[place] ^= 1 << bit
            with pytest.raises(CorruptDataError):
                decode_line(bytes(damaged))


def test_every_shortened_line_is_found() -> None:
    for length in range(len(LINE)):
        with pytest.raises(CorruptDataError):
            decode_line(LINE[:length])


@pytest.mark.parametrize(
    "record", [{}, {"crc32c": "00000000"}, {"text": "\ud800"}, {"n": 2**64}, {"object": object()}]
)
def test_what_json_cannot_hold_is_refused(record: dict[str, object]) -> None:
    with pytest.raises(InvalidError):
        encode_line(record)
