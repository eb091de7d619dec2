"""The msgpack of openpi's clients: arrays come back bit for bit, and no bytes at all break it."""

from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from brain_service.api.msgpack_numpy import pack, unpack
from brain_service.errors import MalformedError

DTYPES = st.sampled_from(["<f4", "<f8", "<f2", ">f4", "|u1", "<i8", "|b1", "<u2"])
ARRAYS = DTYPES.flatmap(
    lambda dtype: arrays.arrays(dtype, arrays.array_shapes(min_dims=0, min_side=0, max_side=4))
)


@given(st.dictionaries(st.text(max_size=8), ARRAYS | st.text(max_size=8), max_size=4))
def test_what_is_packed_is_unpacked(message: dict[str, Any]) -> None:
    found = unpack(pack({"inner": message}))["inner"]
    assert found.keys() == message.keys()
    for name, value in message.items():
        if isinstance(value, np.ndarray):
            assert (found[name].dtype, found[name].shape) == (value.dtype, value.shape)
            assert found[name].tobytes() == value.tobytes()
        else:
            assert found[name] == value


@given(st.binary(max_size=100))
def test_arbitrary_bytes_are_read_or_malformed(body: bytes) -> None:
    try:
        unpack(body)
    except MalformedError as error:
        assert error.detail


ARRAY: dict[bytes, Any] = {b"__ndarray__": True, b"data": bytes(8), b"dtype": "<f4", b"shape": [2]}
SCALAR: dict[bytes, Any] = {b"__npgeneric__": True, b"data": 1.5, b"dtype": "<f4"}


@given(
    st.sampled_from([ARRAY, SCALAR]),
    st.sampled_from([b"data", b"dtype", b"shape"]),
    st.none()
    | st.integers()
    | st.text(max_size=4)
    | st.binary(max_size=9)
    | st.lists(st.integers(-2, 2**40), max_size=3),
)
def test_a_changed_member_is_read_or_malformed(node: dict[bytes, Any], name: bytes, value: Any) -> None:
    try:
        body = msgspec.msgpack.encode({"x": {**node, name: value}})
    except OverflowError:
        return
    test_arbitrary_bytes_are_read_or_malformed.hypothesis.inner_test(body)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "changes",
    [
        {b"dtype": "|O"},
        {b"dtype": "|O8"},
        {b"dtype": "<U2"},
        {b"dtype": "<c8"},
        {b"dtype": "<M8[ns]"},
        {b"dtype": "f4,(2"},
        {b"dtype": [["a", "<f4"]]},
        {b"shape": [3]},
        {b"shape": [-1]},
        {b"shape": [2**62, 2**62]},
        {b"shape": [1] * 9 + [2]},
        {b"shape": 2},
        {b"shape": [True, 2]},
        {b"data": "12345678"},
        {b"data": b""},
    ],
)
def test_objects_text_and_wrong_sizes_are_refused(changes: dict[bytes, Any]) -> None:
    with pytest.raises(MalformedError, match="array"):
        unpack(msgspec.msgpack.encode({"x": ARRAY | changes}))


@pytest.mark.parametrize(
    "changes", [{b"dtype": "|O"}, {b"data": "1"}, {b"data": None}, {b"dtype": "|u1", b"data": -1}]
)
def test_a_scalar_that_is_none_is_refused(changes: dict[bytes, Any]) -> None:
    with pytest.raises(MalformedError):
        unpack(msgspec.msgpack.encode(SCALAR | changes))


def test_a_scalar_is_read() -> None:
    found = unpack(msgspec.msgpack.encode(SCALAR))
    assert (found, found.dtype) == (1.5, np.float32)


def test_depth_is_no_crash() -> None:
    with pytest.raises(MalformedError):
        unpack(b"\x91" * 100_000 + b"\x01")
