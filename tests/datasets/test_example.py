"""The example codec, against bytes written by hand from the schema and by itself."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from brain_service.datasets.example import Values, _Example, decode_example, encode_example
from brain_service.datasets.varint import pack_varints, varint
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


@given(
    st.dictionaries(
        st.text(max_size=200),
        st.one_of(
            _values,
            npst.arrays(np.int64, st.integers(0, 40), elements=st.integers(-(2**63), 2**63 - 1)),
            npst.arrays(np.bool_, st.integers(0, 200)),
            npst.arrays(np.uint8, st.integers(0, 200)),
            st.lists(st.binary(min_size=1000, max_size=1100), max_size=2),
        ),
        max_size=6,
    )
)
def test_the_bytes_are_those_of_protobuf(features: dict[str, Values]) -> None:
    whole, entries = _Example(), []
    for key in sorted(features, key=str.encode):
        _fill(whole.features.feature[key], features[key])
        alone = _Example()
        _fill(alone.features.feature[key], features[key])
        entries.append(alone.features.SerializeToString())
    # Protobuf's implementations differ in where a key stands that begins another one: each entry is compared.
    body = b"".join(entries)
    whole.features.SetInParent()
    assert encode_example(features) == b"\x0a" + varint(len(body)) + body
    assert _Example.FromString(encode_example(features)) == whole


def _fill(feature: Any, values: Values) -> None:
    """Give a feature its list, which is there even where it is empty."""
    found: Any
    if isinstance(values, list):
        found, members = feature.bytes_list, list[Any](values)
    elif values.dtype == np.float32:
        found, members = feature.float_list, values.tolist()
    else:
        found, members = feature.int64_list, values.astype(np.int64).tolist()
    found.SetInParent()
    found.value.extend(members)


@given(st.lists(st.integers(0, 2**64 - 1)))
def test_a_varint_is_the_one_that_protobuf_writes(numbers: list[int]) -> None:
    # A packed list of unsigned integers is their varints one after another, behind its own tag and length.
    message = _Example()
    signed = [number - 2**64 if number >= 2**63 else number for number in numbers]
    message.features.feature["a"].int64_list.value.extend(signed)
    packed = pack_varints(np.array(signed, np.int64))
    assert packed == b"".join(map(varint, numbers))
    assert message.features.feature["a"].int64_list.SerializeToString().endswith(packed)


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
