"""The framing: what is written is read, and every flipped bit or missing byte is found."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from brain_service.datasets.tfrecord import FRAME_BYTES, frame, read_records
from brain_service.errors import CorruptDataError


def test_a_known_record_has_the_bytes_that_tensorflow_writes() -> None:
    # Written with tf.io.TFRecordWriter (TensorFlow 2.21): b"robot".
    assert frame(b"robot").hex() == "0500000000000000eab2043e726f626f74a266e026"


@given(st.lists(st.binary(max_size=64), max_size=5))
def test_records_come_back_in_order(tmp_path_factory: pytest.TempPathFactory, payloads: list[bytes]) -> None:
    path = tmp_path_factory.mktemp("records") / "shard"
    path.write_bytes(b"".join(frame(payload) for payload in payloads))
    assert list(read_records(path)) == payloads
    assert path.stat().st_size == sum(len(payload) + FRAME_BYTES for payload in payloads)


def test_every_flipped_bit_is_found(tmp_path: Path) -> None:
    path = tmp_path / "shard"
    good = frame(b"first") + frame(b"second, a little longer")
    for position in range(8 * len(good)):
        bad = bytearray(good)
        bad[position // 8] ^= 1 << position % 8
        path.write_bytes(bad)
        with pytest.raises(CorruptDataError, match="shard: the "):
            list(read_records(path))


def test_every_cut_is_found_except_between_records(tmp_path: Path) -> None:
    path = tmp_path / "shard"
    first, second = frame(b"first"), frame(b"second")
    for size in range(1, len(first + second)):
        path.write_bytes((first + second)[:size])
        if size == len(first):
            assert list(read_records(path)) == [b"first"]
            continue
        with pytest.raises(CorruptDataError, match=f"at byte {0 if size < len(first) else len(first)}"):
            list(read_records(path))


@pytest.mark.parametrize("length", [2**26, 2**40, 2**63, 2**64 - 1])
def test_a_length_beyond_the_file_reserves_no_memory(tmp_path: Path, length: int) -> None:
    path = tmp_path / "shard"
    # The checksum of a length is no secret: whoever made this file could make it hold.
    crafted = bytearray(frame(b"payload"))
    crafted[:12] = frame(length.to_bytes(8, "little"))[12:20] + frame(length.to_bytes(8, "little"))[20:24]
    path.write_bytes(crafted)
    with pytest.raises(CorruptDataError, match="at byte 0 needs"):
        list(read_records(path))
