"""Features found by their bytes, against protobuf's own parser."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from brain_service.datasets import example
from brain_service.datasets.example import Values, encode_example
from brain_service.datasets.wire import Span, bytes_at, find_spans, floats_at, integers_at

_integers = st.one_of(
    npst.arrays(np.int64, st.integers(0, 40)),
    npst.arrays(np.int64, st.integers(0, 40), elements=st.integers(0, 1)),
    npst.arrays(np.int64, st.integers(0, 40), elements=st.integers(2**60, 2**62)),
)
_texts = st.lists(st.sampled_from([b"expert", b"policy", b"", b"x" * 200]), max_size=40)
_values = st.one_of(npst.arrays(np.float32, st.integers(0, 40)), _integers, _texts)
_features = st.dictionaries(st.text(max_size=10), _values, max_size=5)


@given(_features)
def test_what_encoders_write_is_canonical_and_reads_as_protobuf_reads_it(features: dict[str, Values]) -> None:
    data = encode_example(features)
    spans = find_spans(data)
    if not features:
        assert spans is None or spans == {}
        return
    assert spans is not None
    expected = example._parse(data, "here")
    assert spans.keys() == expected.keys()
    for key, span in spans.items():
        read = {"float": floats_at, "int64": integers_at, "bytes": bytes_at}[span.kind]
        found, wanted = read(data, span), expected[key]
        if isinstance(wanted, list):
            assert found == wanted
        else:
            assert isinstance(found, np.ndarray)
            assert (found.dtype, found.tobytes()) == (wanted.dtype, wanted.tobytes())


@given(_features, st.sets(st.text(max_size=10)))
def test_only_what_is_wanted_is_looked_into(features: dict[str, Values], wanted: set[str]) -> None:
    spans = find_spans(encode_example(features), wanted) or {}
    assert spans.keys() == features.keys() & wanted


@given(_features, st.data())
def test_damaged_bytes_never_point_outside(features: dict[str, Values], data: st.DataObject) -> None:
    good = encode_example(features | {"one": np.array([1, 2, 300], np.int64), "text": [b"a", b"bc"]})
    bad = bytearray(good)
    for position in data.draw(st.lists(st.integers(0, len(good) - 1), min_size=1, max_size=4)):
        bad[position] = data.draw(st.integers(0, 255))
    cut = bytes(bad[: data.draw(st.integers(0, len(bad)))])
    for span in (find_spans(cut) or {}).values():
        assert 0 <= span.start <= span.stop <= len(cut)
        read = {"float": floats_at, "int64": integers_at, "bytes": bytes_at}[span.kind]
        read(cut, span)


@pytest.mark.parametrize("raw", [b"\x80", b"\x01\xff", b"\xff" * 10 + b"\x01"])
def test_a_varint_cut_short_or_too_long_is_no_number(raw: bytes) -> None:
    assert integers_at(raw, Span("int64", 0, len(raw))) is None


def test_equal_neighbours_share_one_object() -> None:
    texts = [b"expert"] * 1000 + [b"policy"] + [b"expert"] * 500
    data = encode_example({"role": texts})
    spans = find_spans(data)
    assert spans is not None
    found = bytes_at(data, spans["role"])
    assert found == texts
    assert found is not None
    assert len({id(value) for value in found}) == 3
