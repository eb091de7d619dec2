"""The example codec, against bytes written by hand from the schema and by itself."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from brain_service.datasets.example import Values, decode_example, encode_example
from brain_service.errors import CorruptDataError

_values = st.one_of(
    npst.arrays(np.float32, st.integers(0, 40), elements=st.floats(width=32, allow_nan=False)),
    npst.arrays(np.int64, st.integers(0, 40)),
    st.lists(st.binary(max_size=20), max_size=5),
)


@given(st.dictionaries(st.text(max_size=10), _values, max_size=4))
def test_features_come_back_bit_for_bit(features: dict[str, Values]) -> None:
    found = decode_example(encode_example(features), "here")
    assert found.keys() == features.keys()
    for key, expected in features.items():
        value = found[key]
        if isinstance(expected, list):
            assert value == expected
        else:
            assert isinstance(value, np.ndarray)
            assert (value.dtype, value.tobytes()) == (expected.dtype, expected.tobytes())


def test_the_wire_form_is_that_of_the_schema() -> None:
    # Example{features{feature{"a": Feature{float_list{value: [1.0] packed}}}}}, tag by tag.
    floats = b"\x0a\x04" + np.float32(1.0).tobytes()
    feature = b"\x12" + bytes([len(floats)]) + floats
    entry = b"\x0a\x01a" + b"\x12" + bytes([len(feature)]) + feature
    features = b"\x0a" + bytes([len(entry)]) + entry
    expected = b"\x0a" + bytes([len(features)]) + features
    assert encode_example({"a": np.array([1.0], np.float32)}) == expected


def test_a_long_list_needs_a_length_of_several_bytes() -> None:
    values = np.arange(100_000, dtype=np.float32)
    assert np.array_equal(decode_example(encode_example({"a": values}), "here")["a"], values)


def test_equal_features_give_equal_bytes_whatever_their_order() -> None:
    one, two = np.array([1]), [b"x"]
    assert encode_example({"a": one, "b": two}) == encode_example({"b": two, "a": one})


def test_other_bytes_are_no_example() -> None:
    with pytest.raises(CorruptDataError, match=r"shard 3: not a tf\.train\.Example"):
        decode_example(b"\xff\xff\xff", "shard 3")
